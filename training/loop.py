"""The training loop: batches to gradients to steps."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, send_to_device

from training.batches import iterate_batches
from training.checkpoints import save_checkpoint
from training.engines import without_exchange
from training.gradient_cache import backward_in_parts
from training.interruption import StopSignal
from training.run import Run
from training.stage import base_config
from training.validation import measure_run, validate_run
from training.watching import TrainLog


def train(run: Run, log: TrainLog, stop: StopSignal) -> bool:
    """
    Train to the end of the recipe, or to the step in which SIGTERM came, where a checkpoint is written.

    Returns:
        `bool`: whether the recipe was finished.

    Raises:
        FloatingPointError: on every process, naming the studies, if a loss or a gradient is not finite.
        OSError: if the checkpoint that SIGTERM asks for cannot be written.
    """
    _validate_if_due(run, log)
    while run.progress.epoch < run.args.num_epochs:
        batches = iterate_batches(run)
        while run.progress.epoch_step < run.steps_per_epoch:
            figures = train_step(run, batches, stop)
            run.progress.step += 1
            run.progress.epoch_step += 1
            log.add_step(figures)
            if figures["stopped"]:
                # At once, since whoever sent the signal will not wait for a validation: it comes when the run goes on.
                _save_before_stop(run)
                return False
            _validate_if_due(run, log)
            if _is_checkpoint_due(run):
                save_checkpoint(run)
        run.progress.epoch, run.progress.epoch_step = run.progress.epoch + 1, 0
    return True


def train_step(run: Run, batches: Iterator[dict[str, Any]], stop: StopSignal) -> dict[str, float]:
    """One step of the optimizer, and its figures: means over the processes, `stopped` above 0 if SIGTERM has come."""
    run.model.train()
    start, waited, study_ids, skipped, losses = time.perf_counter(), 0.0, [], [], []
    for window in range(run.args.gradient_accumulation_steps):
        parts, seconds = _take(batches, run.args.parts_per_batch)
        waited += seconds
        study_ids += [study for part in parts for study in part.pop("study_id")]
        skipped += [record for part in parts for record in part.pop("skipped")]
        is_last = window == run.args.gradient_accumulation_steps - 1
        first = run.progress.epoch_step * run.args.batches_per_step + window * len(parts)
        losses.append(backward(run, parts, first, is_last))
    norm = clip_gradients(run)
    figures = {name: torch.stack([loss[name] for loss in losses]).mean() for name in losses[0]}
    figures |= {"gradient_norm": norm, "waited": waited, "stopped": stop.received, "skipped": len(skipped)}
    figures = share(run.accelerator, figures)
    check_finite(run.accelerator, figures, study_ids)
    if figures["skipped"]:
        run.progress.skipped += note_skipped(run, skipped)
    run.optimizer.step()
    run.optimizer.zero_grad()
    is_skipped = run.accelerator.optimizer_step_was_skipped
    if not is_skipped:
        run.scheduler.step()
    if run.accelerator.scaler is not None:
        # The gradients of a step that the scaler skipped are not finite, and moved nothing.
        figures |= {"overflow_share": float(is_skipped)} | ({"gradient_norm": 0.0} if is_skipped else {})
    return figures | {"seconds": time.perf_counter() - start}


def backward(run: Run, parts: list[dict[str, torch.Tensor]], first: int, is_last: bool) -> dict[str, torch.Tensor]:
    """Add the gradients of a batch, given whole or in parts; its detached losses and scales by name.

    Args:
        run ([`Run`]).
        parts (`list[dict]`): inputs of the model.
        first (`int`): number of the first part in its epoch.
        is_last (`bool`): whether the step of the optimizer follows, before which the processes exchange gradients.
    """
    accelerator, loss_scale = run.accelerator, 1 / run.args.gradient_accumulation_steps

    def seed_forward(part: int) -> None:
        run.seed_forward(first + part)

    if len(parts) > 1:
        config = base_config(run.unwrapped)
        output = backward_in_parts(
            accelerator, run.model, config, parts, seed_forward, _synchronize(run, is_last), loss_scale
        )
    else:
        seed_forward(0)
        with _synchronize(run, is_last)(True):
            output = run.model(**send_to_device(parts[0], accelerator.device, non_blocking=True))
            accelerator.backward(output.loss * loss_scale)
    return _figures(output)


def clip_gradients(run: Run) -> torch.Tensor:
    """Norm of the gradients, clipped if the recipe says so."""
    limit = math.inf if run.args.max_gradient_norm is None else run.args.max_gradient_norm
    norm = run.accelerator.clip_grad_norm_(run.model.parameters(), limit)
    return norm.full_tensor() if hasattr(norm, "full_tensor") else torch.as_tensor(norm)


def share(accelerator: Accelerator, figures: dict[str, Any]) -> dict[str, float]:
    """Means over the processes."""
    values = [torch.as_tensor(value, dtype=torch.float32, device=accelerator.device) for value in figures.values()]
    means = accelerator.reduce(torch.stack([value.detach() for value in values]), reduction="mean")
    return dict(zip(figures, means.tolist(), strict=True))


def check_finite(accelerator: Accelerator, figures: dict[str, float], study_ids: list[str]) -> None:
    """
    Raises:
        FloatingPointError: on every process, naming the studies of the step, if a process has a loss that is not
            finite, or gradients that are not, where no scaler deals with them.
    """
    names = [name for name in figures if name.endswith("loss")]
    names += ["gradient_norm"] if accelerator.scaler is None else []
    bad = [name for name in names if not math.isfinite(figures[name])]
    if bad:
        raise FloatingPointError(f"{bad} not finite. Studies of the step: {gather_object(study_ids)}.")


def note_skipped(run: Run, skipped: list[str]) -> int:
    """Tell which records could not be read; their number on all processes."""
    everywhere = gather_object(skipped)
    for record in everywhere:
        run.accelerator.print(f"Skipped an unreadable record, another takes its place: {record}")
    return len(everywhere)


def _take(batches: Iterator[dict[str, Any]], number: int) -> tuple[list[dict[str, Any]], float]:
    start = time.perf_counter()
    return [next(batches) for _ in range(number)], time.perf_counter() - start


def _synchronize(run: Run, is_last: bool) -> Callable[[bool], AbstractContextManager]:
    """Only the last backward pass of a step exchanges gradients between the processes."""

    def context(is_last_part: bool) -> AbstractContextManager:
        return nullcontext() if is_last and is_last_part else without_exchange(run.accelerator, run.model)

    return context


def _figures(output: Any) -> dict[str, torch.Tensor]:
    figures = {name: output[name].detach().float() for name in output if name.endswith("loss")}
    if output.get("logit_scales") is not None:
        names = ("global_scale", "local_attention_scale", "local_pooling_scale", "local_contrast_scale")
        figures |= dict(zip(names, output.logit_scales.detach().float().unbind(), strict=True))
    return figures


def _validate_if_due(run: Run, log: TrainLog) -> None:
    step, every = run.progress.step, run.args.validate_every
    if every and (step % every == 0 or step == run.total_steps) and run.progress.validated != step:
        # Before training, figures to compare with; and what is wrong with the validation shows then, not after hours.
        figures = validate_run(run) if step else measure_run(run)
        run.progress.validated = step
        log.add_validation(figures)


def _is_checkpoint_due(run: Run) -> bool:
    """Every so many steps, and at the end, since what comes then, the export, may fail."""
    step, every = run.progress.step, run.args.checkpoint_every
    return bool(every) and (step % every == 0 or step == run.total_steps)


def _save_before_stop(run: Run) -> None:
    if save_checkpoint(run) is None:
        raise OSError(f"SIGTERM came, and no checkpoint could be written at step {run.progress.step}.")


__all__ = ["backward", "check_finite", "clip_gradients", "share", "train", "train_step"]
