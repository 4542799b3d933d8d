"""Labelled study records to batches of a classifier: the vocabulary, the dataset and the collator."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import datasets
import torch

from modeling_alta.configuration_alta import VIEW_NAMES
from processing.batches.augmentation import StudyTransform
from processing.batches.training_batch import TrainingStudies, stack_images, tell_studies
from processing.records.record_stream import RecordStream


UNLABELLED_AS = ("left_out", "negative")
UNKNOWN_LABEL = -100


def count_labels(records: datasets.Dataset | RecordStream) -> dict[str, int]:
    """
    The vocabulary of a split, usually the training split, with the number of studies that have each label.

    Args:
        records (`datasets.Dataset` or [`RecordStream`]): study records with `labels`.

    Returns:
        `dict` of `str` to `int`, sorted by name; `list(...)` of it are the names.

    Raises:
        `ValueError`: no study has a label.
    """
    if isinstance(records, RecordStream):
        tables = records.scan(["labels"], lambda table: table["labels"].to_pylist())
    else:
        tables = [records.select_columns(["labels"])["labels"]]
    counts = Counter(label for table in tables for labels in table for label in set(labels or ()))
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


class LabelledStudies(TrainingStudies):
    """
    Study records as samples of a classifier: [`TrainingStudies`] with labels in the place of reports.

    Args:
        records (`datasets.Dataset` or [`RecordStream`]): study records with `study_id`, `labels` and the four image
            columns.
        transform ([`StudyTransform`]): prepares the radiographs. A `target_size` equal to its `image_size` spares the
            larger image, which only the decoder of the other stages needs.
        seed (`int`, defaults to 0): the run's seed.
        views (`Sequence[str]`, defaults to all four): the views to read.
        unlabelled (`str`, defaults to `"left_out"`): a study without any label was not labelled, `"left_out"`, or has
            none of the labels, `"negative"`.

    Raises:
        `ValueError`: an unknown `unlabelled`, and what [`TrainingStudies`] raises.
    """

    column = "labels"

    def __init__(
        self,
        records: datasets.Dataset | RecordStream,
        transform: StudyTransform,
        seed: int = 0,
        views: Sequence[str] = VIEW_NAMES,
        unlabelled: str = "left_out",
    ):
        if unlabelled not in UNLABELLED_AS:
            raise ValueError(f"`unlabelled` must be one of {list(UNLABELLED_AS)}, got {unlabelled!r}.")
        self.required = "labels" if unlabelled == "left_out" else None
        super().__init__(records, transform, seed, views)

    def _make_sample(self, record: dict[str, Any]) -> dict[str, Any]:
        sample, _ = self._prepare_images(record)
        del sample["target_pixel_values"]
        return {**sample, "study_id": record["study_id"], "labels": record["labels"] or [], "skipped": []}


class LabelCollator:
    """
    Joins samples of [`LabelledStudies`] into a batch for [`AltaForImageClassification`].

    Args:
        names (`Sequence[str]`): the labels, in the order of the logits. A study's other labels are ignored.
        problem_type (`str`, defaults to `"multi_label_classification"`): or `"single_label_classification"`.

    Raises:
        `ValueError`: no name or one twice, or an unknown `problem_type`.
    """

    def __init__(self, names: Sequence[str], problem_type: str = "multi_label_classification"):
        self.indices = label_settings(names)["label2id"]
        encoders = {
            "multi_label_classification": self._encode_multi_label,
            "single_label_classification": self._encode_single_label,
        }
        if problem_type not in encoders:
            raise ValueError(f"`problem_type` must be one of {list(encoders)}, got {problem_type!r}.")
        self.encode = encoders[problem_type]

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Build the batch.

        Returns:
            `dict` with
            - **pixel_values** (`torch.FloatTensor` of shape `(batch, 4, 1, image_size, image_size)`)
            - **view_mask** (`torch.BoolTensor` of shape `(batch, 4)`)
            - **labels** (`torch.FloatTensor` of shape `(batch, num_labels)`; with single labels `torch.LongTensor` of
              shape `(batch,)`, −100 for a study with none of the labels)
            - **study_id**, **skipped** (`list[str]`)

        Raises:
            `ValueError`: single labels, and a study that has several.
        """
        batch = {name: stack_images([sample[name] for sample in samples]) for name in ("pixel_values", "view_mask")}
        batch["labels"] = torch.stack([self.encode(sample) for sample in samples])
        return {**batch, **tell_studies(samples)}

    def _encode_multi_label(self, sample: dict[str, Any]) -> torch.Tensor:
        return torch.tensor([float(name in sample["labels"]) for name in self.indices])

    def _encode_single_label(self, sample: dict[str, Any]) -> torch.Tensor:
        found = sorted({self.indices[name] for name in sample["labels"] if name in self.indices})
        if len(found) > 1:
            raise ValueError(f"`labels` of study {sample['study_id']!r} must be one at most, got {sample['labels']}.")
        return torch.tensor(found[0] if found else UNKNOWN_LABEL)


__all__ = ["LabelCollator", "LabelledStudies", "count_labels", "label_settings"]
