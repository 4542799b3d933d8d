"""A finished run to what it was for: the stage's folders, of the last weights and of the best, and `metrics.json`."""

from pathlib import Path

from accelerate.utils import set_seed
from torch import nn

from training.best import BEST_NAME, load_best
from training.engines import SHARDED, holds_frozen_in_half
from training.run import Run
from training.run_folder import write_metrics
from training.weights import frozen_sha256, put_weights, trained_weights


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
        best = load_best(run, model)
        if best:
            run.stage.export(run, model, Path(run.args.output_dir, BEST_NAME))
        write_metrics(run, training, best or {})
    run.accelerator.wait_for_everyone()


def _whole_model(run: Run) -> nn.Module:
    """The model in one piece and full precision: built anew where the run holds it otherwise.

    Raises:
        RuntimeError: if what was built has other frozen weights than those that were trained over.
    """
    if run.accelerator.distributed_type not in SHARDED and not holds_frozen_in_half(run.accelerator):
        return run.unwrapped
    # What no file starts is drawn again.
    set_seed(run.args.seed)
    model, _ = run.stage.build_model(run.args, run.accelerator)
    if frozen_sha256(model) != run.frozen_sha256:
        raise RuntimeError(
            "What the run started from has changed while it trained: its checkpoints hold what it learnt."
        )
    return model


__all__ = ["export_run"]
