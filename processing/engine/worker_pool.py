"""Processes that work for this one, each over a pipe of its own, so that the death of one touches nothing of the rest.

The executors of the standard library share queues and locks between their workers, give up all of them when one dies,
and some versions then wait for ever.
"""

import multiprocessing
import pickle
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any


__all__ = ["WorkerDiedError", "WorkerPool"]

# By fork on Linux: workers share the libraries of this process, which else cost memory and time again. They must not
# touch what has threads, such as Arrow or torch's operators.
CONTEXT = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
START_LIMIT = 120.0  # seconds; a spawned worker imports torch, a forked one that needs so long is stuck
STARTS = 3


class WorkerDiedError(RuntimeError):
    """The process that worked at a task was killed, or ended by itself, before it answered."""


class WorkerPool:
    """
    A number of worker processes, and tasks that wait for one; ends them when its `with` block does.

    Args:
        num_proc (`int`): processes.
    """

    def __init__(self, num_proc: int):
        self._idle: queue.SimpleQueue[WorkerProcess] = queue.SimpleQueue()
        for _ in range(num_proc):
            self._idle.put(WorkerProcess())
        self._threads = ThreadPoolExecutor(num_proc)  # each waits for the answer of one process

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future:
        """
        Have a function of a module called in a process; tasks begin in the order in which they come.

        Returns:
            `Future`: of what the function returns or raises, or of a [`WorkerDiedError`].
        """
        return self._threads.submit(self._call, function, arguments)

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Tasks that have not begun are dropped; those that have are waited for."""
        self._threads.shutdown(cancel_futures=True)
        while not self._idle.empty():
            self._idle.get().end()

    def _call(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        worker = self._idle.get()
        try:
            return worker.call(function, arguments)
        except WorkerDiedError:
            worker.end()
            worker = WorkerProcess()
            raise
        finally:
            self._idle.put(worker)


class WorkerProcess:
    """A process that answers one call after the other."""

    # A process that is forked meanwhile would hold the worker's end of the pipe open, and hide its death.
    starting = threading.Lock()

    def __init__(self):
        self._start()

    def call(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """What `function(*arguments)` returns or raises in the process.

        Raises:
            [`WorkerDiedError`]: instead of an answer.
            `RuntimeError`: the process does not start.
        """
        if not self._is_ready:
            self._await_start()
        try:
            self._connection.send((function, arguments))
            succeeded, answer = self._connection.recv()
        except (EOFError, OSError) as error:
            raise WorkerDiedError(f"A worker process died with exit code {self._exit_code()}.") from error
        if not succeeded:
            raise answer
        return answer

    def end(self) -> None:
        self._connection.close()
        self._process.kill()
        self._process.join()

    def _start(self) -> None:
        with self.starting:
            self._connection, theirs = CONTEXT.Pipe()
            self._process = CONTEXT.Process(target=_serve, args=(theirs, self._connection), daemon=True)
            self._process.start()
            theirs.close()
        self._is_ready = False

    def _await_start(self) -> None:
        """A fork of a process with threads may be stuck in a lock that one of them held: another one is made then."""
        for _ in range(STARTS):
            if self._connection.poll(START_LIMIT):
                break
            self.end()
            self._start()
        try:
            self._is_ready = self._connection.poll(START_LIMIT) and self._connection.recv()
        except EOFError:
            pass
        if not self._is_ready:
            raise RuntimeError(f"A worker process does not start; its exit code is {self._exit_code()}.")

    def _exit_code(self) -> int | None:
        self._process.join(1)
        return self._process.exitcode


def _serve(connection: Connection, of_parent: Connection) -> None:
    """What a worker does until the other end of its pipe is closed, be it by the death of its parent."""
    of_parent.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's business, which a terminal tells both
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        connection.send(True)
        while True:
            _answer(connection, *connection.recv())
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass


def _answer(connection: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        answer = True, function(*arguments)
    except Exception as error:
        error.__notes__ = [*getattr(error, "__notes__", []), f"In a worker process:\n{traceback.format_exc()}"]
        answer = False, error
    try:
        connection.send(answer)
    except (AttributeError, TypeError, pickle.PicklingError) as error:
        connection.send((False, error))
