"""Study records to training batches: one dataset for both stages, one collator for each."""

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import default_collate
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from modeling_alta.configuration_alta import VIEW_NAMES, AltaConfig
from modeling_alta.radiograph_alta import read_radiograph
from processing.batches.augmentation import StudyTransform
from processing.batches.report_masking import mask_report, shuffle_sentences
from processing.records.record_stream import RecordStream
from processing.records.trainable_records import find_trainable


MAX_STAND_INS = 64  # neighbours to try; where so many in a row cannot be read, something else is wrong


class UnreadableStudyError(ValueError):
    """A study with a radiograph that cannot be read; the message is `"study id: reason"`."""


def sample_generator(seed: int, epoch: int, study_id: str) -> torch.Generator:
    """Random source of one study in one epoch, the same on every worker, process and machine, wherever it lies.

    Args:
        seed, epoch (`int`): the run's seed, and the epoch.
        study_id (`str`): the study.
    """
    digest = hashlib.sha256(f"{seed} {epoch} {study_id}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))


class TrainingStudies(torch.utils.data.Dataset):
    """
    Study records as training samples, augmented by what `(seed, epoch, study_id)` alone decides.

    Records without a report or without a current radiograph among `views` are left out beforehand. A radiograph that
    turns out to be unreadable does not end a run: where whole batches are taken, as a `DataLoader` does, another study
    stands in for it.

    Args:
        records (`datasets.Dataset` or [`RecordStream`]): study records with `study_id`, `report` and the four image
            columns.
        transform ([`StudyTransform`]): prepares the radiographs; its `do_augment` also decides whether the sentences
            of the report are shuffled.
        seed (`int`, defaults to 0): the run's seed.
        views (`Sequence[str]`, defaults to all four): the views to read; `("current_frontal",)` for the MRM stage.

    Attributes:
        left_out (`Counter`): number of records left out beforehand, by reason.
        row_groups (`list[int]` or `None`): number of studies of each row group of a stream, what `BatchOrder` takes.

    Raises:
        `ValueError`: no records that can train, a column that is missing, an unknown view; and, when a single sample
            is taken, a radiograph that cannot be read (with its study and view).
    """

    column = "report"  # what is read beside the images
    required: str | None = "report"

    def __init__(
        self,
        records: datasets.Dataset | RecordStream,
        transform: StudyTransform,
        seed: int = 0,
        views: Sequence[str] = VIEW_NAMES,
    ):
        _check_records(records, self.column, views)
        if isinstance(records, datasets.Dataset):
            for name in views:
                records = records.cast_column(name, datasets.Image(decode=False))
        self.positions, self.left_out = find_trainable(records, views, self.required)
        if not len(self.positions):
            raise ValueError(
                f"`records` must hold at least one study to train on, got none; left out: {dict(self.left_out)}."
            )
        self.records = records.select_columns(["study_id", self.column, *views])
        self.row_groups = self._count_row_groups() if isinstance(records, RecordStream) else None
        self.transform = transform
        self.seed = seed
        self.views = tuple(views)
        # Shared, so that workers that outlive an epoch see the next one.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, counted from 0, whose random draws the samples get."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One sample: the tensors of [`StudyTransform`], `study_id`, `report`, `skipped` (empty), and for the collator
        `mask_seed` and `patch_seed`."""
        return self._make_sample(self.records[int(self.positions[index])])

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """
        The samples of a batch. For an unreadable study stands the next readable one that is not in the batch, of the
        same row group if it has one; its `skipped` lists what it stands for, as `"study id: reason"`.

        Raises:
            `ValueError`: nothing around an unreadable study can be read either.
        """
        records = self.records.__getitems__([int(self.positions[index]) for index in indices])
        taken, samples = set(indices), []
        for index, record in zip(indices, records, strict=True):
            try:
                samples.append(self._make_sample(record))
            except UnreadableStudyError as error:
                samples.append(self._stand_in(index, error, taken))
        return samples

    def _stand_in(self, index: int, first: UnreadableStudyError, taken: set[int]) -> dict[str, Any]:
        skipped = [str(first)]
        free = (neighbour for neighbour in self._neighbours(index) if neighbour not in taken)
        for neighbour in itertools.islice(free, MAX_STAND_INS):
            try:
                sample = self._make_sample(self.records[int(self.positions[neighbour])])
            except UnreadableStudyError as error:
                skipped.append(str(error))
                continue
            taken.add(neighbour)
            return {**sample, "skipped": skipped}
        raise ValueError(
            f"`records` must hold a study near {skipped[0]!r} that can be read, got {skipped[-1]!r} last."
        )

    def _neighbours(self, index: int) -> Iterator[int]:
        """The studies after this one, those of its row group first, in a circle."""
        ends = np.cumsum(self.row_groups if self.row_groups is not None else [len(self)])
        group = np.searchsorted(ends, index, side="right")
        start, end = int(ends[group - 1]) if group else 0, int(ends[group])
        return itertools.chain(range(index + 1, end), range(start, index), range(end, len(self)), range(start))

    def _make_sample(self, record: dict[str, Any]) -> dict[str, Any]:
        sample, generator = self._prepare_images(record)
        study_id, report = record["study_id"], record["report"]
        if self.transform.do_augment:
            report = shuffle_sentences(report, generator)
        mask_seed, patch_seed = torch.randint(2**62, (2,), generator=generator).tolist()
        seeds = {"mask_seed": mask_seed, "patch_seed": patch_seed}
        return {**sample, **seeds, "study_id": study_id, "report": report, "skipped": []}

    def _prepare_images(self, record: dict[str, Any]) -> tuple[dict[str, torch.Tensor], torch.Generator]:
        """The tensors of the study, and its random source as they left it."""
        images = {name: read_view(record, name) for name in self.views}
        generator = sample_generator(self.seed, int(self._epoch), record["study_id"])
        return self.transform(images, generator), generator

    def _count_row_groups(self) -> list[int]:
        ends = np.cumsum(self.records.row_groups)
        groups = np.searchsorted(ends, self.positions, side="right")
        return np.bincount(groups, minlength=len(ends)).tolist()


class AltaCollator:
    """
    Joins samples of [`TrainingStudies`] into a batch for [`AltaForPreTraining`].

    Args:
        processor_or_tokenizer ([`AltaProcessor`] or `PreTrainedTokenizerBase`): tokenizes the reports.
        config ([`AltaConfig`]): its `max_report_length`, `report_mask_ratio` and number of patches are used.
    """

    def __init__(self, processor_or_tokenizer: ProcessorMixin | PreTrainedTokenizerBase, config: AltaConfig):
        self.tokenizer = _get_tokenizer(processor_or_tokenizer)
        self.max_report_length = config.max_report_length
        self.report_mask_ratio = config.report_mask_ratio
        self.num_patches = config.vision_config.num_patches

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Build the batch.

        Returns:
            `dict` with
            - **input_ids**, **attention_mask** (`torch.LongTensor` of shape `(batch, num_tokens)`) -- the reports,
              padded to the longest of the batch.
            - **masked_input_ids**, **labels** (`torch.LongTensor` of the same shape) -- see `mask_report`.
            - **pixel_values** (`torch.FloatTensor` of shape `(batch, 4, 1, image_size, image_size)`)
            - **view_mask** (`torch.BoolTensor` of shape `(batch, 4)`)
            - **target_pixel_values** (`torch.FloatTensor` of shape `(batch, 1, target_size, target_size)`)
            - **noise** (`torch.FloatTensor` of shape `(batch, 4, num_patches)`) -- decides the masked patches.
            - **study_id** (`list[str]`)
            - **skipped** (`list[str]`) -- `"study id: reason"` of the studies that others stand in for.
        """
        batch = encode_reports(self.tokenizer, samples, self.max_report_length, self.report_mask_ratio)
        for name in ("pixel_values", "view_mask", "target_pixel_values"):
            batch[name] = stack_images([sample[name] for sample in samples])
        batch["noise"] = draw_noise(samples, len(VIEW_NAMES), self.num_patches)
        return {**batch, **tell_studies(samples)}


class MrmCollator:
    """
    Joins samples of [`TrainingStudies`] into a batch for masked record modelling of single current frontals (MRM,
    section 3).

    Args:
        processor_or_tokenizer ([`AltaProcessor`] or `PreTrainedTokenizerBase`): tokenizes the reports.
        config ([`AltaConfig`]): its `max_report_length`, `report_mask_ratio` and number of patches are used.
    """

    def __init__(self, processor_or_tokenizer: ProcessorMixin | PreTrainedTokenizerBase, config: AltaConfig):
        self.tokenizer = _get_tokenizer(processor_or_tokenizer)
        self.max_report_length = config.max_report_length
        self.report_mask_ratio = config.report_mask_ratio
        self.num_patches = config.vision_config.num_patches

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Build the batch.

        Returns:
            `dict` with
            - **masked_input_ids**, **attention_mask**, **labels** (`torch.LongTensor` of shape `(batch, num_tokens)`)
            - **pixel_values** (`torch.FloatTensor` of shape `(batch, 1, image_size, image_size)`)
            - **target_pixel_values** (`torch.FloatTensor` of shape `(batch, 1, target_size, target_size)`)
            - **noise** (`torch.FloatTensor` of shape `(batch, num_patches)`) -- decides the masked patches.
            - **study_id**, **skipped** (`list[str]`) -- see [`AltaCollator`].

        Raises:
            `ValueError`: a study without a current frontal; [`TrainingStudies`] of this view alone has none.
        """
        absent = [sample["study_id"] for sample in samples if not sample["view_mask"][0]]
        if absent:
            raise ValueError(f"`samples` must all have a `current_frontal`, got the studies {absent} without one.")
        batch = encode_reports(self.tokenizer, samples, self.max_report_length, self.report_mask_ratio)
        del batch["input_ids"]
        batch["pixel_values"] = stack_images([sample["pixel_values"][0] for sample in samples])
        batch["target_pixel_values"] = stack_images([sample["target_pixel_values"] for sample in samples])
        batch["noise"] = draw_noise(samples, 1, self.num_patches).squeeze(1)
        return {**batch, **tell_studies(samples)}


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


def stack_images(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Stack tensors; in a worker right into the memory that it shares, which `torch.stack` would have copied again."""
    return default_collate(tensors)


def draw_noise(samples: list[dict[str, Any]], num_views: int, num_patches: int) -> torch.Tensor:
    """The noise that decides which patches are masked, each study's from its own seed, so that it does not depend on
    how studies are put into batches.

    Args:
        samples (`list[dict]`): with `patch_seed`.
        num_views, num_patches (`int`): views of a study, and patches of a view.

    Returns:
        `torch.FloatTensor` of shape `(batch, num_views, num_patches)`: values in 0..1.
    """
    generators = [torch.Generator().manual_seed(sample["patch_seed"]) for sample in samples]
    return torch.stack([torch.rand(num_views, num_patches, generator=generator) for generator in generators])


def tell_studies(samples: list[dict[str, Any]]) -> dict[str, list[str]]:
    """`study_id` of every sample of a batch, and `skipped`: what some of them stand in for."""
    skipped = [line for sample in samples for line in sample["skipped"]]
    return {"study_id": [sample["study_id"] for sample in samples], "skipped": skipped}


def _check_records(records: datasets.Dataset | RecordStream, column: str, views: Sequence[str]) -> None:
    unknown = [name for name in views if name not in VIEW_NAMES]
    if unknown:
        raise ValueError(f"`views` must be out of {list(VIEW_NAMES)}, got {unknown}.")
    missing = [name for name in ("study_id", column, *views) if name not in records.column_names]
    if missing:
        raise ValueError(f"`records` must have the columns {missing}, got {records.column_names}.")


def read_view(record: dict[str, Any], name: str) -> Image.Image | None:
    """
    The radiograph of one view of a record, or `None` without it.

    Raises:
        [`UnreadableStudyError`]: a `ValueError` that names the study and the view.
    """
    if record[name] is None:
        return None
    try:
        return read_radiograph(record[name])
    except (FileNotFoundError, TypeError, ValueError) as error:
        raise UnreadableStudyError(f"{record['study_id']}: `{name}` cannot be read: {error}") from error


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
    "UnreadableStudyError",
    "draw_noise",
    "encode_reports",
    "read_view",
    "sample_generator",
    "stack_images",
    "tell_studies",
]
