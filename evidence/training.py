"""The one optimizer loop that every stage and every arm runs."""

import time
from collections.abc import Iterator
from statistics import fmean
from typing import Any

import torch
from torch import nn
from transformers import get_cosine_schedule_with_warmup


__all__ = ["train"]

PEFT_PARTS = (".alta_adapter_", ".modules_to_save.")
TOWERS = (".vision_model.", ".text_model.")
BETAS, WEIGHT_DECAY, MAX_GRADIENT_NORM, WARMUP_SHARE = (0.9, 0.95), 0.05, 1.0, 0.1


def train(
    model: nn.Module,
    batches: Iterator[dict[str, torch.Tensor]],
    num_steps: int,
    learning_rate: float,
    seed: int,
    base_learning_rate: float | None = None,
    slow_heads: bool = False,
) -> dict[str, Any]:
    """
    Train what requires a gradient: AdamW, weight decay on matrices only, warm-up over a tenth, cosine to zero.

    Args:
        model (`nn.Module`): its output has a `loss`; left in eval mode.
        batches (iterator of `dict`): arguments of the model.
        num_steps (`int`), learning_rate (`float`).
        seed (`int`): of masks and dropout.
        base_learning_rate (`float`, *optional*): of weights under PEFT that are not PEFT's, by default the same.
        slow_heads (`bool`): with PEFT, also of all that lies outside the towers.

    Returns:
        `dict`: `first_loss`, `last_loss` (means over a tenth of the steps), `steps`, `cpu_seconds`.

    Raises:
        FloatingPointError: at a loss that is not finite.
    """
    optimizer = _optimizer(model, learning_rate, base_learning_rate or learning_rate, slow_heads)
    scheduler = get_cosine_schedule_with_warmup(optimizer, round(WARMUP_SHARE * num_steps), num_steps)
    torch.manual_seed(seed)
    model.train()
    losses, start = [], time.process_time()
    for step in range(num_steps):
        loss = model(**next(batches)).loss
        if not torch.isfinite(loss):
            raise FloatingPointError(f"The loss is not finite at step {step}.")
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    tenth = max(1, num_steps // 10)
    return {
        "first_loss": fmean(losses[:tenth]),
        "last_loss": fmean(losses[-tenth:]),
        "steps": num_steps,
        "cpu_seconds": time.process_time() - start,
    }


def _optimizer(
    model: nn.Module, learning_rate: float, base_learning_rate: float, slow_heads: bool = False
) -> torch.optim.AdamW:
    groups = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_slow = hasattr(model, "peft_config") and _is_slow(name, slow_heads)
            groups.setdefault((is_slow, parameter.ndim in (2, 4)), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "lr": base_learning_rate if is_slow else learning_rate,
                "weight_decay": WEIGHT_DECAY if is_matrix else 0.0,
            }
            for (is_slow, is_matrix), parameters in groups.items()
        ],
        betas=BETAS,
    )


def _is_slow(name: str, slow_heads: bool) -> bool:
    """Whether a trained parameter under PEFT is none of PEFT's, or, with `slow_heads`, lies outside the towers."""
    return not any(part in name for part in PEFT_PARTS) or (slow_heads and not any(part in name for part in TOWERS))
