"""The demo, whose commands are run in forks of this process but for two: the alignment by `accelerate launch`, as a
user starts it, and the process that must not have imported the package.

Arguments: those of `python -m demo.run`.
"""

import multiprocessing
import os
import subprocess

from prepared_processes import run_python

import demo.run


AS_THEY_ARE = {"demo.load", "recipes/demo_alta.yaml"}


def run(command: tuple[str, ...], env: dict[str, str]) -> subprocess.CompletedProcess:
    if AS_THEY_ARE.intersection(command):
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
