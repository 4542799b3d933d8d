"""Processes that work for this one, each over a pipe of its own, so that the death of one touches nothing of the rest.

The executors of the standard library share queues and locks between their workers, and give up all of them when one
dies: by a SIGTERM, after which they wait for ever if the workers inherited a handler of it, such as Ray's.
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
from contextlib import suppress
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any


__all__ = ["WorkerDiedError", "WorkerPool"]

# By fork on Linux: workers share the libraries of this process, which else cost memory and time again. They must not
# touch what has threads, such as Arrow or torch's operators.
CONTEXT = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
START_LIMIT = 120.0  # seconds; a spawned worker imports torch, a forked one that needs so long is stuck
STARTS = 3
READY = b"ready"


class WorkerDiedError(ChildProcessError):
    """The process that worked at a task was killed, or ended by itself, before it answered.

    Args:
        exit_code (`int`, *optional*): of the process; the negative number of the signal that killed it.
    """

    def __init__(self, exit_code: int | None):
        super().__init__(f"A worker process died with exit code {exit_code}.")
        self.exit_code = exit_code


class WorkerPool:
    """
    A number of worker processes, and tasks that wait for one; ends them when its `with` block does.

    Args:
        num_proc (`int`): processes.
    """

    def __init__(self, num_proc: int):
        self._workers = [WorkerProcess() for _ in range(num_proc)]
        self._idle: queue.SimpleQueue[WorkerProcess] = queue.SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)
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
        """Tasks that have not begun are dropped; those that have are waited for, unless an error ends the block."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        if kind is not None:
            for worker in self._workers:
                worker.kill()
        self._threads.shutdown()
        for worker in self._workers:
            worker.end()

    def _call(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        worker = self._idle.get()
        try:
            return worker.call(function, arguments)
        except WorkerDiedError:
            worker.restart()
            raise
        finally:
            self._idle.put(worker)


class WorkerProcess:
    """A process that answers one call after the other."""

    # One start at a time: a process that is forked meanwhile would hold the worker's end of the pipe open and hide its
    # death, and a start takes the exit codes of those that have died.
    lock = threading.Lock()
    ends: set[Connection] = set()

    def __init__(self):
        self._start()

    def call(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """What `function(*arguments)` returns or raises in the process.

        Raises:
            [`WorkerDiedError`]: instead of an answer.
            `ChildProcessError`: the process does not start.
        """
        if not self._is_ready:
            self._await_start()
        task = pickle.dumps((function, arguments))
        try:
            self._end.send_bytes(task)
            answer = self._end.recv_bytes()
        except (EOFError, OSError) as error:
            raise WorkerDiedError(self._exit_code()) from error
        succeeded, answer = pickle.loads(answer)
        if not succeeded:
            raise answer
        return answer

    def kill(self) -> None:
        """End the process alone, so that a call that waits for it ends as well."""
        with self.lock:
            self._process.kill()

    def restart(self) -> None:
        self.end()
        self._start()

    def end(self) -> None:
        with self.lock:
            self.ends.discard(self._end)
            self._end.close()
            self._process.kill()
            self._process.join()

    def _start(self) -> None:
        with self.lock:
            self._end, theirs = CONTEXT.Pipe()
            self.ends.add(self._end)
            self._process = CONTEXT.Process(target=_serve, args=(theirs,), daemon=True)
            self._process.start()
            theirs.close()
        self._is_ready = False

    def _await_start(self) -> None:
        """A fork of a process with threads may be stuck in a lock that one of them held: another one is made then."""
        for _ in range(STARTS):
            if self._end.poll(START_LIMIT):
                break
            self.restart()
        with suppress(EOFError):
            self._is_ready = self._end.poll(START_LIMIT) and self._end.recv_bytes() == READY
        if not self._is_ready:
            raise ChildProcessError(f"A worker process does not start; its exit code is {self._exit_code()}.")

    def _exit_code(self) -> int | None:
        with self.lock:
            self._process.join(1)
            return self._process.exitcode


def _serve(end: Connection) -> None:
    """What a worker does until the other end of its pipe is closed, be it by the death of its parent."""
    for inherited in WorkerProcess.ends:
        inherited.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's business, which a terminal tells both
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        end.send_bytes(READY)
        while True:
            end.send_bytes(_answer(end.recv_bytes()))


def _answer(task: bytes) -> bytes:
    """Whether a task succeeded, and what it returned or raised."""
    try:
        function, arguments = pickle.loads(task)
        return pickle.dumps((True, function(*arguments)))
    except Exception as error:
        lines = f"In a worker process:\n{traceback.format_exc()}"
        return pickle.dumps((False, _sendable(error, lines)))


def _sendable(error: Exception, lines: str) -> Exception:
    error.__notes__ = [*getattr(error, "__notes__", []), lines]
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:
        return RuntimeError(lines)
