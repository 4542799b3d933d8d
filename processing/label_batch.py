"""Labelled study records to batches of a classifier: the vocabulary, the dataset and the collator."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import datasets
import torch
from PIL import Image

from modeling_alta.configuration_alta import VIEW_NAMES
from modeling_alta.radiograph_alta import read_radiograph
from processing.augmentation import StudyTransform


UNLABELLED_AS = ("unknown", "negative")
UNKNOWN_LABEL = -100


def count_labels(records: datasets.Dataset | datasets.IterableDataset) -> dict[str, int]:
    """
    The vocabulary of a split, usually the training split, with the number of studies that have each label.

    Args:
        records (`datasets.Dataset` or `datasets.IterableDataset`): study records with `labels`.

    Returns:
        `dict` of `str` to `int`, sorted by name; `list(...)` of it are the names.

    Raises:
        `ValueError`: no study has a label.
    """
    counts = Counter()
    for table in records.select_columns(["labels"]).with_format("arrow").iter(batch_size=4096):
        for labels in table["labels"].to_pylist():
            counts.update(set(labels or ()))
    if not counts:
        raise ValueError("`records` must hold at least one study with a label, got none.")
    return dict(sorted(counts.items()))


def label_settings(names: Sequence[str]) -> dict[str, dict]:
    """`id2label` and `label2id` of a vocabulary, as `from_pretrained` of a classifier takes them.

    Args:
        names (`Sequence[str]`): the labels, in the order of the logits.

    Raises:
        `ValueError`: no name, or one that comes twice.
    """
    if not names or len(set(names)) < len(names):
        raise ValueError(f"`names` must be at least one label and each once, got {list(names)}.")
    return {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}


def select_labelled(records: datasets.Dataset) -> datasets.Dataset:
    """Keep the records that have a label."""
    kept = records.with_format("arrow").filter(
        lambda column: [bool(labels) for labels in column.to_pylist()], batched=True, input_columns=["labels"]
    )
    return kept.with_format(None)


class LabelledStudies(torch.utils.data.Dataset):
    """
    Study records as samples of a classifier, augmented by what `(seed, epoch, study_id)` alone decides.

    Args:
        records (`datasets.Dataset`): study records with `study_id`, `labels` and the four image columns; no reports.
        transform ([`StudyTransform`]): prepares the radiographs. A `target_size` equal to its `image_size` spares the
            larger image, which only the decoder of the training stages needs.
        seed (`int`, defaults to 0): the run's seed.
        views (`Sequence[str]`, defaults to all four): the views to read.

    Raises:
        `ValueError`: no records, a column that is missing, an unknown view; and, when a sample is taken, a radiograph
            that cannot be read (with its study and view) or a record without a current radiograph.
    """

    def __init__(
        self, records: datasets.Dataset, transform: StudyTransform, seed: int = 0, views: Sequence[str] = VIEW_NAMES
    ):
        _check_records(records, views)
        for name in views:
            records = records.cast_column(name, datasets.Image(decode=False))
        self.records = records.select_columns(["study_id", "labels", *views])
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
        """One sample: `pixel_values`, `view_mask`, `study_id`, and `labels`, the names that the study has."""
        record = self.records[index]
        images = {name: _read_view(record, name) for name in self.views}
        if images.get("current_frontal") is None and images.get("current_lateral") is None:
            raise ValueError(f"`records` must have a current radiograph, got none for study {record['study_id']!r}.")
        sample = self.transform(images, self._generator(record["study_id"]))
        del sample["target_pixel_values"]
        return {**sample, "study_id": record["study_id"], "labels": record["labels"] or []}

    def _generator(self, study_id: str) -> torch.Generator:
        digest = hashlib.sha256(f"{self.seed} {int(self._epoch)} {study_id}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))


class LabelCollator:
    """
    Joins samples of [`LabelledStudies`] into a batch for [`AltaForImageClassification`].

    Args:
        names (`Sequence[str]`): the labels, in the order of the logits. A study's other labels are ignored.
        problem_type (`str`, defaults to `"multi_label_classification"`): or `"single_label_classification"`.
        unlabelled (`str`, defaults to `"unknown"`): a study without any label was not labelled and counts for nothing;
            or `"negative"`: it has none of the labels.

    Raises:
        `ValueError`: no name or one twice, an unknown `problem_type` or `unlabelled`, single labels with
            `unlabelled="negative"`.
    """

    def __init__(
        self,
        names: Sequence[str],
        problem_type: str = "multi_label_classification",
        unlabelled: str = "unknown",
    ):
        self.indices = label_settings(names)["label2id"]
        encoders = {
            "multi_label_classification": self._encode_multi_label,
            "single_label_classification": self._encode_single_label,
        }
        if problem_type not in encoders:
            raise ValueError(f"`problem_type` must be one of {list(encoders)}, got {problem_type!r}.")
        if unlabelled not in UNLABELLED_AS:
            raise ValueError(f"`unlabelled` must be one of {list(UNLABELLED_AS)}, got {unlabelled!r}.")
        if problem_type == "single_label_classification" and unlabelled == "negative":
            raise ValueError("`unlabelled` must be 'unknown' with one label a study, got 'negative'.")
        self.encode = encoders[problem_type]
        self.unlabelled = unlabelled

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Build the batch.

        Returns:
            `dict` with
            - **pixel_values** (`torch.FloatTensor` of shape `(batch, 4, 3, image_size, image_size)`)
            - **view_mask** (`torch.BoolTensor` of shape `(batch, 4)`)
            - **labels** (`torch.FloatTensor` of shape `(batch, num_labels)`, NaN where unknown; with single labels
              `torch.LongTensor` of shape `(batch,)`, −100 where unknown)
            - **study_id** (`list[str]`)

        Raises:
            `ValueError`: single labels, and a study that has several.
        """
        batch = {name: torch.stack([sample[name] for sample in samples]) for name in ("pixel_values", "view_mask")}
        batch["labels"] = torch.stack([self.encode(sample) for sample in samples])
        return {**batch, "study_id": [sample["study_id"] for sample in samples]}

    def _encode_multi_label(self, sample: dict[str, Any]) -> torch.Tensor:
        if not sample["labels"] and self.unlabelled == "unknown":
            return torch.full((len(self.indices),), torch.nan)
        return torch.tensor([float(name in sample["labels"]) for name in self.indices])

    def _encode_single_label(self, sample: dict[str, Any]) -> torch.Tensor:
        found = sorted({self.indices[name] for name in sample["labels"] if name in self.indices})
        if len(found) > 1:
            raise ValueError(f"`labels` of study {sample['study_id']!r} must be one at most, got {sample['labels']}.")
        return torch.tensor(found[0] if found else UNKNOWN_LABEL)


def _check_records(records: datasets.Dataset, views: Sequence[str]) -> None:
    unknown = [name for name in views if name not in VIEW_NAMES]
    if unknown:
        raise ValueError(f"`views` must be out of {list(VIEW_NAMES)}, got {unknown}.")
    missing = [name for name in ("study_id", "labels", *views) if name not in records.column_names]
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


__all__ = ["LabelCollator", "LabelledStudies", "count_labels", "label_settings", "select_labelled"]
