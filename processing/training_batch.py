"""Study records to training batches: one dataset for both stages, one collator for each."""

from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from modeling_alta.configuration_alta import VIEW_NAMES, AltaConfig
from modeling_alta.radiograph_alta import read_radiograph
from processing.augmentation import StudyTransform
from processing.report_masking import mask_report, shuffle_sentences


def sample_generator(seed: int, epoch: int, index: int) -> torch.Generator:
    """Random source of one sample in one epoch, the same on every worker, process and machine.

    Args:
        seed, epoch, index (`int`): the run's seed, the epoch, and the sample's position in the records; from 0 up.
    """
    state = np.random.SeedSequence([seed, epoch, index]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


def select_current_frontals(records: datasets.Dataset) -> datasets.Dataset:
    """Keep the records that have a current frontal, the only ones that the MRM stage can train on."""
    kept = records.with_format("arrow").filter(
        lambda table: table["current_frontal"].is_valid().to_pylist(), batched=True
    )
    return kept.with_format(None)


class TrainingStudies(torch.utils.data.Dataset):
    """
    Study records as training samples, augmented by what `(seed, epoch, index)` alone decides.

    Args:
        records (`datasets.Dataset`): study records with `study_id`, `report` and the four image columns.
        transform ([`StudyTransform`]): prepares the radiographs; its `do_augment` also decides whether the sentences
            of the report are shuffled.
        seed (`int`, defaults to 0): the run's seed.
        views (`Sequence[str]`, defaults to all four): the views to read; `("current_frontal",)` for the MRM stage.

    Raises:
        `ValueError`: no records, a column that is missing, an unknown view; and, when a sample is taken, a radiograph
            that cannot be read (with its study and view) or a record without a report.
    """

    def __init__(
        self,
        records: datasets.Dataset,
        transform: StudyTransform,
        seed: int = 0,
        views: Sequence[str] = VIEW_NAMES,
    ):
        _check_records(records, views)
        for name in views:
            records = records.cast_column(name, datasets.Image(decode=False))
        self.records = records.select_columns(["study_id", "report", *views])
        self.transform = transform
        self.seed = seed
        self.views = tuple(views)
        # Shared, so that workers that outlive an epoch see the next one.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, counted from 0, whose random draws the samples get."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One sample: the tensors of [`StudyTransform`], `study_id`, `report`, and `mask_seed` for the collator."""
        record = self.records[index]
        study_id, report = record["study_id"], record["report"]
        if not (report and report.strip()):
            raise ValueError(f"`report` of study {study_id!r} must hold text, got {report!r}.")
        generator = sample_generator(self.seed, int(self._epoch), range(len(self))[index])
        sample = self.transform({name: _read_view(record, name) for name in self.views}, generator)
        if self.transform.do_augment:
            report = shuffle_sentences(report, generator)
        mask_seed = int(torch.randint(2**62, (), generator=generator))
        return {**sample, "study_id": study_id, "report": report, "mask_seed": mask_seed}


class AltaCollator:
    """
    Joins samples of [`TrainingStudies`] into a batch for [`AltaForPreTraining`].

    Args:
        processor_or_tokenizer ([`AltaProcessor`] or `PreTrainedTokenizerBase`): tokenizes the reports.
        config ([`AltaConfig`]): its `max_report_length` and `report_mask_ratio` are used.
    """

    def __init__(self, processor_or_tokenizer: ProcessorMixin | PreTrainedTokenizerBase, config: AltaConfig):
        self.tokenizer = _get_tokenizer(processor_or_tokenizer)
        self.max_report_length = config.max_report_length
        self.report_mask_ratio = config.report_mask_ratio

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Build the batch.

        Returns:
            `dict` with
            - **input_ids**, **attention_mask** (`torch.LongTensor` of shape `(batch, num_tokens)`) -- the reports,
              padded to the longest of the batch.
            - **masked_input_ids**, **labels** (`torch.LongTensor` of the same shape) -- see `mask_report`.
            - **pixel_values** (`torch.FloatTensor` of shape `(batch, 4, 3, image_size, image_size)`)
            - **view_mask** (`torch.BoolTensor` of shape `(batch, 4)`)
            - **target_pixel_values** (`torch.FloatTensor` of shape `(batch, 3, target_size, target_size)`)
            - **study_id** (`list[str]`)
        """
        batch = encode_reports(self.tokenizer, samples, self.max_report_length, self.report_mask_ratio)
        for name in ("pixel_values", "view_mask", "target_pixel_values"):
            batch[name] = torch.stack([sample[name] for sample in samples])
        return {**batch, "study_id": [sample["study_id"] for sample in samples]}


class MrmCollator:
    """
    Joins samples of [`TrainingStudies`] into a batch for masked record modelling of single current frontals (MRM,
    section 3).

    Args:
        processor_or_tokenizer ([`AltaProcessor`] or `PreTrainedTokenizerBase`): tokenizes the reports.
        max_report_length (`int`, defaults to 100): tokens of a report, special tokens included.
        report_mask_ratio (`float`, defaults to 0.5): share of the report tokens to mask.
    """

    def __init__(
        self,
        processor_or_tokenizer: ProcessorMixin | PreTrainedTokenizerBase,
        max_report_length: int = 100,
        report_mask_ratio: float = 0.5,
    ):
        self.tokenizer = _get_tokenizer(processor_or_tokenizer)
        self.max_report_length = max_report_length
        self.report_mask_ratio = report_mask_ratio

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Build the batch.

        Returns:
            `dict` with
            - **masked_input_ids**, **attention_mask**, **labels** (`torch.LongTensor` of shape `(batch, num_tokens)`)
            - **pixel_values** (`torch.FloatTensor` of shape `(batch, 3, image_size, image_size)`)
            - **target_pixel_values** (`torch.FloatTensor` of shape `(batch, 3, target_size, target_size)`)
            - **study_id** (`list[str]`)

        Raises:
            `ValueError`: a study without a current frontal; `select_current_frontals` leaves those out.
        """
        study_ids = [sample["study_id"] for sample in samples]
        absent = [name for name, sample in zip(study_ids, samples, strict=True) if not sample["view_mask"][0]]
        if absent:
            raise ValueError(f"`samples` must all have a `current_frontal`, got the studies {absent} without one.")
        batch = encode_reports(self.tokenizer, samples, self.max_report_length, self.report_mask_ratio)
        del batch["input_ids"]
        batch["pixel_values"] = torch.stack([sample["pixel_values"][0] for sample in samples])
        batch["target_pixel_values"] = torch.stack([sample["target_pixel_values"] for sample in samples])
        return {**batch, "study_id": study_ids}


def encode_reports(
    tokenizer: PreTrainedTokenizerBase, samples: list[dict[str, Any]], max_report_length: int, report_mask_ratio: float
) -> dict[str, torch.Tensor]:
    """Tokenize, mask and pad the reports of a batch; each report's own seed decides what is masked.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): has a mask and a padding token.
        samples (`list[dict]`): with `report` and `mask_seed`.
        max_report_length (`int`): longest report in tokens, special tokens included; the rest is cut off.
        report_mask_ratio (`float`): share of the ordinary tokens to mask.

    Returns:
        `dict` of `input_ids`, `attention_mask`, `masked_input_ids` and `labels`, each of shape `(batch, num_tokens)`.
    """
    encoded = tokenizer(
        [sample["report"] for sample in samples],
        truncation=True,
        max_length=max_report_length,
        return_special_tokens_mask=True,
    )
    rows = []
    for sample, ids, special in zip(samples, encoded["input_ids"], encoded["special_tokens_mask"], strict=True):
        ids, special = torch.tensor(ids), torch.tensor(special)
        generator = torch.Generator().manual_seed(sample["mask_seed"])
        masked = mask_report(ids, special, tokenizer.mask_token_id, report_mask_ratio, generator)
        rows.append((ids, torch.ones_like(ids), *masked))
    pad_token_id = tokenizer.pad_token_id
    paddings = {"input_ids": pad_token_id, "attention_mask": 0, "masked_input_ids": pad_token_id, "labels": -100}
    return {
        name: pad_sequence([row[position] for row in rows], batch_first=True, padding_value=padding)
        for position, (name, padding) in enumerate(paddings.items())
    }


def _check_records(records: datasets.Dataset, views: Sequence[str]) -> None:
    unknown = [name for name in views if name not in VIEW_NAMES]
    if unknown:
        raise ValueError(f"`views` must be out of {list(VIEW_NAMES)}, got {unknown}.")
    missing = [name for name in ("study_id", "report", *views) if name not in records.column_names]
    if missing:
        raise ValueError(f"`records` must have the columns {missing}, got {records.column_names}.")
    if len(records) == 0:
        raise ValueError("`records` must hold at least one study, got none.")


def _read_view(record: dict[str, Any], name: str) -> Image.Image | None:
    if record[name] is None:
        return None
    try:
        return read_radiograph(record[name])
    except (FileNotFoundError, TypeError, ValueError) as error:
        raise ValueError(f"`{name}` of study {record['study_id']!r} cannot be read: {error}") from error


def _get_tokenizer(processor_or_tokenizer: ProcessorMixin | PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    is_processor = isinstance(processor_or_tokenizer, ProcessorMixin)
    tokenizer = processor_or_tokenizer.tokenizer if is_processor else processor_or_tokenizer
    if tokenizer.mask_token_id is None or tokenizer.pad_token_id is None:
        raise ValueError(
            "`processor_or_tokenizer` must have a mask and a padding token, "
            f"got {tokenizer.mask_token!r} and {tokenizer.pad_token!r}."
        )
    return tokenizer


__all__ = [
    "AltaCollator",
    "MrmCollator",
    "TrainingStudies",
    "encode_reports",
    "sample_generator",
    "select_current_frontals",
]
