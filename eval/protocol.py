"""What every protocol shares: its command line, the model and records it loads, and the head of its JSON."""

import argparse
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoProcessor

from eval.bootstrap import number_patients
from modeling_alta import fold_adapters  # importing it registers the model with AutoModel and AutoProcessor
from modeling_alta.export_alta import without_copies
from processing.records.study_records import load_study_records


@dataclass(frozen=True)
class RunOptions:
    """
    How a protocol is run on a split of study records.

    Args:
        model_id, records_name (`str`): written into the result: a Hub id, or a folder, of which the last part is kept.
        split (`str`): written into the result.
        batch_size (`int`): studies per forward pass.
        bootstrap_samples, seed (`int`): of the 95 % intervals.
    """

    model_id: str
    records_name: str
    split: str
    batch_size: int = 16
    bootstrap_samples: int = 1000
    seed: int = 0

    @classmethod
    def from_arguments(cls, args: argparse.Namespace) -> "RunOptions":
        """Those of a protocol's command."""
        return cls(args.model, args.records, args.split, args.batch_size, args.bootstrap_samples, args.seed)

    @property
    def bootstrap(self) -> dict[str, int]:
        """Arguments of the metrics."""
        return {"bootstrap_samples": self.bootstrap_samples, "seed": self.seed}


def protocol_parser(module: str, description: str) -> argparse.ArgumentParser:
    """The arguments that every protocol's command takes."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    parser.add_argument("--model", required=True, help="Hub folder or Hub id of the model, full or adapter")
    parser.add_argument("--records", required=True, help="folder of study records")
    parser.add_argument("--split", default="test", help="split of the records (default: test)")
    parser.add_argument("--output", required=True, type=file_to_write, help="JSON file to write")
    parser.add_argument("--batch-size", type=positive_int, default=16, help="studies per forward pass (default: 16)")
    parser.add_argument(
        "--bootstrap-samples", type=positive_int, default=1000, help="for the intervals (default: 1000)"
    )
    parser.add_argument("--seed", type=seed_number, default=0, help="of the bootstrap (default: 0)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where to run")
    return parser


def positive_int(text: str) -> int:
    """An `argparse` type."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, got {text!r}")
    return int(text)


def seed_number(text: str) -> int:
    """An `argparse` type."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be an integer of at least 0, got {text!r}")
    return int(text)


def file_to_write(text: str) -> Path:
    """An `argparse` type: told before the hours that come before the writing."""
    if Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"must be a file, got the folder {text!r}")
    return Path(text)


@contextmanager
def argument_errors(parser: argparse.ArgumentParser) -> Iterator[None]:
    """Turn an error about an input of the command into a message and exit status 2."""
    try:
        yield
    except (OSError, ValueError) as error:
        parser.error(str(error))


def load_model(name: str, device: str = "cpu") -> tuple[Any, Any]:
    """The model of a Hub folder or id in evaluation mode on `device`, and its processor.

    A full model comes in its inference form; PEFT adapters over a base stay what they are.

    Raises:
        ValueError: a folder or id of no model, or of a model that does not align studies with reports.
    """
    try:
        model, info = AutoModel.from_pretrained(name, output_loading_info=True)
        processor = AutoProcessor.from_pretrained(name)
    except (OSError, RuntimeError, ValueError) as error:  # a RuntimeError: an adapter over a base of other sizes
        raise ValueError(
            f"`model` must be a Hub folder or a Hub id of an ALTA model, got {name!r}: {error}"
        ) from error
    # An adapter that makes a base a classifier lacks nothing, but its classifier is left over.
    missing, left_over = untrained_parameters(model, info), sorted(info["unexpected_keys"])
    if missing or left_over:
        raise ValueError(
            f"`model` must be an aligned model, got {name!r} without {missing[:2]} and with {left_over[:2]}."
        )
    if not getattr(model, "peft_config", None):
        model = fold_adapters(model.eval())
    return model.to(device).eval(), processor


def untrained_parameters(model: Any, info: dict[str, Any]) -> list[str]:
    """
    Parameters that hold what the start drew by chance, since no file has them.

    Args:
        model (`PreTrainedModel`): as `from_pretrained` gave it, full or adapters over a base.
        info (`dict`): the loading info that came with it: of adapters it tells nothing about their base.

    Returns:
        `list` of `str`: names in order; of a base without adapters those that no adapter has a copy of.
    """
    missing = set(info["missing_keys"])
    for config in getattr(model, "peft_config", {}).values():
        base = {"revision": config.revision, "device_map": "meta", "output_loading_info": True}
        _, of_base = type(model).from_pretrained(config.base_model_name_or_path, **base)
        missing |= set(without_copies(model, of_base["missing_keys"]))
    return sorted(missing)


def patients_of(records: Any) -> list[str]:
    """
    The patient of every record, over whom the intervals are.

    Raises:
        ValueError: a record without one.
    """
    patients = list(records["patient_id"])
    number_patients(patients, len(patients))
    return patients


def load_records(path: str, split: str) -> Any:
    """The study records of one split, at least one."""
    records = load_study_records(path, split)
    if not len(records):
        raise ValueError(f"`split` must be one with study records, got {split!r}, which has none in {path}.")
    return records


def check_labels(labels: Sequence[Sequence[str] | None]) -> None:
    """Raise a `ValueError` unless a study has a label."""
    if not any(labels):
        raise ValueError(f"`labels` must hold at least one study with a label, got none among {len(labels)} studies.")


def describe_run(
    protocol: dict[str, str], options: RunOptions, study_ids: list[str], processor: Any
) -> dict[str, Any]:
    """
    The head of a protocol's JSON: what was measured, on what.

    Args:
        protocol (`dict`): `name` and `version`.
        options ([`RunOptions`]): whose names are written.
        study_ids (`list` of `str`): the studies of the split.
        processor (`AltaProcessor`): whose image settings are hashed.

    Returns:
        `dict` of `protocol`, `model`, `records`, `split`, `n`, `study_ids_sha256`, `preprocessing_sha256`.
    """
    return {
        "protocol": dict(protocol),
        "model": _public_name(options.model_id),
        "records": _public_name(options.records_name),
        "split": options.split,
        "n": len(study_ids),
        "study_ids_sha256": study_ids_sha256(study_ids),
        "preprocessing_sha256": preprocessing_sha256(processor),
    }


def study_ids_sha256(study_ids: Iterable[str]) -> str:
    """Hash of a set of studies, whatever their order."""
    return hashlib.sha256("\n".join(sorted(map(str, study_ids))).encode()).hexdigest()


def preprocessing_sha256(processor: Any) -> str:
    """Hash of the image processor's settings: equal for two models that see a radiograph in the same way."""
    settings = {key: value for key, value in processor.image_processor.to_dict().items() if _is_setting(key)}
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()


def write_json(results: dict[str, Any], path: str | Path) -> None:
    """Write `results` with an indent of two; NaN is refused, since it is not JSON."""
    path = Path(path)
    text = json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n", encoding="utf-8")


def _is_setting(key: str) -> bool:
    return not key.startswith("_") and key not in ("auto_map", "device", "processor_class", "transformers_version")


def _public_name(name: str) -> str:
    # A folder's full path says where it lay on one machine; a Hub id says what it is.
    return Path(name).resolve().name if Path(name).exists() else name


__all__ = [
    "RunOptions",
    "argument_errors",
    "check_labels",
    "describe_run",
    "load_model",
    "load_records",
    "patients_of",
    "positive_int",
    "preprocessing_sha256",
    "protocol_parser",
    "study_ids_sha256",
    "untrained_parameters",
    "write_json",
]
