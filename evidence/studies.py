"""Study records as decoded samples in memory, and the batches of a run."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import concatenate_datasets

from evidence.settings import Settings
from modeling_alta.configuration_alta import VIEW_NAMES
from processing.batches.augmentation import StudyTransform
from processing.batches.report_masking import shuffle_sentences
from processing.batches.training_batch import TrainingStudies
from processing.records.study_records import load_study_records


__all__ = ["Studies", "keep_frontals", "load_studies", "sample_batches"]


@dataclass
class Studies:
    """
    Decoded studies.

    Args:
        samples (`list[dict]`): those of `TrainingStudies` without augmentation.
        labels (`list[list[str]]`): of each study.
    """

    samples: list[dict[str, Any]]
    labels: list[list[str]]

    def __getitem__(self, part: slice) -> "Studies":
        return Studies(self.samples[part], self.labels[part])

    @property
    def reports(self) -> list[str]:
        return [sample["report"] for sample in self.samples]


def load_studies(records: Path, splits: tuple[str, ...], settings: Settings, limit: int | None = None) -> Studies:
    """
    Decode studies once; every epoch of every run takes them from memory.

    Args:
        records (`Path`): folder of study records.
        splits (`tuple[str, ...]`): taken together.
        settings ([`Settings`]): the sizes of the images.
        limit (`int`, *optional*): the first studies alone.
    """
    table = concatenate_datasets([load_study_records(records, split) for split in splits])
    table = table.select(range(min(limit or len(table), len(table))))
    table = table.filter(lambda report: bool(report and report.strip()), input_columns="report")
    transform = StudyTransform(settings.image_size, settings.target_size, do_augment=False)
    studies = TrainingStudies(table, transform)
    return Studies([studies[index] for index in range(len(studies))], list(table["labels"]))


def keep_frontals(studies: Studies) -> Studies:
    """The same studies, of which the current frontal alone is seen; those without one are left out."""
    only_frontal = torch.tensor([name == "current_frontal" for name in VIEW_NAMES])
    kept = [index for index, sample in enumerate(studies.samples) if sample["view_mask"][0]]
    samples = [{**studies.samples[index], "view_mask": only_frontal} for index in kept]
    return Studies(samples, [studies.labels[index] for index in kept])


def sample_batches(studies: Studies, collator: Any, batch_size: int, seed: int) -> Iterator[dict[str, torch.Tensor]]:
    """Batches without end, epoch after epoch in a new order, the sentences shuffled and the reports masked anew.

    Args:
        studies ([`Studies`]).
        collator ([`AltaCollator`] or [`MrmCollator`]).
        batch_size (`int`): studies of a batch; the rest of an epoch is left out.
        seed (`int`): decides order, sentences and masks.
    """
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(studies.samples), generator=generator).tolist()
        for start in range(0, len(order) - batch_size + 1, batch_size):
            chosen = [studies.samples[index] for index in order[start : start + batch_size]]
            batch = collator([_draw(sample, generator) for sample in chosen])
            del batch["study_id"], batch["skipped"]
            yield batch


def _draw(sample: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
    return {
        **sample,
        "report": shuffle_sentences(sample["report"], generator),
        "mask_seed": int(torch.randint(2**62, (), generator=generator)),
        "patch_seed": int(torch.randint(2**62, (), generator=generator)),
    }
