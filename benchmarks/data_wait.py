"""
How much of a training run's time does a GPU wait for data?

`python -m benchmarks.data_wait` prints JSON: a run of the stage `alta` at full size over made records (see
`benchmarks.input`), as `train_accelerate.py` runs it, and of its log the studies per second, the share of the time
in which the step waited for a batch, and the peak memory; each the median of the lines after the first third, in
which workers start, blocks compile, and batches lie ready from before. Beside it, how many studies per second the
workers alone can give.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.input import build_tokenizer, write_records
from modeling_alta import AltaConfig, AltaForPreTraining
from modeling_alta.export_alta import build_processor, export_full
from recipes.recipe import build_arguments
from training.batches import iterate_batches
from training.build import build_run
from training.interruption import StopSignal
from training.loop import train
from training.run import Run
from training.watching import TRAINING_LOG, TrainLog, read_log


FIGURES = ("studies_per_second", "data_wait_share", "memory_gib")
WARM_ROUNDS, LEAST_ROUNDS = 3, 5


def write_base(folder: Path, config: AltaConfig) -> Path:
    """A base of random weights, as `convert_mrm` leaves one."""
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AltaForPreTraining(config)
    return export_full(model, build_processor(config, build_tokenizer()), folder)


def prepare_run(folder: Path, config: AltaConfig, num_studies: int, settings: dict[str, Any]) -> Run:
    """A run over made records that is ready to train."""
    split = write_records(folder / "records", num_studies)
    recipe = {
        "stage": "alta",
        "records": str(folder / "records"),
        "output_dir": str(folder / "run"),
        "base": str(write_base(folder / "base", config)),
        "split": split,
        "streaming": True,
        "num_epochs": 1,
        "log_every": 5,
        "log_with": None,
    }
    return build_run(build_arguments(recipe | settings))


def measure_workers(run: Run, num_rounds: int) -> float:
    """Studies per second that the workers give when nobody keeps them waiting, over rounds of a batch of each worker.

    The first batches are left out: two of each worker are made before the first is asked for.
    """
    batches, each = iterate_batches(run), max(1, run.args.num_workers)
    for _ in range(WARM_ROUNDS * each):
        next(batches)
    start = time.perf_counter()
    for _ in range(num_rounds * each):
        next(batches)
    return num_rounds * each * run.args.batch_size / (time.perf_counter() - start)


def measure_run(run: Run) -> dict[str, float]:
    """Medians of the log's lines after the first third."""
    with StopSignal() as stop, TrainLog(run) as log:
        train(run, log, stop)
    rows = read_log(Path(run.args.output_dir, TRAINING_LOG))
    rows = rows[len(rows) // 3 :]
    return {name: statistics.median(row[name] for row in rows) for name in FIGURES}


def main() -> None:
    parser = argparse.ArgumentParser(description="How much a GPU waits for data while training; prints JSON.")
    parser.add_argument("--num-studies", type=int, default=6144, help="studies of the run (default: 6144)")
    parser.add_argument("--batch-size", type=int, default=24, help="default: 24")
    parser.add_argument("--num-workers", type=int, default=max(1, (os.cpu_count() or 1) - 1), help="default: CPUs - 1")
    parser.add_argument("--precision", choices=("no", "fp16", "bf16"), default="bf16", help="default: bf16")
    parser.add_argument("--compile", action="store_true", help="with `torch_compile: true`")
    args = parser.parse_args()
    a_round = args.batch_size * max(1, args.num_workers)
    least = (WARM_ROUNDS + LEAST_ROUNDS) * a_round
    if args.num_studies < least:
        parser.error(
            f"`--num-studies` must be at least {least}, {WARM_ROUNDS + LEAST_ROUNDS} batches for each worker, "
            f"got {args.num_studies}"
        )
    settings = {
        "batch_size": args.batch_size,
        "num_workers": args.num_workers,
        "mixed_precision": args.precision,
        "torch_compile": args.compile,
    }
    with tempfile.TemporaryDirectory() as folder:
        config = AltaConfig(use_adapters=False, missing_views="skip")
        run = prepare_run(Path(folder), config, args.num_studies, settings)
        workers = measure_workers(run, num_rounds=args.num_studies // a_round - WARM_ROUNDS)
        result = settings | {"workers_studies_per_second": workers} | measure_run(run)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    print(json.dumps({"device": device, "cpus": os.cpu_count()} | result, indent=2))


if __name__ == "__main__":
    main()
