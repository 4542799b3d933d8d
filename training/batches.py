"""The batches of an epoch from wherever the run stands."""

import warnings
from collections.abc import Iterator
from typing import Any

from processing.batches.training_loader import DeadWorkerError, make_training_loader
from training.run import Run


MAX_WORKER_DEATHS = 3


def iterate_batches(run: Run) -> Iterator[dict[str, Any]]:
    """
    The batches of the current epoch that are still to come, on the host, each once, whatever happens to the workers.

    A worker that died (the kernel kills the largest process when memory runs out) is replaced, and the batches go on
    where they were.

    Raises:
        RuntimeError: if workers die three times before one batch comes.
    """
    epoch, place = run.progress.epoch, run.progress.epoch_step * run.args.batches_per_step
    run.studies.set_epoch(epoch)
    deaths = 0
    while place < len(run.order):
        run.order.set_place(epoch, place)
        try:
            for batch in make_training_loader(
                run.studies, run.order, run.collator, run.args.num_workers, batches_at_once=run.args.parts_per_batch
            ):
                place, deaths = place + 1, 0
                yield batch
        except DeadWorkerError as error:
            deaths += 1
            if deaths == MAX_WORKER_DEATHS:
                raise RuntimeError(
                    f"Workers died {deaths} times before batch {place} of epoch {epoch}: {error} Memory that runs out "
                    f"is the usual reason: `num_workers` {run.args.num_workers} may be too many."
                ) from error
            warnings.warn(f"{error} New workers go on at batch {place} of epoch {epoch}.", stacklevel=2)


__all__ = ["iterate_batches"]
