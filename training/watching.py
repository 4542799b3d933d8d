"""What a run tells while it goes: `training_log.jsonl`, `validation_log.jsonl`, the tracker and a bar."""

import json
import resource
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import torch
from accelerate import Accelerator
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING
from torch import nn
from tqdm import tqdm

from training.disk import UNFINISHED, try_to
from training.run import Run
from training.stage import trained_parameters


TRAINING_LOG = "training_log.jsonl"
VALIDATION_LOG = "validation_log.jsonl"
PLACE = ("step", "epoch")


class TrainLog:
    """
    Means over the steps since the last line, every `log_every` steps.

    A line holds the losses, gradient norm, learning rate and scales, the norm of the adapters, studies per second of
    all processes, the share of the time in which they waited for data, and memory in GiB: the peak of the accelerator,
    or of the process where there is none. In float16, `overflow_share` of the steps were skipped by the scaler.
    """

    def __init__(self, run: Run):
        self.run = run
        self.folder = Path(run.args.output_dir)
        self.seconds = self.waited = 0.0
        self.steps = 0
        self.is_tracked = True
        self.bar = tqdm(
            desc=f"Stage {run.args.stage}",
            total=run.total_steps,
            initial=run.progress.step,
            unit="step",
            disable=not run.accelerator.is_local_main_process,
        )
        if run.accelerator.is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
            _keep_rows_until(self.folder / TRAINING_LOG, run.progress.step)
            _keep_rows_until(self.folder / VALIDATION_LOG, run.progress.validated)
        rows = read_log(self.folder / TRAINING_LOG) if run.progress.step else []
        self.last = {name: rows[-1][name] for name in rows[-1].keys() - set(PLACE)} if rows else {}

    def __enter__(self) -> "TrainLog":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.bar.close()

    def add_step(self, figures: dict[str, float]) -> None:
        """Count the figures of a step, and write a line if it is due."""
        figures = dict(figures)
        self.waited += figures.pop("waited")
        self.seconds += figures.pop("seconds")
        self.steps += 1
        sums = self.run.progress.sums
        for name in figures.keys() - {"stopped", "skipped"}:
            sums[name] = sums.get(name, 0.0) + figures[name]
        sums["count"] = sums.get("count", 0) + 1
        self.bar.update()
        if self.run.progress.step % self.run.args.log_every == 0 or self.run.progress.step == self.run.total_steps:
            self._write_line()

    def add_validation(self, figures: dict[str, float]) -> None:
        """Write the figures of a validation."""
        self._write(VALIDATION_LOG, figures)
        self._track({f"validation/{name}": value for name, value in figures.items()})

    def _write_line(self) -> None:
        run, sums = self.run, self.run.progress.sums
        count = sums.pop("count")
        row = {name: total / count for name, total in sorted(sums.items())}
        run.progress.sums = {}
        row |= {
            "learning_rate": run.scheduler.get_last_lr()[0],
            "studies_per_second": self.steps * run.studies_per_step / self.seconds,
            "data_wait_share": self.waited / self.seconds,
            "memory_gib": peak_memory(run.accelerator.device),
        }
        norm = adapter_norm(run.unwrapped)
        row |= {} if norm is None else {"adapter_norm": norm}
        self.seconds, self.waited, self.steps = 0.0, 0.0, 0
        self.last = row
        self._write(TRAINING_LOG, row)
        self._track(row)
        self.bar.set_postfix(loss=f"{row['loss']:.3f}")

    def _write(self, name: str, row: dict[str, float]) -> None:
        if self.run.accelerator.is_main_process:
            place = {key: getattr(self.run.progress, key) for key in PLACE}
            try:
                with (self.folder / name).open("a", encoding="utf-8") as file:
                    file.write(json.dumps(place | row) + "\n")
            except OSError as error:  # a full disk: the run is worth more than a line
                warnings.warn(f"No line of {name} at step {place['step']}: {error}.", stacklevel=3)

    def _track(self, row: dict[str, float]) -> None:
        if self.is_tracked:
            step = self.run.progress.step
            error = try_to(lambda: self.run.accelerator.log(row, step=step))
            if error:  # as of a full disk, or a server that is gone: the run is worth more than its curves
                self.is_tracked = False
                warnings.warn(f"The tracker gets nothing more, from step {step} on: {error}.", stacklevel=3)


def end_tracking(accelerator: Accelerator) -> None:
    """Close trackers and the connections of the processes; a tracker that fails ends no run that has succeeded."""
    error = try_to(accelerator.end_training)
    if error:
        warnings.warn(f"The tracker may lack its last lines: {error}.", stacklevel=2)


@torch.no_grad()
def adapter_norm(model: nn.Module) -> float | None:
    """L2 norm of the parameters that PEFT added, or `None` without any: how far they are from doing nothing."""
    if not hasattr(model, "peft_config"):
        return None
    prefixes = tuple(PEFT_TYPE_TO_PREFIX_MAPPING[config.peft_type] for config in model.peft_config.values())
    added = [value for name, value in trained_parameters(model).items() if any(part in name for part in prefixes)]
    norms = [_whole(torch.linalg.vector_norm(value.float())) for value in added]
    return torch.stack(norms).norm().item() if norms else None


def peak_memory(device: torch.device) -> float:
    """GiB that the accelerator held at most, or the process, where `device` is the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    # In kilobytes, but in bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def read_log(path: str | Path) -> list[dict[str, float]]:
    """The lines of a log, in their order; a file that is not there has none, and a line cut off by a kill or a full
    disk does not count."""
    path, rows = Path(path), []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        with suppress(ValueError):
            rows.append(json.loads(line))
    return rows


def _keep_rows_until(path: Path, step: int) -> None:
    kept = [row for row in read_log(path) if row["step"] <= step]
    unfinished = path.with_name(f"{path.name}.{UNFINISHED}")
    unfinished.write_text("".join(f"{json.dumps(row)}\n" for row in kept), encoding="utf-8")
    unfinished.rename(path)


def _whole(value: torch.Tensor) -> torch.Tensor:
    return value.full_tensor() if hasattr(value, "full_tensor") else value


__all__ = ["TRAINING_LOG", "VALIDATION_LOG", "TrainLog", "adapter_norm", "end_tracking", "peak_memory", "read_log"]
