"""The demo, whose commands are run in forks of this process but for the one that must not have imported the package.

Arguments: those of `python -m demo.run`. A command by `accelerate launch` is run without its launcher.
"""

import multiprocessing
import os
import subprocess
import sys

from prepared_processes import run_python

import demo.run


def run(command: tuple[str, ...], env: dict[str, str]) -> subprocess.CompletedProcess:
    if "demo.load" in command:
        return subprocess.run(command, env=env)
    script = command[len(demo.run.LAUNCH) :] if command[: len(demo.run.LAUNCH)] == demo.run.LAUNCH else command[1:]
    process = multiprocessing.get_context("fork").Process(target=run_in_fork, args=(list(script), env))
    process.start()
    process.join()
    return subprocess.CompletedProcess(command, process.exitcode)


def run_in_fork(command: list[str], environment: dict[str, str]) -> None:
    os.environ.update(environment)
    run_python(command)


class Prepared:
    """What the demo uses of `subprocess`."""

    run = staticmethod(run)


if __name__ == "__main__":
    demo.run.subprocess = Prepared
    demo.run.main()
    sys.stdout.flush()
