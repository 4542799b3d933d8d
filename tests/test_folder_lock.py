import errno
import os
import signal
import time

import datasets
import pytest
from prepared_processes import FORK_SERVER

from processing.engine import folder_lock
from processing.engine.folder_lock import lock_folder
from processing.engine.worker_pool import WorkerPool


def lock_until_killed(folder):
    """In a process of its own, whose worker outlives it."""
    with lock_folder(folder), WorkerPool(1) as pool:
        pool.submit(os.getpid).result()
        pool.submit(time.sleep, 5)
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)


def test_folder_can_be_locked_once_and_again_after_that(tmp_path):
    for _ in range(2):
        with lock_folder(tmp_path / "new"):
            with (
                pytest.raises(ValueError, match="`output` must be a folder that no other run"),
                lock_folder(tmp_path / "new"),
            ):
                pass
        assert not list((tmp_path / "new").iterdir())


def test_lock_of_a_killed_run_is_free_at_once_though_its_worker_still_works(tmp_path):
    process = FORK_SERVER.Process(target=lock_until_killed, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL and (tmp_path / ".lock").exists()
    with lock_folder(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_lock_that_the_run_before_removed_meanwhile_is_made_anew(tmp_path, monkeypatch):
    flock, taken = folder_lock.fcntl.flock, []

    def flock_after_a_removal(lock, operation):
        if not taken:
            (tmp_path / ".lock").unlink()
        taken.append(lock)
        flock(lock, operation)

    monkeypatch.setattr(folder_lock.fcntl, "flock", flock_after_a_removal)
    with lock_folder(tmp_path):
        assert len(taken) == 2 and os.path.samestat(os.stat(tmp_path / ".lock"), os.fstat(taken[1]))


def test_lock_of_another_run_is_not_removed(tmp_path):
    with lock_folder(tmp_path):
        (tmp_path / ".lock").unlink()
        (tmp_path / ".lock").touch()
    assert (tmp_path / ".lock").exists()


def test_folder_that_cannot_be_locked_is_written_to_with_a_warning(tmp_path, monkeypatch):
    def fail(lock, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(folder_lock.fcntl, "flock", fail)
    with pytest.warns(UserWarning, match="cannot be locked: .*No locks available"), lock_folder(tmp_path):
        pass
    monkeypatch.setattr(folder_lock, "fcntl", None)
    with lock_folder(tmp_path):
        pass


def test_lock_that_a_kill_left_is_no_data_of_a_dataset(tmp_path):
    (tmp_path / "data").mkdir()
    datasets.Dataset.from_dict({"a": [1]}).to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    (tmp_path / ".lock").touch()
    assert datasets.load_dataset_builder(
        str(tmp_path), cache_dir=str(tmp_path / "cache")
    ).config.data_files.keys() == {"train"}
