"""The settings of a training run: their names, types and checks, and the reader of the YAML files beside this one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

import yaml
from peft import get_peft_config

from modeling_alta import AltaConfig
from modeling_alta.classification_alta import PROBLEM_TYPES
from processing.batches.label_batch import UNLABELLED_AS


AT_LEAST = {
    "batch_size": 1,
    "gradient_accumulation_steps": 1,
    "num_epochs": 1,
    "warmup_epochs": 0,
    "num_workers": 0,
    "seed": 0,
    "log_every": 1,
    "checkpoint_every": 0,
    "keep_checkpoints": 1,
    "validate_every": 0,
    "validation_studies": 1,
}
DEFAULT_PEFT = {"peft_type": "ALTA_ADAPTER"}
STAGES = ("mrm", "alta", "adapt", "classify")
TUNINGS = ("full", "adapter", "linear_probe")


class RecipeError(ValueError):
    """A recipe that cannot be trained by, and why."""


@dataclass
class TrainArguments:
    """
    One recipe. Paths are relative to the folder in which the command runs.

    Args:
        stage (`str`): `"mrm"`, masked record modelling of single frontals; `"alta"`, adapters over a frozen base; or
            `"adapt"`, a new adapter over a trained model, for another hospital; or `"classify"`, a classifier of the
            records' labels over a trained tower.
        records (`str`): folder or Hub id of study records.
        output_dir (`str`): folder of the run.
        text_encoder (`str`): folder of a vocabulary and a BERT; the stage `mrm` reads its vocabulary alone.
        mae (`str`): MAE weights that start the vision tower of `mrm`; random weights by default.
        mrm (`str`): `MRM.pth`, or the `model/` that an `mrm` run left, which starts `alta` with `text_encoder`.
        base (`str`): a converted base, or a full model to put a new adapter over, which starts `alta` instead; in
            `classify` a full model, a base, or the `model/` of an `mrm` run.
        adapter (`str`): a trained adapter over `base`; `adapt` starts the new adapter as a copy of it.
        model (`dict`): fields of `AltaConfig`.
        peft (`dict`): `peft_type`, by default `"ALTA_ADAPTER"`, and fields of its PEFT config; none with `adapter`.
        tuning (`str`): what trains in `classify`: `"full"`, `"adapter"` (by `peft`) or `"linear_probe"`.
        labels (`list[str]`): what `classify` tells apart, by default every label of the split in sorted order; one
            at least must be there.
        problem_type (`str`): `"multi_label_classification"` or `"single_label_classification"`.
        unlabelled (`str`): a study without labels is `"left_out"`, or `"negative"` for all of them.
        vision_heads, decoder_heads (`int`): of a published `MRM.pth`.
        split (`str`): split of the records to train on.
        streaming (`bool`): read the records from their shards while training, instead of preparing the split first.
        augment (`bool`): augment radiographs and shuffle sentences.
        batch_size (`int`): studies that a process contrasts with each other and with those of the other processes.
        micro_batch_size (`int`): studies of one forward pass, by default all of `batch_size`. Fewer turn gradient
            caching on: the gradients are the same, memory is that of the fewer, and each forward pass runs twice.
        gradient_accumulation_steps (`int`): batches per optimizer step.
        num_epochs (`int`): where training stops.
        schedule_epochs (`int`): where the cosine reaches zero.
        warmup_epochs (`float`): length of the linear warm-up.
        base_learning_rate (`float`): times the effective batch / 256.
        weight_decay (`float`), betas (`list[float]`): of AdamW.
        max_gradient_norm (`float`): clip gradients to this norm; no clipping by default.
        mixed_precision (`str`): `"no"`, `"fp16"` or `"bf16"`.
        gradient_checkpointing (`bool`): recompute activations in the backward pass.
        torch_compile (`bool`): compile the blocks of both towers and of the decoder.
        num_workers (`int`): processes that prepare batches, for each training process; with 0 it does so itself.
        seed (`int`): decides initial weights, order, augmentation, masks and dropout.
        log_every (`int`): optimizer steps between two lines of the log.
        log_with (`str`): a tracker of accelerate, several with commas between them, or `null` for none.
        checkpoint_every (`int`): optimizer steps between two checkpoints, the last at the end; 0 for none but the one
            at SIGTERM.
        keep_checkpoints (`int`): the last ones stay.
        resume (`str`): a checkpoint folder, or `"latest"`, which starts anew where there is none.
        validate_every (`int`): optimizer steps between two validations, the first before training; 0 for none.
        validation_split (`str`): split to validate on.
        validation_studies (`int`): the first so many of it that could train.
        validation_prompts (`str`): JSON file of prompts, such as `eval/prompts/covid_cxr.json`, for zero-shot figures.
        best_metric (`str`): figure of the validation by which `best/` is chosen: by default the loss in `mrm`,
            `macro_auroc` in `classify`, and `text_to_image_recall_at_5` else.

    Raises:
        RecipeError: for a value out of range, or stages that lack what starts them.
    """

    stage: str
    records: str
    output_dir: str
    text_encoder: str | None = None
    mae: str | None = None
    mrm: str | None = None
    base: str | None = None
    adapter: str | None = None
    model: dict[str, Any] = field(default_factory=dict)
    peft: dict[str, Any] = field(default_factory=dict)
    tuning: str = "adapter"
    labels: list[str] | None = None
    problem_type: str = "multi_label_classification"
    unlabelled: str = "left_out"
    vision_heads: int | None = None
    decoder_heads: int = 6
    split: str = "train"
    streaming: bool = False
    augment: bool = True
    batch_size: int = 24
    micro_batch_size: int | None = None
    gradient_accumulation_steps: int = 1
    num_epochs: int = 30
    schedule_epochs: int = 100
    warmup_epochs: float = 10.0
    base_learning_rate: float = 1.5e-4
    weight_decay: float = 0.05
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    max_gradient_norm: float | None = None
    mixed_precision: str = "no"
    gradient_checkpointing: bool = False
    torch_compile: bool = False
    num_workers: int = 0
    seed: int = 0
    log_every: int = 10
    log_with: str | None = "tensorboard"
    checkpoint_every: int = 0
    keep_checkpoints: int = 2
    resume: str | None = None
    validate_every: int = 0
    validation_split: str = "validation"
    validation_studies: int = 1000
    validation_prompts: str | None = None
    best_metric: str | None = None

    def __post_init__(self):
        _check_one_of("stage", self.stage, STAGES)
        _check_one_of("tuning", self.tuning, TUNINGS)
        _check_one_of("problem_type", self.problem_type, PROBLEM_TYPES)
        _check_one_of("unlabelled", self.unlabelled, UNLABELLED_AS)
        _check_one_of("mixed_precision", self.mixed_precision, ("no", "fp16", "bf16"))
        for name, least in AT_LEAST.items():
            if getattr(self, name) < least:
                raise RecipeError(f"`{name}` must be at least {least}, got {getattr(self, name)}.")
        if len(self.betas) != 2:
            raise RecipeError(f"`betas` must be two numbers, got {self.betas}.")
        self._check_parts()
        if self.schedule_epochs < self.num_epochs:
            raise RecipeError(
                f"`schedule_epochs` must be at least `num_epochs` {self.num_epochs}, got {self.schedule_epochs}."
            )
        unknown = sorted(self.model.keys() - {setting.name for setting in fields(AltaConfig)})
        if unknown:
            raise RecipeError(f"`model` must hold fields of AltaConfig, got {unknown}.")
        self._check_start()
        self._check_peft()

    @property
    def parts_per_batch(self) -> int:
        """Forward passes that a batch of a process is split into."""
        return self.batch_size // (self.micro_batch_size or self.batch_size)

    @property
    def batches_per_step(self) -> int:
        """Forward passes of a process in an optimizer step, the second ones of gradient caching not counted."""
        return self.parts_per_batch * self.gradient_accumulation_steps

    def _check_parts(self):
        if self.micro_batch_size is None:
            return
        if self.micro_batch_size < 1 or self.batch_size % self.micro_batch_size:
            raise RecipeError(
                f"`micro_batch_size` must divide `batch_size` {self.batch_size}, got {self.micro_batch_size}."
            )
        if self.stage in ("mrm", "classify"):
            raise RecipeError(
                f"`micro_batch_size` is for contrast, which the stage {self.stage} has none of: take a smaller "
                f"`batch_size` and `gradient_accumulation_steps` instead, got {self.micro_batch_size}."
            )

    def _check_start(self):
        if self.text_encoder is None and (self.stage == "mrm" or self.mrm is not None):
            raise RecipeError("`text_encoder` must be the folder of a vocabulary and a BERT, got none.")
        if self.stage == "alta" and (self.mrm is None) == (self.base is None):
            raise RecipeError(
                f"Either `mrm` or `base` must start the stage alta, and the other be null, got mrm={self.mrm} and "
                f"base={self.base}."
            )
        if self.stage in ("adapt", "classify") and self.base is None:
            raise RecipeError(f"`base` must be the trained model that the stage {self.stage} starts from, got none.")
        if self.adapter is not None and self.base is None:
            raise RecipeError(f"`base` must be the model under `adapter` {self.adapter}, got none.")
        if self.adapter is not None and self.stage not in ("alta", "adapt"):
            raise RecipeError(f"`adapter` starts the stages alta and adapt alone, got {self.adapter} in {self.stage}.")

    def _check_peft(self):
        if self.adapter is not None:
            if self.peft not in ({}, DEFAULT_PEFT):
                raise RecipeError(f"`peft` must be empty where `adapter` {self.adapter} says it, got {self.peft}.")
            self.peft = {}
            return
        self.peft = {**DEFAULT_PEFT, **self.peft}
        try:
            get_peft_config(dict(self.peft))
        except KeyError as error:
            raise RecipeError(f"`peft_type` of `peft` must be a method of PEFT, got {error}.") from error
        except (TypeError, ValueError) as error:
            raise RecipeError(f"`peft` must hold fields of its config, got {self.peft}: {error}") from error


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> TrainArguments:
    """
    Read a recipe.

    Args:
        path (`str` or `Path`): a YAML file.
        overrides (sequence of `str`): `name=value`, where the value is YAML and a dotted name reaches into a mapping.

    Raises:
        RecipeError: for a file that is no recipe, a name that does not exist, or a value of another type.
    """
    try:
        settings = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise RecipeError(f"`path` must be a recipe in YAML, got {path}: {error}") from error
    if not isinstance(settings, dict):
        raise RecipeError(
            f"`path` must be a recipe of `name: value` lines, got {path} with {type(settings).__name__}."
        )
    for override in overrides:
        _apply(settings, override)
    return build_arguments(settings)


def build_arguments(settings: Mapping[str, Any]) -> TrainArguments:
    """Checked arguments from plain values.

    Raises:
        RecipeError: for a name that does not exist, one that is missing, or a value of another type.
    """
    known = {setting.name: setting for setting in fields(TrainArguments)}
    unknown = sorted(settings.keys() - known.keys())
    if unknown:
        raise RecipeError(f"A recipe must hold the keys {sorted(known)}, got {unknown}.")
    missing = [name for name in ("stage", "records", "output_dir") if settings.get(name) is None]
    if missing:
        raise RecipeError(f"A recipe must hold `stage`, `records` and `output_dir`, got none for {missing}.")
    return TrainArguments(**{name: _convert(name, value, known[name].type) for name, value in settings.items()})


def _apply(settings: dict[str, Any], override: str) -> None:
    name, separator, value = override.partition("=")
    if not separator:
        raise RecipeError(f"`overrides` must have the form name=value, got {override!r}.")
    *parents, last = name.split(".")
    for parent in parents:
        settings = settings.setdefault(parent, {})
        if not isinstance(settings, dict):
            raise RecipeError(f"`{parent}` must be a mapping to have a field, got {settings!r} and {override!r}.")
    try:
        settings[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise RecipeError(f"`overrides` must have values in YAML, got {override!r}: {error}") from error


def _convert(name: str, value: Any, kind: Any) -> Any:
    """The value in the type of its field; YAML reads `1e-4` as text, `1` as an integer and `no` as false."""
    if name == "mixed_precision" and value is False:
        return "no"
    may_be_none = isinstance(kind, UnionType)
    if value is None and may_be_none:
        return None
    kind = get_args(kind)[0] if may_be_none else kind
    expected = get_origin(kind) or kind
    if expected is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError as error:
            raise RecipeError(f"`{name}` must be a number, got {value!r}.") from error
    if not isinstance(value, expected) or (expected is int and isinstance(value, bool)):
        raise RecipeError(f"`{name}` must be of type {expected.__name__}, got {value!r}.")
    return value


def _check_one_of(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise RecipeError(f"`{name}` must be one of {list(allowed)}, got {value!r}.")


__all__ = ["STAGES", "RecipeError", "TrainArguments", "build_arguments", "read_recipe"]
