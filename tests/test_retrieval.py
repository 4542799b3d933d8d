"""The report retrieval protocol: directions, identical reports, intervals, its command."""

import json

import pytest
import torch
from datasets import Dataset

from eval import retrieval
from eval.protocol import RunOptions
from eval.retrieval import evaluate_retrieval, retrieval_metrics
from tests.fake_model import FakeModel, FakeProcessor


def test_matching_embeddings_are_found_in_both_directions():
    # With 20 of 20 hits the exact 95 % interval starts at 0.025 ** (1 / 20) = 0.8316.
    embeds = torch.eye(20)
    results = retrieval_metrics(embeds, embeds, [str(index) for index in range(20)], bootstrap_samples=50)
    for direction in ("text_to_image", "image_to_text"):
        recall = results[direction]["recall_at_1"]
        assert (recall["value"], recall["chance"]) == (1.0, 0.05)
        assert recall["ci95"] == pytest.approx([0.8316, 1.0], abs=1e-4)
        assert results[direction]["median_rank"] == {"value": 1.0, "chance": 10.0}


def test_the_two_directions_are_ranked_apart():
    # Cosines: image 0 with the texts .6 and .2, image 1 with the texts .5 and .4. Every text prefers its own image
    # (.6 > .5, .4 > .2); image 1 prefers the wrong text (.5 > .4). The last two axes make the texts unit vectors.
    images = torch.eye(4)[:2]
    texts = torch.tensor([[0.6, 0.5, 0.39**0.5, 0.0], [0.2, 0.4, 0.0, 0.8**0.5]])
    results = retrieval_metrics(images, texts, ["a", "b"], k=[1], bootstrap_samples=50)
    assert results["text_to_image"]["recall_at_1"]["value"] == 1.0
    assert results["image_to_text"]["recall_at_1"]["value"] == 0.5


def test_identical_reports_are_one_answer():
    # Studies 0 and 1 share a report; each image is nearest to the text of its own report.
    images = torch.tensor([[1.0, 0.1], [1.0, -0.1], [0.0, 1.0]])
    texts = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    results = retrieval_metrics(images, texts, ["no change", "no  change", "effusion"], k=[1], bootstrap_samples=50)
    assert (results["studies"], results["distinct_reports"]) == (3, 2)
    assert results["image_to_text"]["recall_at_1"]["value"] == results["text_to_image"]["recall_at_1"]["value"] == 1.0
    # Images choose among 2 texts: 1/2. Text 0 has 2 right images of 3, text 1 has 1 of 3: 1/2 on average.
    assert results["image_to_text"]["recall_at_1"]["chance"] == 0.5
    assert results["text_to_image"]["recall_at_1"]["chance"] == pytest.approx(0.5)
    assert (results["text_to_image"]["queries"], results["text_to_image"]["candidates"]) == (2, 3)


@pytest.mark.parametrize("empty", ["", "  ", None])
def test_a_study_without_a_report_is_an_error_before_anything_is_encoded(empty):
    message = "`reports` must hold text for every study, got 1 of 2 empty, the first at 1"
    with pytest.raises(ValueError, match=message):
        retrieval_metrics(torch.eye(2), torch.eye(2), ["no change", empty])
    records = Dataset.from_dict({"study_id": ["a", "b"], "patient_id": ["p", "q"], "report": ["no change", empty]})
    with pytest.raises(ValueError, match=message):
        evaluate_retrieval(None, None, records, RunOptions("m", "r", "test"))


def test_a_study_without_a_patient_is_an_error_before_anything_is_encoded():
    records = Dataset.from_dict({"study_id": ["a", "b"], "patient_id": ["p", None], "report": ["one", "two"]})
    with pytest.raises(ValueError, match="`patients` must name the patient of each of 2 studies, got 2 names, 1 of"):
        evaluate_retrieval(None, None, records, RunOptions("m", "r", "test"))


def test_collapsed_model_ranks_last_and_not_first():
    noise = 1e-8 * torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    results = retrieval_metrics(1 + noise, 1 - noise, [str(index) for index in range(30)], bootstrap_samples=50)
    assert results["image_to_text"]["recall_at_10"]["value"] == 0.0
    assert results["image_to_text"]["median_rank"]["value"] == 30.0


def test_random_embeddings_stay_at_their_chance_level():
    generator = torch.Generator().manual_seed(0)
    images, texts = torch.randn(400, 16, generator=generator), torch.randn(400, 16, generator=generator)
    results = retrieval_metrics(images, texts, [str(index) for index in range(400)], bootstrap_samples=200)
    figure = results["text_to_image"]["recall_at_10"]
    assert figure["ci95"][0] <= figure["chance"] == 10 / 400 <= figure["ci95"][1]


