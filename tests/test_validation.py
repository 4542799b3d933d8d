import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from trained import arguments_of, train

from modeling_alta import AltaForMaskedRecordModeling, AltaModel, AltaProcessor
from processing.records.study_records import load_study_records
from training import stage as stages
from training.alta_stage import AltaStage
from training.mrm_stage import MrmStage
from training.shares import share_of
from training.watching import VALIDATION_LOG, read_log


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
