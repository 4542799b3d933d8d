"""The model card: figures from the metrics file, "not measured" for the rest, metadata, its command."""

import copy
import json

import pytest
import torch
import yaml
from huggingface_hub import ModelCard

from eval.classification import classification_metrics
from eval.retrieval import retrieval_metrics
from eval.zero_shot import zero_shot_metrics
from model_cards.card import build_card, main


HEAD = {
    "model": "alta",
    "records": "covid_cxr",
    "split": "test",
    "n": 4,
    "study_ids_sha256": "ab" * 32,
    "preprocessing_sha256": "cd" * 32,
}


ZERO_SHOT = {"name": "zero_shot_prompt_pairs", "version": "1.1"}


@pytest.fixture
def metrics():
    images, texts = torch.eye(4), torch.eye(4)[[0, 1, 3, 2]]
    retrieval = retrieval_metrics(images, texts, list("abcd"), k=[1], patients=list("ppqr"), bootstrap_samples=50)
    labels = [["ARDS"], ["ARDS"], ["No Finding"], ["No Finding"]]
    zero_shot = zero_shot_metrics({"ARDS": [0.9, 0.4, 0.5, 0.1]}, labels, bootstrap_samples=50)
    prompts = {"name": "covid_cxr", "version": "1.0", "sha256": "ef" * 32}
    return {
        "run": {"recipe": "demo", "steps": 1200, "seed": 20240},
        "parameters": {"total": 242177854, "trainable": 18333502, "trainable_share": 0.0757026},
        "training": {"loss": 9.87654},
        "retrieval": HEAD | {"protocol": {"name": "report_retrieval", "version": "1.1"}, "results": retrieval},
        "zero_shot": HEAD | {"protocol": ZERO_SHOT, "prompts": prompts, "results": zero_shot},
        "records": {"records": 34, "with_prior": 9, "excluded": {"no frontal": 3}},
        "overlap": {"benchmark": "rsna", "exact_images": {"count": 0, "share": 0.0, "examples": []}},
        "preprocessing_sha256": "cd" * 32,
    }


def test_card_holds_the_figures_of_the_run(metrics):
    text = str(build_card(metrics, model_id="tester/alta"))
    for row in (
        "| trainable | 18,333,502 |",
        "| trainable share | 7.57 % |",
        "| seed | 20240 |",
        "| loss | 9.877 |",
        "| no frontal | 3 |",
        "| text to image | R@1 | 0.500 | 0.250 |",
        "| ARDS | 0.750 | 0.500 |",
    ):
        assert row in text, row
    assert "not measured" not in text.lower()
    assert "Protocol report_retrieval 1.1; model `alta`; records `covid_cxr`, split `test`, 4 studies" in text
    assert "Unit of the intervals: patient, 3 of them." in text and "Unit of the intervals: study, 4 of them." in text


def test_figures_of_another_run_change_the_card(metrics):
    other = copy.deepcopy(metrics)
    other["retrieval"]["results"]["text_to_image"]["recall_at_1"] = {"value": 0.125, "chance": 0.25, "ci95": [0, 0.5]}
    text = str(build_card(other))
    assert "| text to image | R@1 | 0.125 | 0.250 | 0.000 to 0.500 | 4 | 4 |" in text
    assert "| text to image | R@1 | 0.500 |" not in text


def test_label_without_a_figure_is_named_with_its_reason(metrics):
    assert "Not evaluated: No Finding (the prompt set has no prompt for it)." in str(build_card(metrics))


def test_card_of_a_classifier_tells_how_to_use_one_and_holds_its_figures():
    labels = [["ARDS"], ["ARDS"], ["No Finding"], ["No Finding"]]
    results = classification_metrics([[0.9], [0.4], [0.5], [0.1]], ["ARDS"], labels, bootstrap_samples=50)
    run = HEAD | {"protocol": {"name": "classification", "version": "1.1"}, "results": results}
    card = build_card({"classification": run}, model_id="tester/classifier")
    text = str(card)
    assert "| ARDS | 0.750 | 0.500 |" in text and "| 0.833 | 0.500 |" in text
    assert "Not evaluated: No Finding (the model has no output for it)." in text
    assert "AutoModelForImageClassification" in text and "zero-shot" not in text.lower()
    values = {result.metric_name: result.metric_value for result in ModelCard(text).data.eval_results}
    assert values["AUROC ARDS"] == values["mean AUROC"] == 0.75 and card.data.pipeline_tag == "image-classification"


def test_metadata_holds_every_result_with_its_chance_level(metrics):
    data = ModelCard(str(build_card(metrics, model_id="tester/alta"))).data
    values = {result.metric_name: result.metric_value for result in data.eval_results}
    assert values["text to image R@1"] == 0.5 and values["AUROC ARDS"] == values["mean AUROC"] == 0.75
    assert all("chance" in result.metric_args for result in data.eval_results)
    assert {result.dataset_split for result in data.eval_results} == {"test"}
    assert (data.library_name, data.pipeline_tag) == ("transformers", "zero-shot-image-classification")
    assert data.license is None and set(data.tags) == {"alta", "chest-x-ray", "peft", "radiology"}


def test_metadata_names_the_license_of_the_weights_that_is_given(metrics):
    assert ModelCard(str(build_card(metrics, license="cc-by-nc-4.0"))).data.license == "cc-by-nc-4.0"


