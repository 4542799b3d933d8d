"""The classification protocol: figures, labels that cannot be evaluated, its command."""

import json

import pytest
import torch
from datasets import Dataset
from peft import get_peft_model
from PIL import Image
from repositories import make_adapter, make_base, make_full, make_processor
from tiny import make_config, randomise

from eval.classification import (
    classification_metrics,
    classify_studies,
    evaluate_classification,
    load_classifier,
    main,
)
from eval.protocol import RunOptions
from modeling_alta import AltaAdapterConfig, AltaForImageClassification
from modeling_alta.export_alta import export_adapter, export_full
from processing.batches.label_batch import label_settings
from processing.records.study_records import STUDY_FEATURES


NAMES = ["Edema", "Effusion"]
LABELS = [["Edema"], ["Edema"], ["Effusion"], ["Effusion", "Device"]]
SCORES = [[0.9, 0.1], [0.4, 0.2], [0.5, 0.3], [0.1, 0.4]]


def make_classifier(**settings) -> AltaForImageClassification:
    torch.manual_seed(0)
    return randomise(AltaForImageClassification(make_config(**label_settings(NAMES), **settings))).eval()


def make_studies(labels) -> list[dict]:
    images = [Image.new("L", (40, 40), 20 * index) for index in range(len(labels))]
    return [
        {**dict.fromkeys(STUDY_FEATURES), "study_id": f"s{index}", "patient_id": f"p{index}", "labels": names}
        | {"current_frontal": image, "prior_frontal": images[0] if index % 2 else None}
        for index, (image, names) in enumerate(zip(images, labels, strict=True))
    ]


def test_figures_and_their_means_match_hand_counts():
    results = classification_metrics(SCORES, NAMES, LABELS, bootstrap_samples=50)
    # Edema: of the 4 pairs, 0.9 beats both and 0.4 beats 0.1 only: 3/4. Precision at 0.9 is 1, at 0.4 it is 2/3.
    edema = results["labels"]["Edema"]
    assert edema["auroc"] == {"value": 0.75, "chance": 0.5, "ci95": None}
    assert edema["average_precision"] == {"value": pytest.approx(5 / 6), "chance": 0.5, "ci95": None}
    assert (edema["positives"], edema["negatives"]) == (2, 2)
    assert results["macro_auroc"] == {"value": 0.875, "chance": 0.5, "labels": 2}
    assert results["macro_average_precision"]["value"] == pytest.approx((5 / 6 + 1) / 2)


def test_labels_of_one_class_and_without_output_are_named_with_the_reason():
    results = classification_metrics(SCORES, ["Edema", "Fracture"], LABELS, bootstrap_samples=50)
    assert list(results["labels"]) == ["Edema"]
    assert results["not_evaluated"] == {
        "Device": "the model has no output for it",
        "Effusion": "the model has no output for it",
        "Fracture": "every study of the split is negative",
    }


def test_split_of_one_class_has_no_mean():
    results = classification_metrics([[0.1], [0.2]], ["Edema"], [["Edema"], ["Edema"]])
    assert results["macro_auroc"] is None and results["macro_average_precision"] is None
    assert results["not_evaluated"] == {"Edema": "every study of the split is positive"}


@pytest.mark.parametrize(("unlabelled", "auroc", "counts"), [("left_out", 1.0, (2, 2)), ("negative", 0.5, (4, 0))])
def test_unlabelled_study_is_left_out_or_negative_as_chosen(unlabelled, auroc, counts):
    labels = [["Edema"], ["No Finding"], [], None]
    results = classification_metrics([[0.5], [0.1], [0.9], [0.5]], ["Edema"], labels, unlabelled, 50)
    # As negatives, 0.1 loses against the positive's 0.5, 0.9 wins, and 0.5 counts one half: 1.5 / 3.
    assert results["labels"]["Edema"]["auroc"]["value"] == auroc
    assert (results["studies"], results["unlabelled"]) == counts


def test_enough_studies_have_intervals_that_hold_the_figures():
    noise = torch.randn(60, 1, generator=torch.Generator().manual_seed(0))
    scores = torch.linspace(0, 1, 60).unsqueeze(1) + noise
    labels = [["Edema"] if index > 40 else ["No Finding"] for index in range(60)]
    result = classification_metrics(scores, ["Edema"], labels, bootstrap_samples=200)["labels"]["Edema"]
    for name in ("auroc", "average_precision"):
        low, high = result[name]["ci95"]
        assert 0 < low < result[name]["value"] < high < 1


def test_intervals_are_over_the_patients_of_the_labelled_studies():
    # Five patients with each class of 15, and a sixth whose studies nobody labelled.
    labels = [[], [], *[["Edema"], ["No Finding"], ["No Finding"]] * 5]
    patients = ["p5", "p5", *(f"p{study // 3}" for study in range(15))]
    scores = [[0.0], [0.0], *([study * 7 % 15] for study in range(15))]
    results = classification_metrics(scores, ["Edema"], labels, bootstrap_samples=50, patients=patients)
    assert results["bootstrap"] == {"samples": 50, "seed": 0, "unit": "patient", "units": 5}
    assert all(results["labels"]["Edema"][name]["ci95"] for name in ("auroc", "average_precision"))
    patients[-3:] = ["p0"] * 3
    results = classification_metrics(scores, ["Edema"], labels, bootstrap_samples=50, patients=patients)
    assert not any(results["labels"]["Edema"][name]["ci95"] for name in ("auroc", "average_precision"))


