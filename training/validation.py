"""Figures on the validation split while a run goes, and the best weights by one of them."""

import warnings
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object

from eval.protocol import write_json
from training.checkpoints import try_to
from training.run import Run
from training.weights import WEIGHTS_NAME, load_weights, save_weights, trained_weights


BEST_NAME = "best"


def measure_run(run: Run) -> dict[str, float]:
    """The stage's figures.

    Raises:
        ValueError: if the metric that the recipe names is not among them.
    """
    # The draws of training do not depend on whether it is watched: every forward pass is seeded by its place.
    figures = run.stage.validate(run)
    metric = metric_of(run)
    if metric not in figures:
        raise ValueError(f"`best_metric` must be one of {sorted(figures)}, got {metric!r}.")
    return figures


def metric_of(run: Run) -> str:
    """The figure by which the best weights are chosen."""
    return run.args.best_metric or run.stage.metric


def validate_run(run: Run) -> dict[str, float]:
    """What `measure_run` gives; the best so far by the metric is noted and its weights are kept in `best/`."""
    figures, metric = measure_run(run), metric_of(run)
    if is_better(run, metric, figures[metric]):
        best = {"step": run.progress.step, "metric": metric, "value": figures[metric]}
        if keep_best(run, best | {"figures": figures}):
            run.progress.best = best
    return figures


def is_better(run: Run, metric: str, value: float) -> bool:
    """Whether `value` beats the best so far; the first does."""
    best = run.progress.best
    if not best:
        return True
    return value < best["value"] if metric in run.stage.lower_is_better else value > best["value"]


def keep_best(run: Run, best: dict[str, Any]) -> bool:
    """Write the trained weights, and what is said of them, over those of the best before; if that fails, as on a full
    disk, those stay, with a warning. Every process must call it, and is told whether they were written."""
    weights, error = trained_weights(run.accelerator, run.model), None
    if run.accelerator.is_main_process:
        error = try_to(lambda: _write_best(Path(run.args.output_dir, BEST_NAME), weights, best))
        if error:
            warnings.warn(f"The best weights, of step {best['step']}, could not be kept: {error}.", stacklevel=3)
    return not any(gather_object([error]))


def _write_best(folder: Path, weights: dict[str, torch.Tensor], best: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(weights, folder / WEIGHTS_NAME)
    write_json(best, folder / "validation.json")


def load_best(run: Run, model: torch.nn.Module) -> bool:
    """Put the best weights into `model`, if there are any."""
    path = Path(run.args.output_dir, BEST_NAME, WEIGHTS_NAME)
    if not run.progress.best or not path.is_file():
        return False
    load_weights(model, path)
    return True


__all__ = ["keep_best", "load_best", "measure_run", "validate_run"]