def test_figures_of_another_protocol_are_an_error_that_names_both(metrics):
    message = "`retrieval` of `metrics` must be of the protocol 'report_retrieval', got 'zero_shot_prompt_pairs'"
    with pytest.raises(ValueError, match=message):
        build_card(metrics | {"retrieval": metrics["zero_shot"]})


def test_figures_of_a_model_that_sees_radiographs_in_another_way_are_an_error(metrics):
    metrics["zero_shot"] |= {"preprocessing_sha256": "00" * 32}
    with pytest.raises(
        ValueError, match="`preprocessing_sha256` must be the same in all parts of `metrics`, got .*00"
    ):
        build_card(metrics)


def test_empty_metrics_render_as_not_measured():
    card = build_card({})
    assert card.data.eval_results is None
    for part in ("Parameters", "Run", "Losses", "Study records"):
        assert f"{part}: not measured" in str(card)
    assert str(card).count("\nNot measured.") == 2


def test_adapter_card_names_its_base(metrics):
    card = build_card(metrics, model_id="tester/adapter", kind="adapter", base_model="tester/base")
    assert yaml.safe_load(card.data.to_yaml())["base_model"] == "tester/base"
    assert card.data.base_model_relation == "adapter"
    assert 'PeftModel.from_pretrained(base, "tester/adapter")' in str(card)


def test_table_cells_cannot_break_the_table():
    text = str(build_card({"run": {"recipe": "a|b\nc"}}))
    assert "| recipe | a\\|b c |" in text


@pytest.mark.parametrize("kind", ["full", "adapter"])
def test_card_says_no_medical_device_license_and_paper(kind):
    text = str(build_card({}, kind=kind, base_model="tester/base"))
    for words in ("No medical device", "License by artefact", "2506.08990", "AutoModel.from_pretrained", "pipeline("):
        assert words in text, words


@pytest.mark.parametrize(
    ("metrics", "options", "message"),
    [
        ({}, {"kind": "adapter"}, "`base_model` must name the frozen base of an adapter, got None"),
        ({}, {"kind": "half"}, "`kind` must be one of \\['adapter', 'full'\\], got 'half'"),
        ([], {}, "`metrics` must be an object, got list"),
        ({"run": 3}, {}, "`run` of `metrics` must be an object, got int"),
        ({"retrieval": {"n": 3}}, {}, "`retrieval` of `metrics` .* without \\['protocol'"),
    ],
)
def test_bad_input_is_named(metrics, options, message):
    with pytest.raises(ValueError, match=message):
        build_card(metrics, **options)


def test_command_writes_a_card_that_the_hub_library_reads(tmp_path, metrics):
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    main(["--metrics", str(tmp_path / "metrics.json"), "--output", str(tmp_path / "hub" / "README.md")])
    card = ModelCard.load(tmp_path / "hub" / "README.md")
    assert len(card.data.eval_results) == 6


def test_command_adds_what_the_commands_of_eval_wrote(tmp_path, metrics):
    retrieval = metrics.pop("retrieval")
    for name, content in (("metrics", metrics), ("retrieval", retrieval)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    command = ["--metrics", str(tmp_path / "metrics.json"), "--output", str(tmp_path / "README.md")]
    main(command)
    without = (tmp_path / "README.md").read_text(encoding="utf-8")
    main([*command, "--retrieval", str(tmp_path / "retrieval.json")])
    assert "text to image R@1" in (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "text to image R@1" not in without


def test_card_of_a_classifying_run_that_was_not_measured_is_a_classifiers():
    card = build_card({"run": {"recipe": {"stage": "classify"}}})
    assert card.data.pipeline_tag == "image-classification" and "AutoModelForImageClassification" in str(card)
    assert "### Classification\n\nNot measured.\n" in str(card) and "zero-shot" not in str(card).lower()


def test_command_adds_what_the_search_for_overlap_wrote(tmp_path):
    (tmp_path / "metrics.json").write_text("{}")
    (tmp_path / "overlap.json").write_text(json.dumps({"benchmark": "rsna", "benchmark_images": 4}))
    command = ["--metrics", str(tmp_path / "metrics.json"), "--output", str(tmp_path / "README.md")]
    main([*command, "--overlap", str(tmp_path / "overlap.json")])
    assert "| benchmark | rsna |" in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_command_does_not_write_over_a_folder(tmp_path, capsys):
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(SystemExit) as stop:
        main(["--metrics", str(tmp_path / "metrics.json"), "--output", str(tmp_path)])
    assert stop.value.code == 2 and "Is a directory" in capsys.readouterr().err


def test_command_names_a_missing_metrics_file(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--metrics", "nowhere.json", "--output", str(tmp_path / "README.md")])
    assert stop.value.code == 2 and "nowhere.json" in capsys.readouterr().err


def test_overlap_with_a_benchmark_is_told_without_naming_files(metrics):
    assert "Overlap with a benchmark: not measured." in str(build_card({}))
    found = {"count": 2, "share": 0.5, "examples": ["secret.png = s0: current_frontal"]}
    card = str(build_card(metrics | {"overlap": {"benchmark": "rsna", "benchmark_images": 4, "exact_images": found}}))
    assert "| exact_images: count | 2 |" in card and "| benchmark | rsna |" in card
    assert "secret.png" not in card
