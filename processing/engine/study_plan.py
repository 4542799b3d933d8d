"""What a corpus module hands to the engine: which studies there are, in words and paths, without a pixel.

    plan = Plan(Corpus(name="My hospital", root=root), studies, excluded, {"rows": len(rows)})
    summary = write_records(plan, output, num_proc=4)

A corpus module reads its tables, groups their rows into studies, and counts the rows that are part of none. Everything
after that (choice of the image, pairing with the prior, decoding, splits, shards, counts) is the engine's.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from processing.engine.images import check_image_format
from processing.records.study_features import SPLIT_NAMES, assign_split


__all__ = ["TIME_UNITS", "Corpus", "ImageFile", "Plan", "Study", "StudyLeftOut"]

TIME_UNITS = ("day", "order")


class StudyLeftOut(ValueError):
    """Raised by a `read_report` for a study that yields no record; the message is the reason, "study: ..."."""


@dataclass(frozen=True, slots=True)
class ImageFile:
    """
    One file that can fill a slot of a study.

    Args:
        path (`str`): below the corpus' root, or absolute.
        fields (`dict`, *optional*): columns of the record that hold if this file becomes the frontal, in place of the
            study's own: `report`, `labels`, `source`, `license`, `study_datetime`, ...
        shown_as (`str`, *optional*): what `summary.json` calls the file if it cannot be read, where its path must not
            be seen.
    """

    path: str
    fields: Mapping[str, Any] | None = None
    shown_as: str | None = None


@dataclass(frozen=True, slots=True)
class Study:
    """
    One study as planned. Hundreds of thousands are held at once, so it holds no pixels and best no long text.

    Args:
        study_id, patient_id (`str`): unique in the corpus; the prior is looked for among the patient's studies.
        frontals, laterals (tuple of [`ImageFile`]): candidates of the slot, best first; the first that can be decoded
            is taken. Without a frontal the study yields no record and is no prior.
        time (`float`, *optional*): when it was taken, in the corpus' `time_unit`, from any origin; `None` where that
            is not known: no prior, and never one.
        study_datetime (`datetime`, *optional*): goes into the record as it is.
        findings, impression, report (`str`): the texts. Without a `report` the study yields no record but can be a
            prior.
        report_file (`str`, *optional*): file below the root that the corpus' `read_report` turns into the three
            texts, in the worker; for corpora with a file per report.
        labels (tuple of `str`), source, license (`str`): as in the record.
        split (`str`, *optional*): "train", "validation" or "test" where the corpus has an official one, the same for
            all studies of a patient; else a hash of the patient decides.
        left_out (`str`, *optional*): a reason, "study: ...", for which the study yields no record but can be a prior;
            for a report in a table, what `StudyLeftOut` is for one in a file.
    """

    study_id: str
    patient_id: str
    frontals: tuple[ImageFile, ...] = ()
    laterals: tuple[ImageFile, ...] = ()
    time: float | None = None
    study_datetime: datetime | None = None
    findings: str = ""
    impression: str = ""
    report: str = ""
    report_file: str | None = None
    labels: tuple[str, ...] = ()
    source: str = ""
    license: str = ""
    split: str | None = None
    left_out: str | None = None


@dataclass(frozen=True)
class Corpus:
    """
    What all studies of a corpus share. It goes to every worker, so it must be picklable.

    Args:
        name (`str`): for people, and in `summary.json`.
        root (`str` or `Path`): folder of the files.
        read_report (callable, *optional*): path of a `report_file` to a dict of `findings`, `impression` and
            `report`; a function of a module (or a `functools.partial` of one). It raises `StudyLeftOut("study: why")`
            to leave a study out under its own reason.
        read_image (callable, *optional*): path of an image to anything that `read_radiograph` reads, for images that
            are not plain files; raises `FileNotFoundError` or `ValueError`.
        time_unit (`str`, defaults to `"day"`): "day", so that `days_since_prior` is a difference of times, or "order"
            where a time is only a number in a row, and `days_since_prior` stays empty.
        empty_report (`str`): reason under which a study without a report is counted.
        needs_report (`bool`, defaults to `True`): `False` for a corpus of images and labels, whose records have an
            empty `report`: zero-shot evaluation takes them, training refuses them.
        image_format (`str`, defaults to `"png"`): how the records hold images, see `encode_image`.
        settings (`dict`): choices that readers of the records must know, such as the report sections; saved in
            `summary.json`. Plain JSON values.
    """

    name: str
    root: str | Path
    read_report: Callable[[Path], Mapping[str, str]] | None = None
    read_image: Callable[[Path], Any] | None = None
    time_unit: str = "day"
    empty_report: str = "study: empty report"
    needs_report: bool = True
    image_format: str = "png"
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if self.time_unit not in TIME_UNITS:
            raise ValueError(f"`time_unit` must be one of {list(TIME_UNITS)}, got {self.time_unit!r}.")
        check_image_format(self.image_format)


@dataclass(frozen=True)
class Plan:
    """
    All studies of a corpus, and what was left out before they were made.

    Args:
        corpus ([`Corpus`]): what they share.
        studies (sequence of [`Study`]): in the order in which their records are to come; the studies of a patient
            need not stand together.
        excluded (`Counter`): "row: ..." → rows that are in no study; "study: ..." → studies that are not in
            `studies`.
        totals (`dict`): counts of the input for the summary, such as `rows`. With `rows`, every row must be an
            [`ImageFile`] of a study or counted in `excluded`.
    """

    corpus: Corpus
    studies: Sequence[Study]
    excluded: Counter = field(default_factory=Counter)
    totals: Mapping[str, int] = field(default_factory=dict)

    def by_split(self) -> dict[str, list[list[Study]]]:
        """Studies by patient by split; patients in the order of their first study.

        Raises:
            `ValueError`: rows that are neither in a study nor counted, a study id that comes twice, an unknown split,
                or a patient in two splits.
        """
        self._check_rows()
        patients: dict[str, list[Study]] = {}
        seen: set[str] = set()
        for study in self.studies:
            if study.study_id in seen:
                raise ValueError(f"`studies` must have unique ids, got {study.study_id!r} twice.")
            seen.add(study.study_id)
            patients.setdefault(study.patient_id, []).append(study)
        splits: dict[str, list[list[Study]]] = {name: [] for name in SPLIT_NAMES}
        for studies in patients.values():
            splits[_split_of(studies)].append(studies)
        return splits

    def _check_rows(self) -> None:
        num_files = sum(len(study.frontals) + len(study.laterals) for study in self.studies)
        left_out = sum(count for reason, count in self.excluded.items() if reason.startswith("row: "))
        if "rows" in self.totals and self.totals["rows"] != num_files + left_out:
            raise ValueError(
                f"`totals` must have as many rows as there are images in studies and rows left out, "
                f"got {self.totals['rows']} rows, {num_files} images and {left_out} rows left out."
            )


def _split_of(studies: Sequence[Study]) -> str:
    patient, splits = studies[0].patient_id, {study.split for study in studies}
    if len(splits) > 1:
        raise ValueError(f"`split` must be the same for all studies of a patient, got {splits} for {patient!r}.")
    split = splits.pop() or assign_split(patient)
    if split not in SPLIT_NAMES:
        raise ValueError(f"`split` must be one of {list(SPLIT_NAMES)} or None, got {split!r} for {patient!r}.")
    return split
