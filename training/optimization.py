"""The optimizer and the learning rate of the published recipe."""

import torch
from torch import nn
from transformers import get_cosine_schedule_with_warmup

from recipes.recipe import TrainArguments


def build_optimizer(args: TrainArguments, model: nn.Module, num_processes: int) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only: not on biases, norms, tokens and scales."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim in (2, 4)], "weight_decay": args.weight_decay},
        {"params": [p for p in trained if p.ndim not in (2, 4)], "weight_decay": 0.0},
    ]
    effective_batch = args.batch_size * num_processes * args.gradient_accumulation_steps
    learning_rate = args.base_learning_rate * effective_batch / 256
    # The fused step skips an overflow of float16 by itself, unseen by accelerate, and the schedule would go on. None,
    # not False, which would take the weights one by one on a GPU.
    is_fused = None if args.mixed_precision == "fp16" else True
    return torch.optim.AdamW(groups, lr=learning_rate, betas=tuple(args.betas), fused=is_fused)


def build_scheduler(
    args: TrainArguments, optimizer: torch.optim.Optimizer, steps_per_epoch: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear warm-up, then a cosine to zero at `schedule_epochs`, in optimizer steps."""
    warmup_steps = round(args.warmup_epochs * steps_per_epoch)
    return get_cosine_schedule_with_warmup(optimizer, warmup_steps, args.schedule_epochs * steps_per_epoch)


__all__ = ["build_optimizer", "build_scheduler"]
