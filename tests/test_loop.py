import json
import multiprocessing
import os
import signal
import time

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from prepared_processes import send_signal
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
from modeling_alta import AltaForPreTraining
from processing.engine.shards import find_shards
from recipes.recipe import read_recipe
from training.batches import iterate_batches
from training.build import build_run
from training.checkpoints import find_checkpoint
from training.interruption import StopSignal
from training.loop import check_finite, share
from training.watching import VALIDATION_LOG, read_log


def training_processes(launcher, num_processes: int) -> list[psutil.Process]:
    """The processes that train: the launcher itself, or those below it."""
    root = psutil.Process(launcher.pid)
    return [root] if num_processes == 1 else root.children()


@pytest.mark.parametrize("num_processes", [1, 2])
def test_sigterm_ends_a_run_with_a_checkpoint_and_success_and_it_goes_on_exactly(
    mrm_run, work, tmp_path, num_processes
):
    settings = settings_of(work, "alta", batch_size=8 // num_processes, num_epochs=4, schedule_epochs=4, num_workers=1)
    recipe = write_recipe(tmp_path / "recipe.yaml", settings | {"output_dir": f"{tmp_path}/run"})
    process = start_training(recipe, num_processes=num_processes)
    wait_for_step(process, tmp_path / "run", 2)
    # A scheduler may reach one process before the others: they all stop at the same step. It reaches workers as well.
    trainer = training_processes(process, num_processes)[-1]
    send_signal(signal.SIGTERM, trainer, *trainer.children())
    assert "Stopped by SIGTERM after step" in finish(process)
    assert not (tmp_path / "run" / "metrics.json").exists()
    assert find_checkpoint(tmp_path / "run").name == f"step_{len(losses_of(tmp_path / 'run')):08d}"
    if num_processes == 1:
        train_by(read_recipe(recipe, ["resume=latest"]))
        train_by(read_recipe(recipe, [f"output_dir={tmp_path}/whole"]))
        assert losses_of(tmp_path / "run") == losses_of(tmp_path / "whole")


def test_sigterm_is_answered_before_a_validation_which_comes_when_the_run_goes_on(mrm_run, work, monkeypatch):
    settings = {"validate_every": 2, "num_epochs": 1}
    whole = train(work, "alta", "validated", **settings)
    monkeypatch.setattr(StopSignal, "received", property(lambda self: True, lambda self, value: None), raising=False)
    validations = []
    for _ in range(4):  # one step each, and the end
        train(work, "alta", "answered", **settings, resume="latest")
        validations.append([row["step"] for row in read_log(work / "answered" / VALIDATION_LOG)])
    assert validations == [[0], [0], [0, 2], [0, 2, 3]]
    assert (work / "answered" / "metrics.json").exists()
    assert read_log(work / "answered" / VALIDATION_LOG) == read_log(whole / VALIDATION_LOG)
    assert losses_of(work / "answered") == losses_of(whole)
    checkpoint = f"{work}/answered/checkpoints/step_00000002"  # as if killed after that validation
    train(work, "alta", "answered", **settings, resume=checkpoint)
    assert [row["step"] for row in read_log(work / "answered" / VALIDATION_LOG)] == [0, 2]


@pytest.mark.parametrize("moment", ["build_run", "export_run"])
def test_sigterm_at_the_start_or_the_end_of_a_run_is_no_failure(mrm_run, work, monkeypatch, moment):
    work_on = getattr(train_accelerate, moment)

    def be_told(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return work_on(*arguments)

    monkeypatch.setattr(train_accelerate, moment, be_told)
    run = train(work, "alta", f"told_in_{moment}", num_epochs=1)
    assert (run / "metrics.json").exists() == (moment == "export_run")
    assert len(losses_of(run)) == (1 if moment == "build_run" else 3)
    assert find_checkpoint(run) is None or moment == "build_run"


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_studies(mrm_run, work, monkeypatch):
    monkeypatch.setattr(
        AltaForPreTraining, "_image_loss", lambda *args: torch.tensor(float("nan"), requires_grad=True)
    )
    with pytest.raises(
        FloatingPointError, match=r"'image_reconstruction_loss'.* not finite. Studies of the step: \['p"
    ):
        train(work, "alta", "not_finite")


def test_gradients_that_are_not_finite_stop_the_run_though_the_losses_are():
    figures = {"loss": 1.0, "gradient_norm": float("inf")}
    with pytest.raises(FloatingPointError, match=r"\['gradient_norm'\] not finite. Studies of the step: \['a'\]"):
        check_finite(Accelerator(cpu=True), figures, ["a"])


def test_finite_losses_pass():
    check_finite(Accelerator(cpu=True), {"loss": 1.0, "gradient_norm": 2.0, "waited": float("nan")}, ["a"])


def test_figures_are_shared_in_one_piece():
    assert share(Accelerator(cpu=True), {"loss": torch.tensor(2.0), "stopped": True}) == {"loss": 2.0, "stopped": 1.0}


def test_a_worker_that_dies_is_replaced_and_every_batch_comes_once(mrm_run, work):
    AcceleratorState._reset_state(reset_partial_state=True)
    run = build_run(arguments_of(work, "alta", "death", batch_size=2, num_workers=2))
    expected = [batch["study_id"] for batch in iterate_batches(run)]
    batches = iterate_batches(run)
    got = [next(batches)["study_id"] for _ in range(2)]
    for worker in multiprocessing.active_children():
        worker.kill()
    time.sleep(0.5)
    with pytest.warns(UserWarning, match="New workers go on at batch"):
        got += [batch["study_id"] for batch in batches]
    assert got == expected


def test_workers_that_always_die_end_the_run_with_advice(mrm_run, work):
    AcceleratorState._reset_state(reset_partial_state=True)
    run = build_run(arguments_of(work, "alta", "deaths", num_workers=1))
    run.collator = lambda samples: os.kill(os.getpid(), signal.SIGKILL)
    with (
        pytest.warns(UserWarning, match="New workers go on at batch 0"),
        pytest.raises(RuntimeError, match="Workers died 3 times before batch 0 of epoch 0.*`num_workers` 1"),
    ):
        next(iterate_batches(run))


def test_an_unreadable_record_is_skipped_and_counted_and_every_step_is_full(mrm_run, work, tmp_path):
    records = tmp_path / "records" / "data"
    records.mkdir(parents=True)
    for shard in find_shards(work / "records" / "data"):
        rows = pq.read_table(shard)
        if shard.name.startswith("train"):
            views = rows.column("current_frontal").to_pylist()
            views[3] = {"bytes": b"no image", "path": None}
            place = rows.schema.get_field_index("current_frontal")
            kind = rows.schema.field("current_frontal").type
            rows = rows.set_column(place, rows.schema.field(place), pa.array(views, kind))
        pq.write_table(rows, records / shard.name)
    run = train(work, "alta", "unreadable", records=str(records.parent), num_workers=1)
    assert [row["step"] for row in losses_of(run)] == [1, 2, 3, 4, 5, 6]
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["run"]["skipped_records"] == 2
