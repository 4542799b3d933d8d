"""Figures on the validation split while a run goes."""

from training.best import is_better, keep_best, metric_of
from training.run import Run


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


def validate_run(run: Run) -> dict[str, float]:
    """What `measure_run` gives; the best so far by the metric is noted and its weights are kept in `best/`."""
    figures, metric = measure_run(run), metric_of(run)
    if is_better(run, metric, figures[metric]):
        best = {"step": run.progress.step, "metric": metric, "value": figures[metric]}
        if keep_best(run, best | {"figures": figures}):
            run.progress.best = best
    return figures


__all__ = ["measure_run", "validate_run"]
