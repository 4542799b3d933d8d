import resource
import shutil

import pyarrow.parquet as pq
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from trained import (
    arguments_of,
    finish,
    losses_of,
    settings_of,
    start_training,
    train,
    train_by,
    wait_for_step,
    write_recipe,
)

import train_accelerate
from processing.engine.shards import find_shards
from recipes.recipe import RecipeError, read_recipe
from training.batches import iterate_batches
from training.build import build_run
from training.checkpoints import find_checkpoint, resume, save_checkpoint
from training.weights import trained_weights


LONG = {"num_epochs": 4, "schedule_epochs": 4, "checkpoint_every": 2}


def build(work, name, **settings):
    AcceleratorState._reset_state(reset_partial_state=True)
    return build_run(arguments_of(work, "alta", name, **settings))


@pytest.mark.parametrize(
    "settings",
    [
        {"batch_size": 6, "gradient_accumulation_steps": 2, "num_workers": 2},
        {"batch_size": 6, "micro_batch_size": 3, "streaming": True, "num_workers": 2},
    ],
    ids=["prepared, accumulated", "streamed, cached"],
)
def test_a_run_killed_and_resumed_has_the_losses_of_one_never_stopped(mrm_run, work, tmp_path, settings):
    recipes = write_recipes(work, tmp_path, killed=settings, whole=settings)
    kill_at_step(start_training(recipes["killed"]), tmp_path / "killed", 5)
    for recipe, overrides in ((recipes["killed"], ["resume=latest"]), (recipes["whole"], [])):
        train_by(read_recipe(recipe, overrides))
    assert_went_on(tmp_path / "killed", tmp_path / "whole")


def test_several_processes_killed_and_resumed_have_the_losses_of_a_run_never_stopped(mrm_run, work, tmp_path):
    # Of three: the sum of two does not tell in which order they were added.
    prepared = {"batch_size": 2, "gradient_accumulation_steps": 2}
    streamed = prepared | {"streaming": True, "num_workers": 2}
    recipes = write_recipes(work, tmp_path, whole_1=prepared, killed_1=prepared, whole_2=streamed, killed_2=streamed)
    first = start_recipes(recipes["whole_1"], recipes["whole_2"], recipes["killed_1"])
    kill_at_step(first, tmp_path / "killed_1", 5)
    second = start_recipes(f"{recipes['killed_1']}:resume=latest", recipes["killed_2"])
    kill_at_step(second, tmp_path / "killed_2", 5)
    finish(start_recipes(f"{recipes['killed_2']}:resume=latest"))
    for number in (1, 2):
        assert_went_on(tmp_path / f"killed_{number}", tmp_path / f"whole_{number}")


def write_recipes(work, folder, **settings):
    """Recipes whose runs lie in `folder` under their names."""
    return {
        name: write_recipe(
            folder / f"{name}.yaml", settings_of(work, "alta", **LONG, **own) | {"output_dir": f"{folder}/{name}"}
        )
        for name, own in settings.items()
    }


def start_recipes(*recipes):
    return start_training(*map(str, recipes), num_processes=3, script="tests/run_recipes_in_processes.py")


def kill_at_step(process, run, step):
    wait_for_step(process, run, step)
    process.kill()
    assert len(losses_of(run)) < 8


def assert_went_on(killed, whole):
    rows = losses_of(whole)
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1)) and len(rows) >= 8
    assert losses_of(killed) == rows
    weights = [load_file(run / "adapter" / "adapter_model.safetensors") for run in (killed, whole)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resumed_epoch_gives_every_study_that_is_still_to_come_once(mrm_run, work, streaming, num_workers):
    run = build(work, "order", batch_size=3, streaming=streaming, num_workers=num_workers)
    run.progress.epoch = 1
    epoch = [batch["study_id"] for batch in iterate_batches(run)]
    studies = [study for batch in epoch for study in batch]
    assert len(studies) == len(set(studies)) == 24
    run.progress.epoch_step = 3
    assert [batch["study_id"] for batch in iterate_batches(run)] == epoch[3:]


def test_only_the_last_checkpoints_stay_and_latest_resumes_from_them(mrm_run, work):
    run = train(work, "alta", "kept", checkpoint_every=1, keep_checkpoints=2)
    kept = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert kept == ["step_00000005", "step_00000006"]
    expected = losses_of(run)
    train(work, "alta", "kept", resume="latest")
    assert losses_of(run) == expected


def test_a_run_resumed_between_two_lines_of_the_log_writes_the_same_lines(mrm_run, work):
    run = train(work, "alta", "between", checkpoint_every=2, keep_checkpoints=9, log_every=3)
    expected = losses_of(run)
    train(work, "alta", "between", checkpoint_every=2, log_every=3, resume=f"{run}/checkpoints/step_00000002")
    assert [row["step"] for row in expected] == [3, 6]
    assert losses_of(run) == expected


def test_a_checkpoint_holds_what_trains_and_no_frozen_weight(mrm_run, work):
    run = build(work, "small")
    checkpoint = save_checkpoint(run)
    saved = load_file(checkpoint / "trained.safetensors")
    expected = trained_weights(run.accelerator, run.model)
    assert saved.keys() == expected.keys()
    assert not any("patch_embed" in name for name in saved)
    assert not list(checkpoint.glob("model*.safetensors"))


def test_a_checkpoint_that_was_half_written_is_skipped_with_a_warning(mrm_run, work):
    run = train(work, "alta", "half", checkpoint_every=2, keep_checkpoints=9)
    checkpoints = run / "checkpoints"
    shutil.copytree(checkpoints / "step_00000006", checkpoints / "unfinished")
    with (checkpoints / "step_00000006" / "optimizer.bin").open("r+b") as file:
        file.truncate(100)
    with pytest.warns(UserWarning, match="step_00000006: optimizer.bin has 100 bytes, not"):
        assert find_checkpoint(run) == checkpoints / "step_00000004"
    with pytest.warns(UserWarning, match="unfinished: the run ended while it was written"):
        train(work, "alta", "half", checkpoint_every=2, resume="latest")
    assert find_checkpoint(run) == checkpoints / "step_00000006"


def test_a_broken_checkpoint_that_was_named_is_an_error(mrm_run, work):
    run = train(work, "alta", "broken", checkpoint_every=6)
    checkpoint = run / "checkpoints" / "step_00000006"
    (checkpoint / "trained.safetensors").unlink()
    with pytest.raises(ValueError, match="must be a whole checkpoint, got .*: trained.safetensors is missing"):
        train(work, "alta", "broken", resume=str(checkpoint))


@pytest.fixture(scope="module")
def saved(mrm_run, work):
    """The run folder of a run with one checkpoint."""
    return train(work, "alta", "other", checkpoint_every=6)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"batch_size": 4}, "studies_per_step"),
        ({"batch_size": 4, "gradient_accumulation_steps": 2}, "studies_per_contrast"),
        ({"seed": 1}, "seed"),
        ({"base_learning_rate": 0.01}, "base_learning_rate"),
        ({"warmup_epochs": 0}, "warmup_epochs"),
    ],
)
def test_a_checkpoint_of_another_run_is_an_error_that_names_the_difference(saved, work, settings, name):
    with pytest.raises(ValueError, match=f"must be a checkpoint of the same run, got .*, whose `{name}` was"):
        train(work, "alta", "other", resume=f"{saved}/checkpoints/step_00000006", **settings)


