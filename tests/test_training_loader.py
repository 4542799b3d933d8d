import multiprocessing
import os
import resource
import signal
import time

import pytest
import torch
from test_training_batch import TOKENIZER, make_record, make_stream, make_studies
from tiny import make_config

from processing.batches import training_loader
from processing.batches.augmentation import StudyTransform
from processing.batches.batch_order import BatchOrder
from processing.batches.training_batch import AltaCollator, TrainingStudies
from processing.batches.training_loader import DeadWorkerError, make_training_loader


NAMES = [f"s{index}" for index in range(21)]


def make_loader(studies, num_workers, **arguments):
    order = BatchOrder(len(studies), 2, 0, row_groups=studies.row_groups, num_workers=num_workers)
    return make_training_loader(studies, order, AltaCollator(TOKENIZER, make_config()), num_workers, **arguments)


@pytest.fixture
def stream(tmp_path):
    records = make_stream(tmp_path, *(make_record(name, ["current_frontal"]) for name in NAMES))
    return TrainingStudies(records, StudyTransform(32, 64))


def test_batches_do_not_depend_on_the_number_of_workers():
    studies = make_studies(*(make_record(name, ["current_frontal"]) for name in NAMES))
    studies.set_epoch(3)
    expected = list(make_loader(studies, 0))
    batches = list(make_loader(studies, 2))
    assert [batch["study_id"] for batch in batches] == [batch["study_id"] for batch in expected]
    for batch, other in zip(batches, expected, strict=True):
        for name, value in batch.items():
            assert torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name]


def test_streamed_batches_go_on_from_any_place_with_workers(stream):
    loader = make_loader(stream, 2)
    whole = list(loader)
    assert len(whole) == 10 and len({name for batch in whole for name in batch["study_id"]}) == 20
    for batch in (3, 4, 10):
        loader.batch_sampler.set_place(0, batch)
        rest = list(loader)
        assert [b["study_id"] for b in rest] == [b["study_id"] for b in whole[batch:]]
        assert all(torch.equal(b["noise"], w["noise"]) for b, w in zip(rest, whole[batch:], strict=True))


def test_a_killed_worker_is_an_error_and_a_new_iterator_goes_on_with_the_missing_batches(stream):
    loader = make_loader(stream, 2, timeout=60)
    whole = [batch["study_id"] for batch in loader]
    batches, done = iter(loader), []
    done.append(next(batches)["study_id"])
    worker = multiprocessing.active_children()[0]
    worker.kill()
    os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)  # no error here, where a training step would be
    with pytest.raises(DeadWorkerError, match=r"DataLoader worker .*is killed by signal"):
        done.extend(batch["study_id"] for batch in batches)
    loader.batch_sampler.set_place(0, len(done))
    assert done + [batch["study_id"] for batch in loader] == whole


def test_a_worker_that_dies_while_it_hands_over_a_batch_is_a_dead_worker(stream, monkeypatch):
    batches = iter(make_loader(stream, 1, timeout=60))
    next(batches)
    (worker,) = multiprocessing.active_children()
    time.sleep(1)  # the next batch is announced, and its tensors are still to be fetched from the worker
    worker.kill()
    os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)
    # As if it died only now: neither a signal nor the system's list of processes tells of it yet.
    monkeypatch.setattr(training_loader.WATCH, "raise_if_dead", lambda *arguments: None)
    monkeypatch.setattr(multiprocessing.process.BaseProcess, "is_alive", lambda self: True)
    with pytest.raises(DeadWorkerError, match="A data worker ended while it handed over a batch: .*refused") as error:
        next(batches)
    assert isinstance(error.value.__cause__, OSError)


@pytest.mark.parametrize("kind", [ConnectionResetError, FileNotFoundError])
def test_a_disk_or_net_that_fails_the_studies_in_a_worker_is_no_dead_worker(stream, monkeypatch, kind):
    def fail(*arguments):
        raise kind("of the disk")

    monkeypatch.setattr(AltaCollator, "__call__", fail)
    with pytest.raises(kind, match="Caught .* in DataLoader worker process 0"):
        next(iter(make_loader(stream, 1)))


def test_a_worker_that_hangs_is_an_error_after_the_timeout(stream, monkeypatch):
    monkeypatch.setattr(AltaCollator, "__call__", lambda *args: signal.pause())
    with pytest.raises(DeadWorkerError, match="DataLoader timed out after 1 seconds"):
        next(iter(make_loader(stream, 1, timeout=1)))


def test_an_error_of_the_collator_in_a_worker_is_no_dead_worker(stream, monkeypatch):
    monkeypatch.setattr(AltaCollator, "__call__", lambda *args: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="inconsistent tensor size") as caught:
        next(iter(make_loader(stream, 1)))
    assert not isinstance(caught.value, DeadWorkerError)


def test_an_order_that_does_not_fit_is_an_error(stream):
    with pytest.raises(ValueError, match="`order` must be of the 21 `studies`, got one of 20"):
        make_training_loader(stream, BatchOrder(20, 2, 0), None)
    order = BatchOrder(21, 2, 0, row_groups=stream.row_groups, num_workers=2)
    with pytest.raises(ValueError, match="`num_workers` must be the 2 of `order`, got 0"):
        make_training_loader(stream, order, None)


@pytest.mark.parametrize(("batches_at_once", "ahead"), [(1, 2), (2, 2), (7, 5)])
def test_workers_have_the_batches_of_a_step_ready_that_are_taken_together(stream, batches_at_once, ahead):
    assert make_loader(stream, 2, batches_at_once=batches_at_once).prefetch_factor == ahead


def test_workers_may_open_as_many_files_as_the_system_allows(stream):
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limits[1] // 2, limits[1]))
        make_loader(stream, 1)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (limits[1], limits[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
