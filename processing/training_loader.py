"""The loader of a training run: batches of an order, prepared by workers."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import DataLoader

from processing.batch_order import BatchOrder
from processing.training_batch import TrainingStudies


__all__ = ["make_training_loader"]

TIMEOUT = 600.0


def make_training_loader(
    studies: TrainingStudies,
    order: BatchOrder,
    collator: Callable[[list[dict[str, Any]]], dict[str, Any]],
    num_workers: int = 0,
    timeout: float = TIMEOUT,
) -> DataLoader:
    """
    Build the loader of one process. Each `iter(loader)` starts workers of its own, which read the epoch of `studies`
    and the place of `order` as they are then; so does a new one after a worker died.

    A worker that is killed, or that gives no batch for `timeout` seconds, is a `RuntimeError` that says so. A worker
    computes with one thread. With a GPU, batches lie in pinned memory.

    Args:
        studies ([`TrainingStudies`]), order ([`BatchOrder`]): the samples and which of them make a batch.
        collator (`Callable`): joins the samples of a batch.
        num_workers (`int`, defaults to 0): worker processes; what `order` was given.
        timeout (`float`, defaults to 600): seconds to wait for a batch of a worker.

    Raises:
        `ValueError`: an order of other studies, or for another number of workers.
    """
    if order.num_studies != len(studies):
        raise ValueError(f"`order` must be of the {len(studies)} `studies`, got one of {order.num_studies}.")
    if order.row_groups is not None and order.num_workers != num_workers:
        raise ValueError(f"`num_workers` must be the {order.num_workers} of `order`, got {num_workers}.")
    workers = {"timeout": timeout, "prefetch_factor": 2} if num_workers else {}
    return DataLoader(
        studies,
        batch_sampler=order,
        collate_fn=collator,
        num_workers=num_workers,
        pin_memory=torch.accelerator.is_available(),
        **workers,
    )
