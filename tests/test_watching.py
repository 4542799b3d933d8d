import json
from types import SimpleNamespace

import accelerate.tracking
import pytest
import torch
from accelerate.state import AcceleratorState
from peft import get_peft_model
from trained import arguments_of, train

from modeling_alta import AltaAdapterConfig
from training import best, watching
from training.build import build_accelerator
from training.watching import TRAINING_LOG, VALIDATION_LOG, adapter_norm, read_log


PROMPTS = "eval/prompts/covid_cxr.json"


@pytest.fixture(scope="module")
def watched(mrm_run, work):
    settings = {"validate_every": 2, "validation_prompts": PROMPTS, "log_with": "tensorboard", "num_epochs": 1}
    return train(work, "alta", "watched", **settings)


def test_a_line_of_the_log_tells_losses_rates_norms_scales_speed_memory_and_waiting(watched):
    row = read_log(watched / TRAINING_LOG)[0]
    losses = {"global_contrastive_loss", "local_contrastive_loss", "image_reconstruction_loss", "masked_report_loss"}
    scales = {"global_scale", "local_attention_scale", "local_pooling_scale", "local_contrast_scale"}
    others = {"step", "epoch", "loss", "learning_rate", "gradient_norm", "adapter_norm"}
    assert row.keys() == losses | scales | others | {"studies_per_second", "memory_gib", "data_wait_share"}
    assert row["loss"] == pytest.approx(sum(row[name] for name in losses), rel=1e-6)
    assert row["global_scale"] == pytest.approx(1 / 0.07)
    assert 0 < row["data_wait_share"] < 1 and row["memory_gib"] > 0 and row["studies_per_second"] > 0


def test_tensorboard_gets_every_figure(watched):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(watched / "tracking")).Reload()
    rows = read_log(watched / TRAINING_LOG)
    for name in rows[0].keys() - {"step", "epoch"}:
        assert [event.value for event in events.Scalars(name)] == pytest.approx([row[name] for row in rows])
    last = read_log(watched / VALIDATION_LOG)[-1]
    for name in last.keys() - {"step", "epoch"}:
        assert events.Scalars(f"validation/{name}")[-1].value == pytest.approx(last[name])


def test_validation_gives_retrieval_and_zero_shot_before_training_every_n_steps_and_at_the_end(watched):
    rows = read_log(watched / VALIDATION_LOG)
    assert [row["step"] for row in rows] == [0, 2, 3]
    assert {"text_to_image_recall_at_1", "image_to_text_median_rank", "zero_shot_macro_auroc"} <= rows[0].keys()


def test_a_run_that_goes_on_keeps_the_figures_from_before_training_and_its_last_line(mrm_run, work):
    settings = {"validate_every": 2, "checkpoint_every": 3, "num_epochs": 1}
    run = train(work, "alta", "goes_on", **settings)
    expected = [read_log(run / name) for name in (TRAINING_LOG, VALIDATION_LOG)]
    last = json.loads((run / "metrics.json").read_text())["training"]
    with (run / TRAINING_LOG).open("a") as file:
        file.write('{"step": 4, "lo')  # the line that was being written when the run was killed
    train(work, "alta", "goes_on", **settings, resume="latest")
    assert [read_log(run / name) for name in (TRAINING_LOG, VALIDATION_LOG)] == expected
    assert json.loads((run / "metrics.json").read_text())["training"] == last != {}


def test_a_full_disk_costs_lines_of_the_log_and_the_best_weights_but_not_the_run(mrm_run, work, monkeypatch):
    def full(*arguments, **keywords):
        raise OSError("No space left on device")

    monkeypatch.setattr(best, "save_weights", full)
    monkeypatch.setattr(watching, "json", SimpleNamespace(dumps=full, loads=json.loads))
    with pytest.warns(UserWarning) as warned:
        run = train(work, "alta", "full_disk_log", validate_every=2, num_epochs=1)
    told = " ".join(str(warning.message) for warning in warned)
    assert "No line of training_log.jsonl at step 1: No space left" in told
    assert "The best weights, of step 2, could not be kept: OSError: No space left" in told
    assert (run / "full").is_dir() and not (run / "best" / "full").exists()


def test_a_tracker_that_fails_gets_no_more_and_ends_no_run(mrm_run, work, monkeypatch):
    def fail(*arguments, **keywords):
        raise OSError("No space left on device")

    monkeypatch.setattr(accelerate.tracking.TensorBoardTracker, "log", fail)
    monkeypatch.setattr(accelerate.tracking.TensorBoardTracker, "finish", fail)
    with pytest.warns(UserWarning) as warned:
        run = train(work, "alta", "untracked", log_with="tensorboard", num_epochs=1)
    told = [str(warning.message) for warning in warned if "racker" in str(warning.message)]
    assert told == [
        "The tracker gets nothing more, from step 1 on: OSError: No space left on device.",
        "The tracker may lack its last lines: OSError: No space left on device.",
    ]
    assert len(read_log(run / TRAINING_LOG)) == 3 and (run / "metrics.json").exists()


def test_several_trackers_are_named_with_commas_and_each_must_be_there(work, monkeypatch):
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(ImportError, match="pip install wandb"):
        build_accelerator(arguments_of(work, "mrm", log_with="tensorboard,wandb"))
    AcceleratorState._reset_state(reset_partial_state=True)


def test_adapter_norm_counts_what_peft_added_alone(tiny_base):
    assert adapter_norm(tiny_base) is None
    model = get_peft_model(tiny_base, AltaAdapterConfig())
    added = [p for name, p in model.named_parameters() if "alta_adapter_" in name]
    with torch.no_grad():
        for parameter in added:
            parameter.fill_(0.5)
    assert adapter_norm(model) == pytest.approx(0.5 * sum(p.numel() for p in added) ** 0.5)


@pytest.mark.parametrize("tracker", ["tensorboard", "wandb"])
def test_a_missing_tracker_package_is_an_error_not_a_warning(work, monkeypatch, tracker):
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setattr(accelerate.tracking, "_available_trackers", [])
    with pytest.raises(ImportError, match=f"pip install {tracker}"):
        build_accelerator(arguments_of(work, "mrm", log_with=tracker))
    AcceleratorState._reset_state(reset_partial_state=True)
