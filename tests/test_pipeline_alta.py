"""The zero-shot pipeline of whole studies, in a process that has the package."""

import pytest
import torch
from PIL import Image
from repositories import LABELS, TEMPLATE, make_full, make_processor, plain, rank, write_study
from tiny import make_config
from transformers import AutoModelForZeroShotImageClassification, pipeline

from modeling_alta import AltaModel
from modeling_alta.export_alta import export_full
from modeling_alta.pipeline_alta import AltaStudyPipeline


@pytest.fixture(scope="module")
def model() -> AltaModel:
    return plain(make_full())


@pytest.fixture(scope="module")
def processor():
    return make_processor()


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> dict[str, str]:
    return write_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def classify(model, processor) -> AltaStudyPipeline:
    return AltaStudyPipeline(model=model, processor=processor, device="cpu")


def assert_ranking(given: list[dict], expected: list[dict]) -> None:
    assert [item["label"] for item in given] == [item["label"] for item in expected]
    assert [item["score"] for item in given] == pytest.approx([item["score"] for item in expected], abs=1e-5)


def test_scores_are_the_softmax_of_the_logits_of_the_whole_study(classify, model, processor, study):
    given = classify(study, candidate_labels=LABELS, hypothesis_template=TEMPLATE)
    assert_ranking(given, rank(model, processor, study))
    scores = [item["score"] for item in given]
    assert scores == sorted(scores, reverse=True) and sum(scores) == pytest.approx(1)
    assert given != classify(study["current_frontal"], candidate_labels=LABELS, hypothesis_template=TEMPLATE)


def test_labels_are_the_texts_themselves_by_default(classify, model, processor, study):
    assert_ranking(classify(study, LABELS), rank(model, processor, study, template="{}"))
    assert classify(study, LABELS) != classify(study, LABELS, hypothesis_template=TEMPLATE)


def test_absent_views_may_be_none_or_left_out(classify, study):
    views = {"current_lateral": study["current_lateral"], "prior_frontal": study["prior_frontal"]}
    assert classify(views, LABELS) == classify(views | {"current_frontal": None, "prior_lateral": None}, LABELS)


def test_single_image_is_a_current_frontal(classify, study):
    path = study["current_frontal"]
    expected = classify({"current_frontal": path}, LABELS)
    assert classify(path, LABELS) == classify(Image.open(path), LABELS) == expected


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_batches_of_studies_and_images_give_what_each_gives_alone(classify, study, batch_size):
    some = {name: study[name] for name in ("current_frontal", "prior_lateral")}
    studies = [study, some, study["current_lateral"], study, some]
    given = classify(studies, candidate_labels=LABELS, batch_size=batch_size)
    for answer, one in zip(given, studies, strict=True):
        assert_ranking(answer, classify(one, LABELS))


def test_generator_of_studies_is_answered_lazily(classify, study):
    answers = classify((study for _ in range(2)), candidate_labels=LABELS)
    assert not isinstance(answers, list) and list(answers) == [classify(study, LABELS)] * 2


def test_one_label_has_the_whole_score(classify, study):
    assert classify(study, ["pneumonia"]) == [{"label": "pneumonia", "score": 1.0}]


def test_labels_given_at_the_start_hold_for_every_call(model, processor, study):
    classify = AltaStudyPipeline(model=model, processor=processor, device="cpu", candidate_labels=LABELS)
    assert {item["label"] for item in classify(study)} == set(LABELS)
    assert [item["label"] for item in classify(study, ["effusion"])] == ["effusion"]


def test_bfloat16_model_takes_a_study_and_keeps_its_view_mask(processor, study):
    model = plain(make_full()).to(torch.bfloat16)
    seen = {}
    model.register_forward_pre_hook(lambda _, args, kwargs: seen.update(kwargs), with_kwargs=True)
    AltaStudyPipeline(model=model, processor=processor, device="cpu")(study, LABELS)
    assert (seen["pixel_values"].dtype, seen["view_mask"].dtype) == (torch.bfloat16, torch.bool)


def test_longest_label_is_cut_at_the_limit_of_the_model(classify, study):
    assert len(classify(study, ["left " * 50, "right"])) == 2 and make_config().max_report_length == 32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "`candidate_labels` must be a list of at least one text, got none"),
        ({"candidate_labels": []}, r"`candidate_labels` must be a list of at least one text, got \[\]"),
        ({"candidate_labels": "pneumonia"}, "`candidate_labels` must be a list .* got 'pneumonia'"),
        ({"candidate_labels": LABELS, "hypothesis_template": "there"}, "`hypothesis_template` must hold {}.*'there'"),
    ],
)
def test_labels_and_template_that_cannot_be_used_are_errors(classify, study, arguments, message):
    with pytest.raises(ValueError, match=message):
        classify(study, **arguments)


def test_study_without_a_current_view_or_with_an_unknown_one_is_an_error(classify, study):
    with pytest.raises(ValueError, match="must have a `current_frontal` or a `current_lateral`"):
        classify({"prior_frontal": study["prior_frontal"]}, LABELS)
    with pytest.raises(ValueError, match=r"must have views out of .* got \['frontal'\]"):
        classify({"frontal": study["current_frontal"]}, LABELS)


def test_exported_repository_names_the_pipeline_and_loads_it_by_its_class(model, processor, study, tmp_path):
    export_full(model, processor, tmp_path)
    loaded = AutoModelForZeroShotImageClassification.from_pretrained(tmp_path, trust_remote_code=False)
    assert loaded.config.custom_pipelines["alta-study"]["impl"] == "pipeline_alta.AltaStudyPipeline"
    given = pipeline(
        "alta-study", model=str(tmp_path), pipeline_class=AltaStudyPipeline, trust_remote_code=False, device="cpu"
    )
    assert_ranking(given(study, LABELS), rank(model, processor, study, template="{}"))


def test_task_is_known_by_its_name_once_the_package_is_imported(model, processor, study):
    classify = pipeline("alta-study", model=model, processor=processor, device="cpu")
    assert type(classify) is AltaStudyPipeline
    assert_ranking(classify(study, LABELS), rank(model, processor, study, template="{}"))
