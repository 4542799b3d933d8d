"""The loader of a training run: batches of an order, prepared by workers whose death is an error in its place."""

import resource
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from math import ceil
from typing import Any

import torch
from torch.utils.data import DataLoader

from processing.batches.batch_order import BatchOrder
from processing.batches.training_batch import TrainingStudies


__all__ = ["DeadWorkerError", "TrainingLoader", "make_training_loader"]

TIMEOUT = 300.0  # NCCL gives up after 600, in which the other processes wait for one whose worker hangs


class DeadWorkerError(RuntimeError):
    """A worker was killed, or gave no batch in time. What was trained so far stands; a new iterator can go on."""


def make_training_loader(
    studies: TrainingStudies,
    order: BatchOrder,
    collator: Callable[[list[dict[str, Any]]], dict[str, Any]],
    num_workers: int = 0,
    timeout: float = TIMEOUT,
    batches_at_once: int = 1,
) -> "TrainingLoader":
    """
    Build the loader of one process.

    Args:
        studies ([`TrainingStudies`]), order ([`BatchOrder`]): the samples and which of them make a batch.
        collator (`Callable`): joins the samples of a batch.
        num_workers (`int`, defaults to 0): worker processes; what `order` was given.
        timeout (`float`, defaults to 300): seconds to wait for a batch of a worker.
        batches_at_once (`int`, defaults to 1): how many are taken together, and so are to be ready.

    Raises:
        `ValueError`: an order of other studies, or for another number of workers.
    """
    if order.num_studies != len(studies):
        raise ValueError(f"`order` must be of the {len(studies)} `studies`, got one of {order.num_studies}.")
    if order.row_groups is not None and order.num_workers != num_workers:
        raise ValueError(f"`num_workers` must be the {order.num_workers} of `order`, got {num_workers}.")
    workers = {}
    if num_workers:
        _allow_open_files()
        workers = {"timeout": timeout, "prefetch_factor": 1 + ceil(batches_at_once / num_workers)}
    return TrainingLoader(
        studies,
        batch_sampler=order,
        collate_fn=collator,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        **workers,
    )


def _allow_open_files() -> None:
    """As many as the system lets this process have: a tensor of a worker is an open file until it is pinned or gone,
    and the parts of a large contrastive batch are held together."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # macOS names no limit, and allows less
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class TrainingLoader(DataLoader):
    """
    A `DataLoader` that tells the death of a worker where a batch is taken, never in the middle of a training step.

    Each `iter(loader)` starts workers of its own, which read the epoch of the studies and the place of the order as
    they are then; so does a new one after a worker died. A worker computes with one thread.

    Raises:
        [`DeadWorkerError`]: a `RuntimeError` that says which worker was killed, or that none gave a batch in time.
    """

    def __iter__(self) -> Iterator[dict[str, Any]]:
        batches = super().__iter__()
        take = WATCH.take if self.num_workers and WATCH.install() else next
        return iter(partial(take, batches, None), None)


class WorkerWatch:
    """
    Holds back torch's error for a dead worker until a batch is waited for.

    torch raises it from a signal handler, wherever the main thread is; in an optimizer step, that would leave a model
    which no one could go on with.
    """

    def __init__(self):
        self.is_waiting, self.raise_if_dead = False, None

    def install(self) -> bool:
        """Take the place of torch's handler; `False` where there is none, outside of the main thread."""
        handler = signal.getsignal(signal.SIGCHLD)
        if threading.current_thread() is not threading.main_thread() or not callable(handler):
            return False
        if handler != self._handle:
            self.raise_if_dead = handler
            signal.signal(signal.SIGCHLD, self._handle)
        return True

    def take(self, batches: Iterator, default: Any) -> Any:
        """`next(batches, default)`, in which a worker's death is an error."""
        self.is_waiting = True
        try:
            self.raise_if_dead(signal.SIGCHLD, None)  # for what happened since the last batch
            return next(batches, default)
        except (ConnectionError, EOFError, FileNotFoundError, RuntimeError) as error:
            if not _tells_of_a_death(error):
                raise
            told = str(error).startswith("DataLoader ")
            message = str(error) if told else f"A data worker ended while it handed over a batch: {error}."
            raise DeadWorkerError(message) from error
        finally:
            self.is_waiting = False

    def _handle(self, number: int, frame: Any) -> None:
        if self.is_waiting:
            self.raise_if_dead(number, frame)


def _tells_of_a_death(error: Exception) -> bool:
    """Whether torch found a worker dead, or one ended while it handed over a batch, of which nobody has told yet."""
    if isinstance(error, RuntimeError) and "items of ancillary data" not in str(error):
        return str(error).startswith("DataLoader ")
    # An error inside a worker's own code comes as "Caught ... in DataLoader worker process".
    return "in DataLoader worker process" not in str(error)


WATCH = WorkerWatch()  # one, as there is one handler of the process
