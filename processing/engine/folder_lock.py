"""One run at a time in a folder: a lock that the kernel releases when its process ends, however it ends."""

import errno
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

__all__ = ["lock_folder"]

LOCK_NAME = ".lock"  # hidden, so that it is no file of a dataset
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # some network file systems
_held: set[int] = set()


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """
    Keep other runs out of a folder while the `with` block lasts. It is made if need be; `.lock` in it goes in the end.

    Where there are no locks (Windows, some network file systems) the block runs all the same.

    Args:
        folder (`Path`): the `output` of the run.

    Raises:
        `ValueError`: another run holds the lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield
        return
    path = folder / LOCK_NAME
    lock = _acquire(path)
    try:
        yield
    finally:
        # While it is held: whoever opened the file before that finds out in `_acquire`.
        if _is_at(path, lock):
            path.unlink()
        _close(lock)


def _acquire(path: Path) -> int:
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)  # NFS locks only what can be written
        _held.add(lock)
        try:
            _lock(lock, path)
            if _is_at(path, lock):
                return lock
        except BaseException:
            _close(lock)
            raise
        _close(lock)  # the run before has removed it meanwhile


def _lock(lock: int, path: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        raise ValueError(
            f"`output` must be a folder that no other run writes to, got {path.parent}, which one has locked."
        ) from error
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise
        warnings.warn(f"{path} cannot be locked: {error}. Only one run at a time may write there.", stacklevel=5)


def _is_at(path: Path, lock: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(lock))
    except FileNotFoundError:
        return False


def _close(lock: int) -> None:
    _held.discard(lock)
    os.close(lock)


def _close_inherited() -> None:
    """In a forked worker, which may outlive its run, and would keep the lock."""
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_inherited)
