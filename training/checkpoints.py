"""Checkpoints: written aside and renamed, and checked before they are read."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list, gather_object

from training.best import put_best_into, restore_best
from training.disk import UNFINISHED, flush, try_to
from training.run import Run


MANIFEST_NAME = "manifest.json"


def save_checkpoint(run: Run) -> Path | None:
    """
    Write a checkpoint of this step; the last `keep_checkpoints` stay.

    Returns:
        `Path` of the checkpoint, or `None`, after a warning, if it could not be written: those before stay.
    """
    folder = Path(run.args.output_dir, "checkpoints")
    unfinished, final = folder / UNFINISHED, folder / f"step_{run.progress.step:08d}"
    if run.accelerator.is_main_process:
        shutil.rmtree(unfinished, ignore_errors=True)
    run.accelerator.wait_for_everyone()
    error = try_to(lambda: run.accelerator.save_state(str(unfinished)))
    errors = [error for error in gather_object([error]) if error]
    if run.accelerator.is_main_process and not errors:
        errors = [error for error in [try_to(lambda: _finish(run, unfinished, final))] if error]
    errors = [error for error in gather_object([errors[:1]]) if error]
    if errors:
        _give_up(run, unfinished, errors[0])
        return None
    return final


def resume(run: Run) -> None:
    """
    Go on from the checkpoint that the recipe names, or anew if there is none.

    Raises:
        FileNotFoundError: if `resume` names a folder that is not there.
        ValueError: if the checkpoint is broken, or belongs to other studies, another batch or another base; if there
            are checkpoints, and `resume` does not say what to do with them.
    """
    if run.args.resume is None:
        _check_unused(Path(run.args.output_dir))
        return
    path = _agreed_path(run)
    if path is None:
        run.accelerator.print("No checkpoint to resume from: starting anew.")
        return
    _check_identity(run, path)
    run.accelerator.load_state(str(path))
    restore_best(run, path)
    if run.accelerator.is_main_process and path.resolve().parent == Path(run.args.output_dir, "checkpoints").resolve():
        # The last one again, if the run went back to it.
        error = try_to(lambda: _write_manifest(path, _read_manifest(path)))
        if error:
            warnings.warn(f"{path} could not be marked as the last checkpoint: {error}.", stacklevel=2)
    run.accelerator.print(f"Resumed from {path}.")


def _agreed_path(run: Run) -> Path | None:
    """The checkpoint that the main process chooses, which every process must see whole."""
    path = None if run.args.resume == "latest" else Path(run.args.resume)
    if path is None and run.accelerator.is_main_process:
        path = find_checkpoint(run.args.output_dir)
    path = broadcast_object_list([path])[0]
    if path is None:
        return None
    if not all(gather_object([path.is_dir()])):
        raise FileNotFoundError(
            f"`resume` must be 'latest' or a checkpoint folder, got {path}, which does not exist for every process."
        )
    problems = [problem for problem in gather_object([find_damage(path)]) if problem]
    if problems:
        raise ValueError(f"`resume` must be a whole checkpoint, got {path}: {problems[0]}.")
    return path


def find_checkpoint(output_dir: str | Path) -> Path | None:
    """The whole checkpoint that a run wrote last, or went back to; one that is not whole is skipped with a warning."""
    folder = Path(output_dir, "checkpoints")
    if (folder / UNFINISHED).exists():
        warnings.warn(f"Skipped {folder / UNFINISHED}: the run ended while it was written.", stacklevel=2)
    for path in reversed(_by_age(folder)):
        problem = find_damage(path)
        if problem is None:
            return path
        warnings.warn(f"Skipped the checkpoint {path}: {problem}.", stacklevel=2)
    return None


def find_damage(path: Path) -> str | None:
    """What is wrong with a checkpoint: a file of its manifest that is missing or of another size."""
    try:
        files = _read_manifest(path)["files"]
    except (OSError, ValueError, KeyError):
        return f"it has no readable {MANIFEST_NAME}"
    for name, size in files.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes, not {size}"
    return None


def _finish(run: Run, unfinished: Path, final: Path) -> None:
    put_best_into(run, unfinished)
    files = sorted(path for path in unfinished.rglob("*") if path.is_file())
    manifest = {"files": {str(file.relative_to(unfinished)): file.stat().st_size for file in files}}
    for file in files:
        flush(file)
    _write_manifest(unfinished, manifest | run.identity())
    shutil.rmtree(final, ignore_errors=True)
    unfinished.rename(final)
    flush(final.parent)
    for old in _by_age(final.parent)[: -run.args.keep_checkpoints]:
        shutil.rmtree(old)


def _by_age(folder: Path) -> list[Path]:
    """Checkpoints in the order in which they were written, which is not that of their steps if a run went back."""
    return sorted(folder.glob("step_*"), key=lambda path: (_number(path), path.name))


def _number(path: Path) -> int:
    """A checkpoint's place in that order, 0 if it is damaged. No time, since the clocks of two nodes may differ."""
    try:
        return _read_manifest(path)["number"]
    except (OSError, ValueError, KeyError):
        return 0


def _read_manifest(path: Path) -> dict[str, Any]:
    return json.loads((path / MANIFEST_NAME).read_text(encoding="utf-8"))


def _write_manifest(path: Path, manifest: dict[str, Any]) -> None:
    number = 1 + max(map(_number, path.parent.glob("step_*")), default=0)
    unfinished = path / f"{MANIFEST_NAME}.{UNFINISHED}"
    unfinished.write_text(json.dumps(manifest | {"number": number}, indent=2), encoding="utf-8")
    flush(unfinished)
    unfinished.rename(path / MANIFEST_NAME)


def _give_up(run: Run, unfinished: Path, error: str) -> None:
    if run.accelerator.is_main_process:
        shutil.rmtree(unfinished, ignore_errors=True)
        warnings.warn(f"No checkpoint at step {run.progress.step}, those before are untouched: {error}.", stacklevel=3)
    run.accelerator.wait_for_everyone()


def _check_unused(output_dir: Path) -> None:
    found = _by_age(output_dir / "checkpoints")
    if found:
        raise ValueError(
            f"`resume` must be 'latest' or a checkpoint where there are some, got none, and {found[-1]} is there. "
            "Remove `checkpoints` or take another `output_dir` to start anew."
        )


def _check_identity(run: Run, path: Path) -> None:
    manifest = _read_manifest(path)
    for name, value in run.identity().items():
        if manifest.get(name) != value:
            raise ValueError(
                f"`resume` must be a checkpoint of the same run, got {path}, whose `{name}` was "
                f"{manifest.get(name)!r} and is {value!r} now."
            )


__all__ = ["find_checkpoint", "find_damage", "resume", "save_checkpoint"]
