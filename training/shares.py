"""Work that the processes of a run share."""

from collections.abc import Callable
from typing import Any

import torch

from training.run import Run


def share_between_processes(run: Run, items: list[Any], work: Callable[[list[Any]], torch.Tensor]) -> torch.Tensor:
    """
    Rows of all items, of which every process makes its share; all of them get all rows.

    Args:
        run ([`Run`]).
        items (`list`): what to work on.
        work (callable): gives a tensor with a row for each item of a list.

    Returns:
        `torch.Tensor` of shape `(len(items), ...)`: on the CPU.
    """
    # Shares of one length: an engine that shards the model needs as many forward passes from every process.
    with run.accelerator.split_between_processes(items, apply_padding=True) as part:
        rows = work(part).to(run.accelerator.device)
    return run.accelerator.gather(rows)[: len(items)].cpu()


__all__ = ["share_between_processes"]
