"""The zero-shot protocol: scores, prompt ensembles, labels that cannot be evaluated, its command."""

import json
import math

import pytest
import torch
from datasets import Dataset

from eval import zero_shot
from eval.prompts import load_prompts
from eval.protocol import RunOptions
from eval.zero_shot import evaluate_zero_shot, zero_shot_metrics, zero_shot_scores
from tests.fake_model import FakeModel, FakeProcessor


def test_score_is_the_softmax_of_two_cosines():
    # Cosines 0.6 and 0.8, scale 10: 1 / (1 + e^(10 * 0.2)).
    scores = zero_shot_scores(torch.tensor([[0.6, 0.8]]), torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), 10)
    assert scores.tolist() == [pytest.approx(1 / (1 + math.exp(2)))]


def test_prompts_of_a_side_are_averaged_as_directions():
    # Unit vectors (1, 0) and (0, 1) average to the diagonal, whatever the length of the second prompt's embedding.
    positive = torch.tensor([[1.0, 0.0], [0.0, 5.0]])
    scores = zero_shot_scores(torch.tensor([[1.0, 1.0]]), positive, torch.tensor([[-1.0, 1.0]]))
    # Cosine 1 with the diagonal, 0 with the negative: e / (e + 1).
    assert scores.tolist() == [pytest.approx(math.e / (math.e + 1))]


def test_large_scale_keeps_the_order_of_the_scores():
    images = torch.tensor([[1.0, -0.90], [1.0, -0.91], [1.0, -0.92]])
    scores = zero_shot_scores(images, torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), scale=20)
    assert len(set(scores.tolist())) == 3


@pytest.mark.parametrize(
    ("positive", "scale", "message"),
    [
        (torch.ones(1, 3), 1.0, r"`positive_embeds` must have shape \(num_prompts, 2\).*got \(1, 3\)"),
        (torch.empty(0, 2), 1.0, "at least one prompt"),
        (torch.ones(1, 2), 0.0, "`scale` must be above 0, got 0.0"),
    ],
)
def test_bad_prompt_embeddings_are_named(positive, scale, message):
    with pytest.raises(ValueError, match=message):
        zero_shot_scores(torch.ones(4, 2), positive, torch.ones(1, 2), scale)


LABELS = [["Edema"], ["Edema"], ["Effusion"], ["Effusion", "Device"]]


def test_auroc_and_macro_mean_match_hand_count():
    scores = {"Edema": [0.9, 0.4, 0.5, 0.1], "Effusion": [0.1, 0.2, 0.3, 0.4]}
    results = zero_shot_metrics(scores, LABELS, bootstrap_samples=50)
    # Edema: of the 4 pairs, 0.9 beats both and 0.4 beats 0.1 only: 3/4. Effusion: every pair in order.
    assert results["labels"]["Edema"]["auroc"]["value"] == 0.75
    assert (results["labels"]["Edema"]["positives"], results["labels"]["Edema"]["negatives"]) == (2, 2)
    assert results["labels"]["Effusion"]["auroc"] == {"value": 1.0, "chance": 0.5, "ci95": None}
    assert results["macro_auroc"] == {"value": 0.875, "chance": 0.5, "labels": 2}


def test_labels_of_one_class_and_without_prompts_are_named_with_the_reason():
    results = zero_shot_metrics({"Edema": [1, 2, 3, 4], "Fracture": [1, 2, 3, 4]}, LABELS, bootstrap_samples=50)
    assert list(results["labels"]) == ["Edema"]
    assert results["not_evaluated"] == {
        "Device": "the prompt set has no prompt for it",
        "Effusion": "the prompt set has no prompt for it",
        "Fracture": "every study of the split is negative",
    }


def test_split_of_one_class_has_no_mean():
    results = zero_shot_metrics({"Edema": [0.1, 0.2]}, [["Edema"], ["Edema"]])
    assert results["macro_auroc"] is None
    assert results["not_evaluated"] == {"Edema": "every study of the split is positive"}


def test_labels_that_are_missing_are_as_none():
    scores = {"a": [0.1, 0.2, 0.3, 0.4]}
    results = [zero_shot_metrics(scores, [["a"], missing, ["b"], ["b"]]) for missing in ([], None)]
    assert results[0] == results[1] and results[0]["unlabelled"] == 1


def test_records_without_any_label_are_an_error_before_they_are_encoded(prompt_file):
    records = Dataset.from_dict({"study_id": ["s"], "labels": [[]]})
    with pytest.raises(ValueError, match="`labels` must hold at least one study with a label, got none among 1"):
        evaluate_zero_shot(None, None, records, load_prompts(prompt_file), RunOptions("m", "r", "test"))