def test_a_checkpoint_of_as_many_other_records_is_an_error(saved, work, tmp_path):
    (tmp_path / "records" / "data").mkdir(parents=True)
    for shard in find_shards(work / "records" / "data"):
        rows = pq.read_table(shard)
        order = list(range(1, len(rows))) + [0] if shard.name.startswith("train") else list(range(len(rows)))
        pq.write_table(rows.take(order), tmp_path / "records" / "data" / shard.name)
    with pytest.raises(ValueError, match="whose `records_fingerprint` was"):
        train(work, "alta", "other", records=f"{tmp_path}/records", resume="latest")


def test_the_last_step_has_a_checkpoint_before_the_export_which_may_fail(mrm_run, work, monkeypatch):
    def fail(*arguments):
        raise OSError("No space left on device")

    settings = {"checkpoint_every": 4, "keep_checkpoints": 9}
    with monkeypatch.context() as patched:
        patched.setattr(train_accelerate, "export_run", fail)
        with pytest.raises(OSError, match="No space left"):
            train(work, "alta", "unexported", **settings)
    assert find_checkpoint(work / "unexported").name == "step_00000006"
    run = train(work, "alta", "unexported", **settings, resume="latest")
    assert len(losses_of(run)) == 6 and (run / "metrics.json").exists()


def test_a_run_does_not_start_anew_over_the_checkpoints_of_another(saved, work):
    with pytest.raises(ValueError, match="`resume` must be 'latest' or a checkpoint where there are some, got none"):
        train(work, "alta", "other")
    assert find_checkpoint(saved).name == "step_00000006"


def test_a_run_that_goes_back_goes_on_from_there_and_keeps_what_it_writes_then(mrm_run, work):
    run = train(work, "alta", "back", checkpoint_every=1, keep_checkpoints=9)
    expected = losses_of(run)
    built = build(work, "back", resume=f"{run}/checkpoints/step_00000002", keep_checkpoints=2)
    resume(built)
    assert find_checkpoint(run).name == "step_00000002"
    built.progress.step = 3
    save_checkpoint(built)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step_00000002", "step_00000003"]
    train(work, "alta", "back", resume=f"{run}/checkpoints/step_00000002")
    assert losses_of(run) == expected


def test_a_stream_goes_on_with_as_many_workers_and_the_same_portions_only(mrm_run, work):
    run = train(work, "alta", "stream", checkpoint_every=6, streaming=True)
    checkpoint, readers = f"{run}/checkpoints/step_00000006", "`processes, workers and batch of the stream`"
    with pytest.raises(ValueError, match=rf"{readers} was \[1, 0, 8\] and is \[1, 1, 8\] now"):
        train(work, "alta", "stream", streaming=True, num_workers=1, resume=checkpoint)
    with pytest.raises(ValueError, match=rf"{readers} was \[1, 0, 8\] and is \[1, 0, 4\] now"):
        train(work, "alta", "stream", streaming=True, micro_batch_size=4, resume=checkpoint)


def test_resume_from_a_folder_that_is_not_there_is_an_error(mrm_run, work):
    with pytest.raises(RecipeError, match="`resume` must be 'latest' or a checkpoint folder, got nowhere"):
        train(work, "alta", "nothing", resume="nowhere")


def test_a_full_disk_costs_the_new_checkpoint_and_leaves_the_one_before(mrm_run, work):
    run = build(work, "full_disk", keep_checkpoints=1)
    run.progress.step = 1
    first = save_checkpoint(run)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    run.progress.step = 2
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))
        with pytest.warns(UserWarning, match="No checkpoint at step 2, those before are untouched"):
            assert save_checkpoint(run) is None
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert [path.name for path in first.parent.iterdir()] == ["step_00000001"]
    assert find_checkpoint(run.args.output_dir) == first