@pytest.mark.parametrize(
    ("scores", "labels", "unlabelled", "message"),
    [
        ([[0.1, 0.2]], LABELS, "left_out", r"`scores` must hold a finite score of 2 labels.*4 studies.*\(1, 2\)"),
        ([[0.1, torch.nan]] * 4, LABELS, "left_out", "4 not finite"),
        ([[0.1, 0.2]], [[]], "left_out", "at least one study with a label, got none among 1"),
        (SCORES, LABELS, "no", "`unlabelled` must be one of .* got 'no'"),
    ],
)
def test_bad_inputs_are_named(scores, labels, unlabelled, message):
    with pytest.raises(ValueError, match=message):
        classification_metrics(scores, NAMES, labels, unlabelled)


@pytest.mark.parametrize("problem_type", ["multi_label_classification", "single_label_classification"])
def test_scores_are_the_probabilities_of_the_views_that_are_there(problem_type):
    model, processor = make_classifier(problem_type=problem_type), make_processor()
    studies = make_studies(LABELS)
    scores = classify_studies(model.train(), processor, studies, batch_size=3)
    assert model.training and scores.shape == (4, 2)
    views = {name: studies[3][name] for name in ("current_frontal", "prior_frontal")}
    with torch.no_grad():
        logits = model(**processor(images=views, return_tensors="pt")).logits[0].double()
    expected = logits.sigmoid() if problem_type.startswith("multi") else logits.softmax(-1)
    torch.testing.assert_close(scores[3], expected, rtol=1e-5, atol=1e-6)


def test_no_study_is_an_error():
    with pytest.raises(ValueError, match="`studies` must hold at least one study"):
        classify_studies(make_classifier(), make_processor(), [])


def test_evaluation_of_records_tells_what_was_measured():
    records = Dataset.from_list(make_studies(LABELS), features=STUDY_FEATURES)
    results = evaluate_classification(
        make_classifier(), make_processor(), records, RunOptions("tester/c", "tester/r", "test")
    )
    assert results["protocol"] == {"name": "classification", "version": "1.1"}
    assert (results["model"], results["n"]) == ("tester/c", 4)
    assert results["results"]["bootstrap"]["unit"] == "patient"
    assert results["results"]["not_evaluated"] == {"Device": "the model has no output for it"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Records of one split, and repositories of a classifier, of an adapter over another, and of aligned models."""
    folder, processor = tmp_path_factory.mktemp("classification"), make_processor()
    (folder / "records" / "data").mkdir(parents=True)
    records = Dataset.from_list(make_studies(LABELS), features=STUDY_FEATURES)
    records.to_parquet(folder / "records" / "data" / "test-00000-of-00001.parquet")
    export_full(make_classifier(), processor, folder / "full")
    base = make_classifier(use_adapters=False)
    export_full(base, processor, folder / "base")
    adapter = randomise(get_peft_model(base, AltaAdapterConfig()), seed=1)
    export_adapter(adapter, processor, folder / "adapter", base=folder / "base")
    export_full(make_full(), processor, folder / "aligned")
    export_full(make_base(), processor, folder / "aligned_base")
    export_adapter(make_adapter(), processor, folder / "aligned_adapter", base=folder / "aligned_base")
    return folder


@pytest.mark.parametrize("kind", ["full", "adapter"])
def test_command_writes_its_json_for_a_full_and_an_adapter_repository(kind, folder, tmp_path):
    arguments = ["--model", str(folder / kind), "--records", str(folder / "records"), "--device", "cpu"]
    main([*arguments, "--unlabelled", "negative", "--output", str(tmp_path / "out.json")])
    results = json.loads((tmp_path / "out.json").read_text())
    assert (results["model"], results["records"], results["results"]["studies"]) == (kind, "records", 4)
    assert results["results"]["macro_auroc"]["labels"] == 2


def test_model_without_a_classifier_is_an_error_not_a_random_figure(folder, tmp_path, capsys):
    with pytest.raises(ValueError, match=r"`model` must be a trained classifier, got .* without \['classifier.bias'"):
        load_classifier(str(folder / "aligned"))
    with pytest.raises(ValueError, match=r"`model` must be a trained classifier, got .* and with \['image_decoder"):
        load_classifier(str(folder / "aligned_adapter"))
    with pytest.raises(SystemExit) as stop:
        main(["--model", "nowhere", "--records", str(folder / "records"), "--output", str(tmp_path / "out.json")])
    assert stop.value.code == 2 and "of a classifier, got 'nowhere'" in capsys.readouterr().err


def test_adapter_over_a_base_of_other_labels_is_an_error(folder, tmp_path):
    base = AltaForImageClassification(make_config(use_adapters=False, **label_settings([*NAMES, "Nodule"])))
    adapter = get_peft_model(base, AltaAdapterConfig())
    export_adapter(adapter, make_processor(), tmp_path, base=folder / "aligned_base")
    with pytest.raises(ValueError, match="`model` must be a Hub folder or a Hub id of a classifier"):
        load_classifier(str(tmp_path))
