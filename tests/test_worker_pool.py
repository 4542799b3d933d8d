import os
import pickle
import signal
import time
from pathlib import Path

import psutil
import pytest
from prepared_processes import FORK_SERVER

from processing.engine import worker_pool
from processing.engine.worker_pool import WorkerDiedError, WorkerPool


def die(status: int) -> None:
    os._exit(status)


def signal_oneself(number: int) -> int:
    os.kill(os.getpid(), number)
    return os.getpid()


def answer_with_a_function():
    return lambda: None


def refuse(number: int):
    raise ValueError(f"not {number}")


class TwoPartError(Exception):
    """Cannot be made again from its message, as pickle would."""

    def __init__(self, name: str, number: int):
        super().__init__(f"{name} {number}")


def refuse_in_two_parts():
    raise TwoPartError("part", 2)


def fail_to_read():
    raise EOFError("no such thing here")


class FailsWhereItIsRead:
    def __reduce__(self):
        return fail_to_read, ()


def give_what_fails_where_it_is_read():
    return FailsWhereItIsRead()


def large_answer(size: int) -> bytes:
    time.sleep(0.2)
    return bytes(size)


def work_on(begun: Path) -> None:
    begun.touch()
    time.sleep(40)


def hold_workers(connection, begun: Path) -> None:
    """In a process that will be killed: one worker will send more than a pipe holds, one waits, the last works on."""
    with WorkerPool(3) as pool:
        pool.submit(large_answer, 10_000_000)
        pool.submit(pow, 2, 3)
        pool.submit(work_on, begun)
        while not begun.exists():
            time.sleep(0.01)
        connection.send([child.pid for child in psutil.Process().children()])
        time.sleep(600)


def test_answers_of_all_processes_come_in_the_order_of_the_tasks():
    with WorkerPool(3) as pool:
        answers = [pool.submit(pow, 2, number) for number in range(50)]
        assert [answer.result() for answer in answers] == [2**number for number in range(50)]
        workers = {worker.result() for worker in [pool.submit(os.getpid) for _ in range(50)]}
    assert os.getpid() not in workers and len(workers) <= 3


def test_the_death_of_a_worker_costs_its_own_task_alone():
    with WorkerPool(3) as pool:
        tasks = [pool.submit(die, 7) if number % 3 == 1 else pool.submit(large_answer, 3) for number in range(9)]
        for number, task in enumerate(tasks):
            if number % 3 == 1:
                with pytest.raises(WorkerDiedError, match="died with exit code 7"):
                    task.result()
            else:
                assert task.result() == bytes(3)


def test_what_a_task_raises_is_raised_with_the_lines_of_the_worker():
    with WorkerPool(1) as pool, pytest.raises(ValueError, match="not 5") as error:
        pool.submit(refuse, 5).result()
    assert "in refuse" in error.value.__notes__[0]


def test_an_answer_or_a_task_that_cannot_be_sent_is_an_error_and_the_worker_goes_on():
    with WorkerPool(1) as pool:
        worker = pool.submit(os.getpid).result()
        for task in (pool.submit(answer_with_a_function), pool.submit(lambda: None)):
            with pytest.raises((AttributeError, TypeError, pickle.PicklingError)):
                task.result()
        assert pool.submit(os.getpid).result() == worker


def test_an_answer_or_a_task_that_cannot_be_read_is_an_error_and_no_death():
    with WorkerPool(1) as pool:
        worker = pool.submit(os.getpid).result()
        for task in (pool.submit(give_what_fails_where_it_is_read), pool.submit(repr, FailsWhereItIsRead())):
            with pytest.raises(EOFError, match="no such thing here"):
                task.result()
        assert pool.submit(os.getpid).result() == worker


def test_an_error_that_cannot_be_sent_comes_as_its_lines():
    with WorkerPool(1) as pool, pytest.raises(RuntimeError, match="TwoPartError: part 2"):
        pool.submit(refuse_in_two_parts).result()


def test_exit_codes_are_told_though_other_workers_start_meanwhile():
    with WorkerPool(4) as pool:
        for task in [pool.submit(die, 7) for _ in range(40)]:
            with pytest.raises(WorkerDiedError, match="died with exit code 7"):
                task.result()


def test_tasks_that_have_not_begun_are_dropped_at_the_end():
    with WorkerPool(1) as pool:
        tasks = [pool.submit(large_answer, 1) for _ in range(4)]
        assert tasks[0].result() == bytes(1)
    assert tasks[-1].cancelled()


def test_an_error_in_the_block_does_not_wait_for_a_task_that_hangs():
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt), WorkerPool(2) as pool:
        task = pool.submit(time.sleep, 600)
        assert pool.submit(pow, 2, 3).result() == 8
        raise KeyboardInterrupt
    assert time.monotonic() - start < 60
    assert isinstance(task.exception(), ChildProcessError)  # it died at the task, or before that at its start


def test_ctrl_c_is_left_to_the_parent_and_sigterm_ends_a_worker_though_the_parent_answers_it():
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        with WorkerPool(1) as pool:
            assert pool.submit(signal_oneself, signal.SIGINT).result() == pool.submit(os.getpid).result()
            with pytest.raises(WorkerDiedError, match=f"exit code -{signal.SIGTERM:d}"):
                pool.submit(signal_oneself, signal.SIGTERM).result()
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_worker_that_is_stuck_at_its_start_is_replaced(monkeypatch, tmp_path):
    serve = worker_pool._serve

    def serve_the_second_time(*arguments):
        if not (tmp_path / "started").exists():
            (tmp_path / "started").touch()
            time.sleep(600)
        serve(*arguments)

    monkeypatch.setattr(worker_pool, "_serve", serve_the_second_time)
    monkeypatch.setattr(worker_pool, "START_LIMIT", 2.0)
    with WorkerPool(1) as pool:
        assert pool.submit(pow, 2, 3).result() == 8


def test_a_worker_that_cannot_start_is_an_error_and_no_death_of_a_task(monkeypatch):
    monkeypatch.setattr(worker_pool, "_serve", lambda *arguments: die(3))
    with WorkerPool(1) as pool, pytest.raises(ChildProcessError, match="does not start; its exit code is 3") as error:
        pool.submit(pow, 2, 3).result()
    assert not isinstance(error.value, WorkerDiedError)


def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    ours, theirs = FORK_SERVER.Pipe()
    parent = FORK_SERVER.Process(target=hold_workers, args=(theirs, tmp_path / "begun"))
    parent.start()
    workers = [psutil.Process(pid) for pid in ours.recv()]
    parent.kill()
    parent.join()
    deadline = time.monotonic() + 20
    while len(psutil.wait_procs(workers, timeout=0.1)[1]) > 1:
        assert time.monotonic() < deadline
    (at_work,) = psutil.wait_procs(workers, timeout=0.1)[1]
    at_work.kill()
