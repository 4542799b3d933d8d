"""What a stage of training decides: its model, its batches, how it is judged, and what it leaves."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import torch
from accelerate import Accelerator
from torch import nn

from modeling_alta import AltaConfig, AltaProcessor
from modeling_alta.configuration_alta import VIEW_NAMES
from processing.batches.augmentation import StudyTransform
from processing.batches.training_batch import TrainingStudies, read_view
from processing.records.record_stream import RecordStream
from processing.records.study_records import load_study_records
from recipes.recipe import TrainArguments


if TYPE_CHECKING:
    from training.run import Run


Records = datasets.Dataset | RecordStream


class Stage(ABC):
    """
    One stage; its methods are called in this order.

    `metric` names the figure of `validate` by which the best checkpoint is chosen, unless the recipe names another;
    `lower_is_better` are the figures of which less is better.
    """

    metric: str
    lower_is_better: tuple[str, ...] = ()

    @abstractmethod
    def build_model(self, args: TrainArguments, accelerator: Accelerator) -> tuple[nn.Module, AltaProcessor]:
        """The model with the parameters that train set to require gradients, and its processor."""

    @abstractmethod
    def build_studies(
        self, args: TrainArguments, config: AltaConfig, processor: AltaProcessor, records: Records, augment: bool
    ) -> tuple[TrainingStudies, Any]:
        """The samples of the records and the collator that makes batches of them."""

    @abstractmethod
    def validate(self, run: "Run") -> dict[str, float]:
        """Figures on the validation split, the same on every process; called by all of them."""

    @abstractmethod
    def export(self, run: "Run", model: nn.Module, folder: Path) -> None:
        """Write what the stage was for into `folder`; `model` is unwrapped and may be changed."""


def validation_records(run: "Run") -> datasets.Dataset:
    """
    The first `validation_studies` records of the validation split that the stage could train on, none decoded yet.

    Raises:
        ValueError: if there is none.
    """
    args, config = run.args, base_config(run.unwrapped)
    records = load_study_records(args.records, args.validation_split)
    try:
        studies, _ = run.stage.build_studies(args, config, run.processor, records, augment=False)
    except ValueError as error:
        raise ValueError(f"`validation_split` {args.validation_split!r} cannot be validated on: {error}") from error
    return records.select(studies.positions[: args.validation_studies])


def read_studies(records: datasets.Dataset) -> Iterator[dict[str, Any]]:
    """
    Records with the radiographs of their views read, one after the other.

    Raises:
        [`UnreadableStudyError`]: a `ValueError` that names the study and the view.
    """
    for view in VIEW_NAMES:
        records = records.cast_column(view, datasets.Image(decode=False))
    for record in records:
        yield record | {view: read_view(record, view) for view in VIEW_NAMES}


def study_transform(config: AltaConfig, augment: bool) -> StudyTransform:
    """The transform that makes the image inputs of a model with this config."""
    return StudyTransform(config.vision_config.image_size, config.target_image_size, do_augment=augment)


def training_records(args: TrainArguments) -> Records:
    """The records to train on: prepared on the disk, or read from their shards while training."""
    read = RecordStream if args.streaming else load_study_records
    return read(args.records, args.split)


def base_config(model: nn.Module) -> AltaConfig:
    """Config of the model under PEFT's wrapper, or of the model itself."""
    return model.get_base_model().config if hasattr(model, "get_base_model") else model.config


def base_folder(args: TrainArguments) -> str:
    """Where the frozen base lies: absolute for a folder, so that the adapter finds it from anywhere."""
    if args.base is not None:
        return str(Path(args.base).resolve()) if Path(args.base).exists() else args.base
    return str(Path(args.output_dir, "base").resolve())


def count_parameters(model: nn.Module) -> dict[str, int | float]:
    """Trained parameters and all of the model; the untrained copies that PEFT keeps aside are not part of it."""
    counted = [parameter for name, parameter in model.named_parameters() if ".original_module." not in name]
    trainable = sum(parameter.numel() for parameter in counted if parameter.requires_grad)
    total = sum(parameter.numel() for parameter in counted)
    return {"total": total, "trainable": trainable, "trainable_share": trainable / total}


def trained_parameters(model: nn.Module) -> dict[str, torch.nn.Parameter]:
    """The parameters that train, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


__all__ = [
    "Records",
    "Stage",
    "base_config",
    "base_folder",
    "count_parameters",
    "read_studies",
    "study_transform",
    "trained_parameters",
    "training_records",
    "validation_records",
]
