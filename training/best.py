"""The best weights of a run by a figure of its validation: kept in `best/`, and with every checkpoint."""

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object

from training.disk import UNFINISHED, put_file, try_to
from training.run import Run
from training.weights import WEIGHTS_NAME, load_weights, save_weights, trained_weights


BEST_NAME = "best"
FIGURES_NAME = "validation.json"


def metric_of(run: Run) -> str:
    """The figure by which the best weights are chosen."""
    return run.args.best_metric or run.stage.metric


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
        error = try_to(lambda: _write_best(_folder_of(run), weights, best))
        if error:
            warnings.warn(f"The best weights, of step {best['step']}, could not be kept: {error}.", stacklevel=3)
    return not any(gather_object([error]))


def load_best(run: Run, model: torch.nn.Module) -> dict[str, Any] | None:
    """Put the best weights into `model`; what is said of them, or `None` if there are none."""
    if not run.progress.best:
        return None
    load_weights(model, _folder_of(run) / WEIGHTS_NAME)
    return json.loads((_folder_of(run) / FIGURES_NAME).read_text(encoding="utf-8"))


def put_best_into(run: Run, checkpoint: Path) -> None:
    """Let a checkpoint hold the best so far, which a run that goes on from it may not find in `best/`."""
    if run.progress.best:
        for name in (WEIGHTS_NAME, FIGURES_NAME):
            put_file(_folder_of(run) / name, checkpoint / BEST_NAME / name)


def restore_best(run: Run, checkpoint: Path) -> None:
    """Put the best of a checkpoint that was loaded into `best/`; forget it if it is the best by another figure."""
    best, metric = run.progress.best, metric_of(run)
    if best and best["metric"] != metric:
        run.accelerator.print(f"The best weights so far were chosen by {best['metric']}, and are again by {metric}.")
        run.progress.best = best = {}
    if best and run.accelerator.is_main_process:
        for name in (WEIGHTS_NAME, FIGURES_NAME):
            put_file(checkpoint / BEST_NAME / name, _folder_of(run) / name)
    run.accelerator.wait_for_everyone()


def _folder_of(run: Run) -> Path:
    return Path(run.args.output_dir, BEST_NAME)


def _write_best(folder: Path, weights: dict[str, torch.Tensor], best: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    figures = folder / f"{FIGURES_NAME}.{UNFINISHED}"
    figures.write_text(json.dumps(best, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    save_weights(weights, folder / WEIGHTS_NAME)
    figures.replace(folder / FIGURES_NAME)


__all__ = ["BEST_NAME", "is_better", "keep_best", "load_best", "metric_of", "put_best_into", "restore_best"]
