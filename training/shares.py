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
    accelerator = run.accelerator
    rows = work(share_of(items, accelerator.num_processes, accelerator.process_index)).to(accelerator.device)
    return accelerator.gather(rows)[: len(items)].cpu()


def share_of(items: list[Any], num_processes: int, process_index: int) -> list[Any]:
    """
    The items of one process. The shares are of one length, since an engine that shards the model needs as many forward
    passes from every process; the last item fills them up behind all others.
    """
    size = -(-len(items) // num_processes)
    share = items[process_index * size : (process_index + 1) * size]
    return share + items[-1:] * (size - len(share))


__all__ = ["share_between_processes", "share_of"]
