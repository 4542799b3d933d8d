"""Figures on the validation split while a run goes, and the best weights by one of them."""

from pathlib import Path

import torch

from eval.protocol import write_json
from training.checkpoints import WEIGHTS_NAME, load_weights, save_weights, trained_weights
from training.run import Run


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
        run.progress.best = {"step": run.progress.step, "metric": metric, "value": figures[metric]}
        keep_best(run, figures)
    return figures


def is_better(run: Run, metric: str, value: float) -> bool:
    """Whether `value` beats the best so far; the first does."""
    best = run.progress.best
    if not best:
        return True
    return value < best["value"] if metric in run.stage.lower_is_better else value > best["value"]


def keep_best(run: Run, figures: dict[str, float]) -> None:
    """Write the trained weights over those of the best before."""
    folder = Path(run.args.output_dir, BEST_NAME)
    weights = trained_weights(run.accelerator, run.model)
    if run.accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        save_weights(weights, folder / WEIGHTS_NAME)
        write_json(run.progress.best | {"figures": figures}, folder / "validation.json")
    run.accelerator.wait_for_everyone()


def load_best(run: Run, model: torch.nn.Module) -> bool:
    """Put the best weights into `model`, if there are any."""
    path = Path(run.args.output_dir, BEST_NAME, WEIGHTS_NAME)
    if not run.progress.best or not path.is_file():
        return False
    load_weights(model, path)
    return True


__all__ = ["keep_best", "load_best", "measure_run", "validate_run"]
