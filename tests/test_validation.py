import json
from types import SimpleNamespace

import pytest
import torch
from datasets import Image
from safetensors.torch import load_file
from trained import arguments_of, train

from modeling_alta import AltaForMaskedRecordModeling, AltaModel, AltaProcessor
from modeling_alta.configuration_alta import VIEW_NAMES
from processing.records.study_records import load_study_records
from training import stage as stages
from training.alta_stage import AltaStage
from training.mrm_stage import MrmStage
from training.shares import share_of
from training.watching import VALIDATION_LOG, read_log


NO_IMAGE = {"bytes": b"no image", "path": None}


def test_the_best_weights_are_kept_and_exported_beside_the_last(mrm_run, work, monkeypatch):
    figures = iter([1.0, 0.2, 0.9, 0.4])  # the first before training, which is no result of it
    monkeypatch.setattr(AltaStage, "validate", lambda self, run: {"text_to_image_recall_at_5": next(figures)})
    run = train(work, "alta", "best", validate_every=2, checkpoint_every=2, keep_checkpoints=9)
    best = json.loads((run / "best" / "validation.json").read_text())
    assert (best["step"], best["value"]) == (4, 0.9)
    at_step_4 = load_file(run / "checkpoints" / "step_00000004" / "trained.safetensors")
    kept = load_file(run / "best" / "trained.safetensors")
    assert all(torch.equal(kept[name], at_step_4[name]) for name in at_step_4)
    exported = AltaModel.from_pretrained(run / "best" / "full").state_dict()
    last = AltaModel.from_pretrained(run / "full").state_dict()
    name = "base_model.model.vision_model.norm.modules_to_save.default.weight"
    assert torch.equal(exported["vision_model.norm.weight"], at_step_4[name])
    assert not torch.equal(last["vision_model.norm.weight"], at_step_4[name])


def test_of_a_median_rank_less_is_better(mrm_run, work, monkeypatch):
    figures = iter([90.0, 9.0, 4.0, 6.0])
    monkeypatch.setattr(AltaStage, "validate", lambda self, run: {"text_to_image_median_rank": next(figures)})
    run = train(work, "alta", "best_rank", validate_every=2, best_metric="text_to_image_median_rank")
    assert json.loads((run / "best" / "validation.json").read_text())["step"] == 4


@pytest.fixture
def validated(mrm_run, work, monkeypatch, request):
    """A run of six steps whose best is that of step 2 by recall, at first, and of step 4 by rank."""
    recalls, ranks = {0: 0.1, 2: 0.8, 4: 0.3, 6: 0.5}, {0: 9.0, 2: 7.0, 4: 2.0, 6: 3.0}
    figures = {"text_to_image_recall_at_5": recalls, "text_to_image_median_rank": ranks}

    def validate(stage, run):
        return {name: values[run.progress.step] for name, values in figures.items()}

    monkeypatch.setattr(AltaStage, "validate", validate)
    settings = {"validate_every": 2, "checkpoint_every": 2, "keep_checkpoints": 9}
    name = f"validated_{request.node.name[-20:]}"
    return train(work, "alta", name, **settings), settings, recalls


def best_of(run):
    return json.loads((run / "metrics.json").read_text())["validation"]


def test_the_best_comes_along_to_another_folder_with_the_checkpoint(validated, work):
    run, settings, recalls = validated
    other = train(work, "alta", "elsewhere", **settings, resume=f"{run}/checkpoints/step_00000004")
    assert best_of(other) == best_of(run) and best_of(run)["step"] == 2
    weights, expected = (load_file(folder / "best" / "full" / "model.safetensors") for folder in (other, run))
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_a_run_that_goes_back_has_the_best_that_it_had_there(validated, work):
    run, settings, recalls = validated
    expected = load_file(run / "best" / "trained.safetensors")
    recalls[4] = 0.9
    train(work, "alta", run.name, **settings, resume=f"{run}/checkpoints/step_00000002")
    assert best_of(run)["step"] == 4
    recalls[4] = 0.2  # the way that led there is given up
    train(work, "alta", run.name, **settings, resume=f"{run}/checkpoints/step_00000002")
    kept = load_file(run / "best" / "trained.safetensors")
    assert best_of(run)["step"] == 2 and all(torch.equal(kept[name], expected[name]) for name in expected)


