"""What a run's folder says of it: `recipe.yaml`, `run.json`, and `metrics.json`, from which the card is filled."""

import importlib.metadata
import json
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml

from eval.protocol import preprocessing_sha256, write_json
from training.best import BEST_NAME
from training.run import Run
from training.stage import count_parameters


PACKAGES = ("accelerate", "datasets", "peft", "safetensors", "timm", "torch", "torchvision", "transformers")


def describe_start(run: Run) -> dict[str, Any]:
    """What the run is made of: recipe, records, versions, code, machine."""
    return {
        "recipe": {name: value for name, value in asdict(run.args).items() if value is not None},
        "seed": run.args.seed,
        "processes": run.accelerator.num_processes,
        "engine": run.accelerator.distributed_type.value,
        "device": describe_device(run.accelerator.device),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "python": sys.version.split()[0],
        "git": describe_commit(),
        "records_fingerprint": run.records_fingerprint,
        "studies": len(run.studies),
        "studies_per_step": run.studies_per_step,
        "total_steps": run.total_steps,
    }


def write_start(run: Run) -> None:
    """Write `recipe.yaml`, which `--config` takes again, and `run.json`; what only a run at its end has goes."""
    folder = Path(run.args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").unlink(missing_ok=True)
    if not run.progress.best:
        shutil.rmtree(folder / BEST_NAME, ignore_errors=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(asdict(run.args), sort_keys=False), encoding="utf-8")
    write_json(describe_start(run), folder / "run.json")


def write_metrics(run: Run, training: dict[str, float], best: dict[str, Any]) -> None:
    """Write `metrics.json` of a finished run: the last line of its log, and what is said of its best weights."""
    summary = Path(run.args.records, "summary.json")
    start = describe_start(run)
    start["recipe"] = without_places(start["recipe"])
    metrics = {
        "run": start | {"steps": run.progress.step, "skipped_records": run.progress.skipped},
        "parameters": count_parameters(run.unwrapped),
        "training": training,
        "validation": best,
        "records": json.loads(summary.read_text(encoding="utf-8")) if summary.is_file() else {},
        "preprocessing_sha256": preprocessing_sha256(run.processor),
    }
    write_json(metrics, Path(run.args.output_dir, "metrics.json"))


def without_places(recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe with the last part alone of every path that exists: a card must not tell where things lay."""
    return {
        name: Path(value).name if isinstance(value, str) and Path(value).exists() else value
        for name, value in recipe.items()
    }


def describe_commit() -> dict[str, Any] | None:
    """Commit of the code, and whether files differ from it; `None` where git cannot tell."""

    def git(*words: str) -> str:
        root = Path(__file__).parent.parent
        return subprocess.run(("git", *words), cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "is_changed": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.CalledProcessError):
        return None


def describe_device(device: torch.device) -> str:
    """Name of the accelerator, or the CPU with its threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"


__all__ = ["describe_commit", "describe_start", "write_metrics", "write_start"]
