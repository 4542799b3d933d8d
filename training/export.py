"""A finished run to what it was for: the stage's folders, of the last weights and of the best, and `metrics.json`."""

from pathlib import Path

from torch import nn

from training.checkpoints import SHARDED, put_weights, trained_weights
from training.run import Run
from training.run_folder import write_metrics
from training.validation import BEST_NAME, load_best


def export_run(run: Run, training: dict[str, float]) -> None:
    """
    Write the stage's folders into `output_dir`, those of the best weights into `output_dir/best`, and `metrics.json`.

    Args:
        run ([`Run`]): finished.
        training (`dict`): the last line of the log.
    """
    weights = trained_weights(run.accelerator, run.model)
    run.accelerator.wait_for_everyone()
    if run.accelerator.is_main_process:
        model = _whole_model(run)
        put_weights(model, weights, "weights")
        run.stage.export(run, model, Path(run.args.output_dir))
        if load_best(run, model):
            run.stage.export(run, model, Path(run.args.output_dir, BEST_NAME))
        write_metrics(run, training)
    run.accelerator.wait_for_everyone()


def _whole_model(run: Run) -> nn.Module:
    """The model in one piece: of a sharded run, built anew."""
    if run.accelerator.distributed_type in SHARDED:
        return run.stage.build_model(run.args, run.accelerator)[0]
    return run.unwrapped


__all__ = ["export_run"]
