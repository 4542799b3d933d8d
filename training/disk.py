"""Writes that a full disk or a kill may cut off."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any


UNFINISHED = "unfinished"


def try_to(write: Callable[[], Any]) -> str | None:
    """Why something could not be written, or `None` if it was."""
    # A full disk shows as OSError, as RuntimeError of torch.save or as an error of safetensors.
    try:
        write()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def flush(path: Path) -> None:
    """Wait until the disk has it: a rename must not outlive the bytes of what it names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def put_file(source: Path, target: Path) -> None:
    """The same file in a second place, over what is there: without its bytes again, where the disk can."""
    target.parent.mkdir(parents=True, exist_ok=True)
    # No name that is ever written to: what is written into one of two links is in the other.
    link = target.with_name(f"{target.name}.link")
    link.unlink(missing_ok=True)
    try:
        os.link(source, link)
    except OSError:
        shutil.copyfile(source, link)
    link.replace(target)
    link.unlink(missing_ok=True)  # a rename over another link of the same file does nothing


__all__ = ["UNFINISHED", "flush", "put_file", "try_to"]
