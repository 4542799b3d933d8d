"""Python commands in processes of their own that have imported the libraries already: tests start dozens, and the
imports take longer than what most of them do.

They are forked from a server that has imported and done nothing else, so each is as fresh as a new Python but for its
imports. Launchers fork their processes as well.
"""

import contextlib
import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil
from torch.distributed.launcher import api as launcher


__all__ = ["PreparedProcess", "run_python", "send_signal"]

FORK_SERVER = multiprocessing.get_context("forkserver")
FORK_SERVER.set_forkserver_preload(["prepared_processes", "train_accelerate", "torch._dynamo"])


class PreparedProcess:
    """
    A Python command with as much of the interface of `subprocess.Popen` as the tests use.

    Args:
        command (sequence of `str`): what stands behind `python`: a script or `-m` and a module, and arguments.
        cwd (`Path`): folder to run in.
        environment (`dict`): all variables; those that are read by imports, such as `PYTHONPATH`, come too late.
    """

    def __init__(self, command: Sequence[str], cwd: Path, environment: Mapping[str, str]):
        self._output = tempfile.NamedTemporaryFile()
        arguments = (self._output.name, list(map(str, command)), str(cwd), dict(environment))
        self._process = FORK_SERVER.Process(target=_run, args=arguments)
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """Wait for the end; what the process and those below it printed."""
        self._process.join(timeout)
        if self.returncode is None:
            self.kill()
            raise TimeoutError(f"Killed after {timeout} s: {self._printed()}")
        return self._printed(), None

    def kill(self) -> None:
        """SIGKILL to the process and all below it, at once."""
        root = psutil.Process(self.pid)
        send_signal(signal.SIGKILL, root, *root.children(recursive=True))
        self._process.join()

    def _printed(self) -> str:
        return Path(self._output.name).read_text(encoding="utf-8")


class ForkingLaunch(launcher.elastic_launch):
    """What `torchrun` and `accelerate launch` end in, with forks in place of `python -u script`."""

    def __init__(self, config, entrypoint: str):
        config.start_method = "fork"
        super().__init__(config, run_python)

    def __call__(self, *command: str):
        return super().__call__(list(command))


def send_signal(number: signal.Signals, *processes: psutil.Process) -> None:
    """Reach each process that has not ended by itself since it was found, as workers do after an epoch."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def run_python(command: list[str]) -> None:
    """Do in this process what `python` with a command would do."""
    if command[0] == "-u":
        command = command[1:]
    is_module = command[0] == "-m"
    sys.argv = command[1:] if is_module else command
    if is_module:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(sys.argv[0], run_name="__main__")


def _run(output: str, command: list[str], cwd: str, environment: dict[str, str]) -> None:
    with open(output, "a") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    multiprocessing.set_start_method(None, force=True)  # that of a new Python, not the server's
    launcher.elastic_launch = ForkingLaunch
    run_python(command)