def test_a_run_that_goes_on_by_another_figure_begins_to_choose_anew(validated, work):
    run, settings, _ = validated
    by_rank = settings | {"best_metric": "text_to_image_median_rank"}
    train(work, "alta", run.name, **by_rank, resume=f"{run}/checkpoints/step_00000002")
    assert (best_of(run)["step"], best_of(run)["value"]) == (4, 2.0)


@pytest.mark.parametrize("stage", ["alta", "classify"])
def test_an_unreadable_image_of_the_validation_is_an_error_that_names_its_study(alta_run, work, monkeypatch, stage):
    records = load_study_records(work / "records", "validation")
    for view in VIEW_NAMES:
        records = records.cast_column(view, Image(decode=False))
    second = records["study_id"][1]
    broken = records.map(lambda row: row | ({"current_frontal": NO_IMAGE} if row["study_id"] == second else {}))
    monkeypatch.setattr(stages, "load_study_records", lambda name, split: broken)
    start = {"alta": {}, "classify": {"base": f"{alta_run}/full"}}[stage]
    with pytest.raises(ValueError, match=f"{second}: `current_frontal` cannot be read"):
        train(work, stage, f"unreadable_{stage}", validate_every=100, streaming=True, **start)


def test_watching_does_not_change_what_is_learnt(mrm_run, work):
    for stage in ("mrm", "alta"):
        plain = train(work, stage, f"plain_{stage}", num_epochs=1)
        watched = train(work, stage, f"watched_{stage}", num_epochs=1, validate_every=1)
        folder = "model/model.safetensors" if stage == "mrm" else "adapter/adapter_model.safetensors"
        expected, got = load_file(plain / folder), load_file(watched / folder)
        assert all(torch.equal(got[name], expected[name]) for name in expected)


def test_the_mrm_stage_is_judged_by_its_losses_and_less_is_better(work):
    run = train(work, "mrm", "judged", validate_every=2)
    rows = read_log(run / VALIDATION_LOG)
    best = json.loads((run / "best" / "validation.json").read_text())
    assert best["value"] == min(row["loss"] for row in rows[1:])
    assert rows[0]["loss"] == pytest.approx(rows[0]["image_reconstruction_loss"] + rows[0]["masked_report_loss"])
    AltaForMaskedRecordModeling.from_pretrained(run / "best" / "model")


@pytest.mark.parametrize("num_processes", [1, 2, 3, 4, 7])
def test_processes_share_items_evenly_and_in_their_order(num_processes):
    for number in range(1, 40):
        items = list(range(number))
        shares = [share_of(items, num_processes, index) for index in range(num_processes)]
        assert len({len(share) for share in shares}) == 1
        assert sum(shares, [])[:number] == items


def test_a_metric_that_the_stage_does_not_give_is_an_error_before_training_that_lists_those_it_gives(mrm_run, work):
    with pytest.raises(ValueError, match=r"`best_metric` must be one of \['image_to_text_.*, got 'accuracy'"):
        train(work, "alta", "no_metric", validate_every=100, best_metric="accuracy")


def test_a_validation_split_without_reports_is_an_error(mrm_run, work):
    with pytest.raises(ValueError, match="`split` must be one of"):
        train(work, "alta", "no_split", validate_every=100, validation_split="dev")


def test_studies_to_validate_on_are_the_first_that_could_train(mrm_run, work, monkeypatch):
    records = load_study_records(work / "records", "train")
    reports = [None if index in (0, 2) else report for index, report in enumerate(records["report"])]
    feature = records.features["report"]
    records = records.remove_columns("report").add_column("report", reports, feature=feature)
    run = SimpleNamespace(
        args=arguments_of(work, "mrm", validation_studies=2),
        stage=MrmStage(),
        unwrapped=AltaForMaskedRecordModeling.from_pretrained(mrm_run / "model"),
        processor=AltaProcessor.from_pretrained(mrm_run / "model"),
    )
    monkeypatch.setattr(stages, "load_study_records", lambda name, split: records)
    assert list(stages.validation_records(run)["study_id"]) == [records["study_id"][index] for index in (1, 3)]
    monkeypatch.setattr(stages, "load_study_records", lambda name, split: records.select([0, 2]))
    with pytest.raises(ValueError, match="`validation_split` 'validation' cannot be validated on: .*'no report': 2"):
        stages.validation_records(run)
