"""A training run: what its loop works on, and where it stands."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from modeling_alta import AltaProcessor
from processing.batches.batch_order import BatchOrder
from processing.batches.training_batch import TrainingStudies
from recipes.recipe import TrainArguments
from training.stage import Stage


# Its state brings these along, whatever the recipe says.
OF_THE_OPTIMIZER = ("base_learning_rate", "weight_decay", "betas", "warmup_epochs", "schedule_epochs")


@dataclass
class TrainProgress:
    """
    Where a run stands; saved with every checkpoint, the same on every process.

    Args:
        epoch (`int`): the epoch, counted from 0.
        epoch_step (`int`): optimizer steps of this epoch that are done.
        step (`int`): optimizer steps of the run that are done.
        validated (`int`): the step of the last validation, −1 before the first.
        skipped (`int`): records that could not be read so far.
        sums (`dict`): sums over the steps since the last line of the log, and under `count` their number.
        best (`dict`): `step`, `metric` and `value` of the best validation so far; empty before the first.
    """

    epoch: int = 0
    epoch_step: int = 0
    step: int = 0
    validated: int = -1
    skipped: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    best: dict[str, Any] = field(default_factory=dict)

    def state_dict(self) -> dict[str, Any]:
        return vars(self) | {"sums": dict(self.sums), "best": dict(self.best)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


@dataclass
class Run:
    """What a training loop works on, prepared by accelerate."""

    args: TrainArguments
    accelerator: Accelerator
    stage: Stage
    model: nn.Module
    processor: AltaProcessor
    studies: TrainingStudies
    collator: Any
    order: BatchOrder
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    progress: TrainProgress
    frozen_sha256: str
    records_fingerprint: str

    @property
    def unwrapped(self) -> nn.Module:
        """The model without what the engine wraps around it, PEFT's wrapper kept."""
        return self.accelerator.unwrap_model(self.model)

    @property
    def steps_per_epoch(self) -> int:
        return len(self.order) // self.args.batches_per_step

    @property
    def total_steps(self) -> int:
        return self.args.num_epochs * self.steps_per_epoch

    @property
    def studies_per_step(self) -> int:
        return self.args.batch_size * self.args.gradient_accumulation_steps * self.accelerator.num_processes

    def identity(self) -> dict[str, Any]:
        """What must be the same for a checkpoint to go on exactly."""
        args, processes = self.args, self.accelerator.num_processes
        # The batches of a stream depend on who reads which part of it, in which portions.
        readers = [processes, args.num_workers, args.micro_batch_size or args.batch_size] if args.streaming else None
        return {
            **{name: getattr(args, name) for name in ("stage", "seed", "labels", *OF_THE_OPTIMIZER)},
            "records_fingerprint": self.records_fingerprint,
            "studies": len(self.studies),
            "studies_per_step": self.studies_per_step,
            "studies_per_contrast": args.batch_size * processes,
            "processes, workers and batch of the stream": readers,
            "frozen_sha256": self.frozen_sha256,
        }

    def seed_forward(self, batch: int) -> None:
        """Dropout depends on the place in the run alone: a resumed run and a second forward pass repeat it.

        Args:
            batch (`int`): number of the batch in its epoch.
        """
        place = [self.args.seed, self.progress.epoch, batch, self.accelerator.process_index]
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0]))


__all__ = ["Run", "TrainProgress"]
