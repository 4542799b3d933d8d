"""Which studies make which batch: the order of an epoch, as a function of its number alone."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch


__all__ = ["WINDOW_GROUPS", "BatchOrder"]

WINDOW_GROUPS = 4  # 256 studies, about 100 MB


class BatchOrder(torch.utils.data.Sampler[list[int]]):
    """
    The batches of one process: a batch sampler that can begin anywhere, since nothing before that place decides what
    follows. Each study is in one batch of an epoch at most; all processes have equally many batches.

    Without `row_groups`, an epoch is a permutation of all studies, cut into batches of all processes together: one
    process with batches of 8 and two with batches of 4 see the same studies in a step.

    With `row_groups`, for records that are read while training, the row groups are shuffled and cut into ranges of
    equally many batches, one for each worker of each process, and the studies are shuffled inside windows of
    `WINDOW_GROUPS` groups; so a worker reads its groups nearly in sequence, each about once. Batch k is made by the
    range k modulo `num_workers`, wherever an iteration begins: the workers that a `DataLoader` serves in turn then
    only change places.

    Args:
        num_studies (`int`): studies to order.
        batch_size (`int`): studies of a batch of one process.
        seed (`int`): the run's seed, from 0 up.
        num_processes, process_index (`int`, default to 1 and 0): processes of the run, and which of them this is.
        batches_per_step (`int`, defaults to 1): batches that an optimizer step accumulates. An epoch has a multiple
            of it; the studies that are left over, others in each epoch, are dropped.
        row_groups (`Sequence[int]`, *optional*): number of studies of each row group.
        num_workers (`int`, defaults to 0): workers of the `DataLoader`; without `row_groups` they change nothing.

    Raises:
        `ValueError`: a number out of range, row groups that do not add up to `num_studies`, too few studies for a
            step.
    """

    def __init__(
        self,
        num_studies: int,
        batch_size: int,
        seed: int,
        num_processes: int = 1,
        process_index: int = 0,
        batches_per_step: int = 1,
        row_groups: Sequence[int] | None = None,
        num_workers: int = 0,
    ):
        self.num_studies = num_studies
        self.batch_size = batch_size
        self.seed = seed
        self.num_processes = num_processes
        self.process_index = process_index
        self.batches_per_step = batches_per_step
        self.row_groups = None if row_groups is None else np.asarray(row_groups, np.int64)
        self.num_workers = num_workers
        self.epoch, self.batch = 0, 0
        self._check()

    def set_place(self, epoch: int, batch: int = 0) -> None:
        """Choose where the next iteration begins: at batch `batch` of epoch `epoch`, both counted from 0.

        Raises:
            `ValueError`: a negative epoch, or a batch that is not in 0..len(self).
        """
        if epoch < 0 or not 0 <= batch <= len(self):
            raise ValueError(
                f"`epoch` must be at least 0 and `batch` in 0..{len(self)}, got epoch {epoch} and batch {batch}."
            )
        self.epoch, self.batch = epoch, batch

    def __len__(self) -> int:
        """Batches of this process in a whole epoch."""
        batches = self.num_studies // (self.batch_size * self.num_processes)
        return batches - batches % self.batches_per_step

    def __iter__(self) -> Iterator[list[int]]:
        batches = self._map_style_batches() if self.row_groups is None else self._streamed_batches()
        return (studies.tolist() for studies in batches[self.batch :])

    def _map_style_batches(self) -> np.ndarray:
        order = self._generator().permutation(self.num_studies)
        order = order[: len(self) * self.num_processes * self.batch_size]
        return order.reshape(len(self), self.num_processes, self.batch_size)[:, self.process_index]

    def _streamed_batches(self) -> np.ndarray:
        generator = self._generator()
        rank = np.repeat(generator.permutation(len(self.row_groups)), self.row_groups)  # of each study's row group
        order = np.lexsort((generator.random(self.num_studies), rank))
        ranges = self._cut(order)
        slots = max(1, self.num_workers)
        batches = np.empty((len(self), self.batch_size), np.int64)
        for slot in range(slots):
            studies = _shuffle_windows(ranges[self.process_index * slots + slot], rank, generator.spawn(1)[0])
            batches[slot::slots] = studies.reshape(-1, self.batch_size)
        return batches

    def _cut(self, order: np.ndarray) -> list[np.ndarray]:
        """The range of each worker, process by process."""
        slots = max(1, self.num_workers)
        sizes = [len(range(slot, len(self), slots)) * self.batch_size for slot in range(slots)] * self.num_processes
        return np.split(order, np.cumsum(sizes))[:-1]

    def _generator(self) -> np.random.Generator:
        return np.random.default_rng([self.seed, self.epoch])

    def _check(self) -> None:
        for name in ("batch_size", "num_processes", "batches_per_step"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        for name in ("seed", "num_workers"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must be at least 0, got {getattr(self, name)}.")
        if not 0 <= self.process_index < self.num_processes:
            raise ValueError(
                f"`process_index` must be below `num_processes` {self.num_processes}, got {self.process_index}."
            )
        if self.row_groups is not None and self.row_groups.sum() != self.num_studies:
            raise ValueError(
                f"`row_groups` must add up to `num_studies` {self.num_studies}, got {self.row_groups.sum()}."
            )
        if len(self) == 0:
            step = self.batch_size * self.num_processes * self.batches_per_step
            raise ValueError(
                f"`num_studies` must be at least the {step} of an optimizer step, got {self.num_studies}."
            )


def _shuffle_windows(studies: np.ndarray, rank: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Shuffle studies, which come row group by row group, inside windows of `WINDOW_GROUPS` row groups."""
    if not len(studies):
        return studies
    ranks = rank[studies]
    window = (ranks - ranks[0]) // WINDOW_GROUPS
    return studies[np.lexsort((generator.random(len(studies)), window))]