def test_intervals_are_over_the_patients_of_the_queries():
    # Every second of 50 patients is always found: 1.96 * sqrt(0.25 / 50) = 0.139 to either side, with 8 studies each.
    generator = torch.Generator().manual_seed(0)
    images = torch.eye(400)
    texts = torch.where(torch.arange(400)[:, None] // 8 % 2 == 0, images, torch.randn(400, 400, generator=generator))
    reports, patients = [str(index) for index in range(400)], [f"p{index // 8}" for index in range(400)]
    results = retrieval_metrics(images, texts, reports, k=[1], patients=patients)
    for direction in ("text_to_image", "image_to_text"):
        low, high = results[direction]["recall_at_1"]["ci95"]
        assert 0.2 < high - low < 0.36
    low, high = retrieval_metrics(images, texts, reports, k=[1])["text_to_image"]["recall_at_1"]["ci95"]
    assert high - low < 0.12


def test_a_report_of_several_patients_is_a_query_of_the_first():
    # Two of ten texts are wrong, both of the patient p: that a and b have these reports as well changes nothing.
    images, texts = torch.eye(10), torch.eye(10)[[1, 0, *range(2, 10)]]
    reports = [str(index) for index in range(10)]
    patients = ["p", "p", *"abcdefgh"]
    alone = retrieval_metrics(images, texts, reports, k=[1], patients=patients)["text_to_image"]
    again = retrieval_metrics(
        torch.cat([images, images[:2]]),
        torch.cat([texts, texts[:2]]),
        [*reports, "0", "1"],
        k=[1],
        patients=[*patients, "a", "b"],
    )["text_to_image"]
    assert alone["recall_at_1"]["ci95"] == again["recall_at_1"]["ci95"]


def test_chunks_of_queries_do_not_change_the_ranks(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    images, texts = torch.randn(10, 4, generator=generator), torch.randn(10, 4, generator=generator)
    whole = retrieval_metrics(images, texts, list("abcdefghij"), bootstrap_samples=50)
    monkeypatch.setattr(retrieval, "QUERIES_PER_CHUNK", 3)
    assert retrieval_metrics(images, texts, list("abcdefghij"), bootstrap_samples=50) == whole


@pytest.mark.parametrize(
    ("images", "texts", "reports", "message"),
    [
        (
            torch.eye(3),
            torch.eye(2),
            ["a", "b"],
            r"`image_embeds` must have shape \(2, projection_dim\).*got \(3, 3\)",
        ),
        (
            torch.eye(2),
            torch.ones(2, 3),
            ["a", "b"],
            r"`text_embeds` must have the shape of .* \(2, 2\), got \(2, 3\)",
        ),
        (torch.eye(2), torch.full((2, 2), torch.nan), ["a", "b"], "`text_embeds` must be finite, got 4"),
        (torch.empty(0, 2), torch.empty(0, 2), [], "at least one"),
    ],
)
def test_bad_embeddings_are_named(images, texts, reports, message):
    with pytest.raises(ValueError, match=message):
        retrieval_metrics(images, texts, reports)


RECORDS = Dataset.from_list(
    [
        {"study_id": "s1", "patient_id": "p1", "current_frontal": [1.0, 0.0], "prior_frontal": None, "report": "1 0"},
        {"study_id": "s2", "patient_id": "p1", "current_frontal": [0.0, 1.0], "prior_frontal": None, "report": "0 1"},
    ]
)


def test_evaluation_of_records_says_what_was_measured():
    results = evaluate_retrieval(
        FakeModel(), FakeProcessor(), RECORDS, RunOptions("tester/alta", "tester/records", "test")
    )
    assert results["protocol"] == {"name": "report_retrieval", "version": "1.1"}
    assert (results["n"], results["split"], results["records"]) == (2, "test", "tester/records")
    assert results["results"]["bootstrap"] == {"samples": 1000, "seed": 0, "unit": "patient", "units": 1}
    assert results["results"]["text_to_image"]["recall_at_1"]["value"] == 1.0


def test_command_writes_its_json(monkeypatch, tmp_path):
    monkeypatch.setattr(retrieval, "load_model", lambda name, device: (FakeModel(), FakeProcessor()))
    monkeypatch.setattr(retrieval, "load_records", lambda path, split: RECORDS)
    output = tmp_path / "out" / "retrieval.json"
    retrieval.main(["--model", "m", "--records", "r", "--output", str(output), "--bootstrap-samples", "20"])
    assert json.loads(output.read_text())["results"]["bootstrap"]["samples"] == 20


def test_command_names_a_folder_without_records(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        retrieval.main(["--model", "m", "--records", str(tmp_path), "--output", str(tmp_path / "out.json")])
    assert stop.value.code == 2 and str(tmp_path) in capsys.readouterr().err
