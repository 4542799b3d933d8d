"""Study records → trained model: `accelerate launch train_accelerate.py --config recipes/alta_mimic.yaml`.

The stage `mrm` trains a vision tower by masked record modelling; `alta` freezes it and trains adapters over it;
`adapt` trains an adapter for another hospital over a trained one.
"""

import argparse
from pathlib import Path

from recipes.recipe import RecipeError, TrainArguments, read_recipe
from training.build import build_run
from training.checkpoints import resume
from training.export import export_run
from training.interruption import StopSignal
from training.loop import train
from training.run import Run
from training.run_folder import write_start
from training.watching import TrainLog, end_tracking


def main(args: TrainArguments) -> None:
    with StopSignal() as stop:
        run = prepare_run(args)
        if run.accelerator.is_main_process:
            write_start(run)
        with TrainLog(run) as log:
            is_finished = train(run, log, stop)
        if is_finished:
            export_run(run, log.last)
        else:
            run.accelerator.print(
                f"Stopped by SIGTERM after step {run.progress.step} of {run.total_steps}, with a checkpoint. The same "
                "command with resume=latest goes on."
            )
        end_tracking(run.accelerator)


def prepare_run(args: TrainArguments) -> Run:
    """A run that is ready to train, from its start or from a checkpoint.

    Raises:
        RecipeError: what the recipe names is not there, or does not fit.
    """
    try:
        run = build_run(args)
        resume(run)
    except (OSError, ValueError) as error:
        raise RecipeError(str(error)) from error
    return run


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train a stage of ALTA by a recipe.")
    parser.add_argument("--config", required=True, type=Path, help="recipe: a YAML file of recipes/")
    parser.add_argument("overrides", nargs="*", metavar="name=value", help="settings in place of the recipe's")
    command = parser.parse_args()
    try:
        main(read_recipe(command.config, command.overrides))
    except RecipeError as error:
        parser.error(str(error))