def test_prompts_of_no_label_of_the_records_are_an_error_before_they_are_encoded(prompt_file):
    records = Dataset.from_dict({"study_id": ["s"], "labels": [["Pneumonia"]]})
    message = r"`prompts` must have a label of the records, \['Pneumonia'\], got \['Edema'\]"
    with pytest.raises(ValueError, match=message):
        evaluate_zero_shot(None, None, records, load_prompts(prompt_file), RunOptions("m", "r", "test"))


def test_unlabelled_study_is_no_negative():
    # With the last study as a negative, its 0.9 would win against 0.8 and the AUROC would be 1/2.
    results = zero_shot_metrics({"Edema": [0.8, 0.1, 0.9]}, [["Edema"], ["No Finding"], []], bootstrap_samples=50)
    assert results["labels"]["Edema"]["auroc"]["value"] == 1.0
    assert (results["studies"], results["unlabelled"]) == (2, 1)


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        (
            [0.1],
            LABELS,
            "`scores` of 'Edema' must hold one finite score for each of the 4 studies, got shape \\(1,\\)",
        ),
        ([0.1, 0.2, 0.3, math.nan], LABELS, "1 not finite"),
        ([0.1], [[]], "at least one study with a label, got none among 1"),
    ],
)
def test_bad_scores_are_named(scores, labels, message):
    with pytest.raises(ValueError, match=message):
        zero_shot_metrics({"Edema": scores}, labels)


def test_intervals_are_over_the_patients_of_the_labelled_studies():
    # Five patients with each class of 15, and a sixth whose studies nobody labelled.
    labels = [[], [], *[["Edema"], ["No Finding"], ["No Finding"]] * 5]
    patients = ["p5", "p5", *(f"p{study // 3}" for study in range(15))]
    scores = {"Edema": [0.0, 0.0, *(study * 7 % 15 for study in range(15))]}
    results = zero_shot_metrics(scores, labels, 50, patients=patients)
    assert results["bootstrap"] == {"samples": 50, "seed": 0, "unit": "patient", "units": 5}
    assert results["labels"]["Edema"]["auroc"]["ci95"] is not None
    patients[-3:] = ["p0"] * 3
    assert zero_shot_metrics(scores, labels, 50, patients=patients)["labels"]["Edema"]["auroc"]["ci95"] is None


RECORDS = Dataset.from_list(
    [
        {"study_id": "s1", "patient_id": "p1", "current_frontal": [1.0, 0.0], "labels": ["Edema"]},
        {"study_id": "s2", "patient_id": "p2", "current_frontal": [0.0, 1.0], "labels": ["No Finding"]},
    ]
)


@pytest.fixture
def prompt_file(tmp_path):
    pair = {"positive": ["1 0", "2 1"], "negative": ["0 1"]}
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps({"name": "toy", "version": "2.0", "labels": {"Edema": pair}}))
    return path


def test_evaluation_of_records_names_the_prompts_and_the_split(prompt_file):
    prompts = load_prompts(prompt_file)
    results = evaluate_zero_shot(
        FakeModel(), FakeProcessor(), RECORDS, prompts, RunOptions("tester/alta", "tester/r", "test")
    )
    assert results["prompts"] == {"name": "toy", "version": "2.0", "sha256": prompts.sha256}
    assert results["results"]["labels"]["Edema"]["auroc"]["value"] == 1.0
    assert results["results"]["bootstrap"] == {"samples": 1000, "seed": 0, "unit": "patient", "units": 2}
    assert results["results"]["not_evaluated"] == {"No Finding": "the prompt set has no prompt for it"}


def test_command_writes_its_json(monkeypatch, tmp_path, prompt_file):
    monkeypatch.setattr(zero_shot, "load_model", lambda name, device: (FakeModel(), FakeProcessor()))
    monkeypatch.setattr(zero_shot, "load_records", lambda path, split: RECORDS)
    output = tmp_path / "zero_shot.json"
    arguments = ["--model", "m", "--records", "r", "--prompts", str(prompt_file), "--output", str(output)]
    zero_shot.main(arguments)
    assert json.loads(output.read_text())["results"]["macro_auroc"]["value"] == 1.0


def test_command_names_a_missing_prompt_file(tmp_path, capsys):
    arguments = ["--model", "m", "--records", "r", "--prompts", "nowhere.json", "--output", str(tmp_path / "out.json")]
    with pytest.raises(SystemExit) as stop:
        zero_shot.main(arguments)
    assert stop.value.code == 2 and "nowhere.json" in capsys.readouterr().err
