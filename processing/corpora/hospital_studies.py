"""The rows and files of a hospital, gathered into studies; identifiers are still in them."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, time
from pathlib import Path

from processing.corpora.dicom_headers import DicomHeader, read_header
from processing.corpora.hospital_mapping import HospitalMapping, read_datetime, read_rows


__all__ = ["DraftStudy", "draft_from_dicom", "draft_from_table"]

DICOM_FRONTALS = ("PA", "AP", "frontal")  # best first
MIDNIGHT = time()


@dataclass
class DraftStudy:
    """
    A study.

    Args:
        patient, key (`str`): what the names of its patient and of itself are made from.
        frontals, laterals (`list`): rank, smallest first, and path below the root.
        time (`datetime`, *optional*): when it was taken; midnight where only the day is known.
        row (`dict`, *optional*): of the table, with the report.
        identifiers (`set` of `str`): that must not stay in the report.
        accessions (`set` of `str`): numbers by which the report can be found.
    """

    patient: str
    key: str
    frontals: list[tuple[int, str]] = field(default_factory=list)
    laterals: list[tuple[int, str]] = field(default_factory=list)
    time: datetime | None = None
    row: dict[str, str] | None = None
    identifiers: set[str] = field(default_factory=set)
    accessions: set[str] = field(default_factory=set)


def draft_from_table(root: Path, mapping: HospitalMapping, excluded: Counter, totals: Counter) -> list[DraftStudy]:
    """The studies of a table of images; rows left out and rows read are counted in `excluded` and `totals`."""
    drafts: dict[tuple[str, str], DraftStudy] = {}
    views = {view.upper(): (slot, rank) for slot in ("frontals", "laterals") for rank, view in _views(mapping, slot)}
    for row, to_remove in read_rows(root, mapping):
        totals["rows"] += 1
        patient, study = row["patient_id"], row["study_id"]
        if not (patient and study and row["image"]):
            excluded["row: no patient, study or image"] += 1
            continue
        draft = drafts.setdefault((patient, study), DraftStudy(patient, f"{patient}\0{study}"))
        draft.time = _earliest(draft.time, read_datetime(row["datetime"], mapping.datetime_format))
        draft.identifiers.update((patient, study, row["image"], *to_remove))
        draft.row = row if _has_text(row) or draft.row is None else draft.row
        if row["view"].upper() not in views:
            excluded["row: another or an unknown view"] += 1
            continue
        slot, rank = views[row["view"].upper()]
        getattr(draft, slot).append((rank, row["image"]))
    _settle_days(drafts.values())
    return list(drafts.values())


def _views(mapping: HospitalMapping, slot: str) -> Iterable[tuple[int, str]]:
    return enumerate(mapping.frontal_views if slot == "frontals" else mapping.lateral_views)


def _has_text(row: Mapping[str, str]) -> bool:
    return any(row[name] for name in ("report", "findings", "impression"))


def _earliest(first: datetime | None, second: datetime | None) -> datetime | None:
    return min(filter(None, (first, second)), default=None)


def draft_from_dicom(root: Path, mapping: HospitalMapping, excluded: Counter, totals: Counter) -> list[DraftStudy]:
    """The studies of a folder of DICOM files, with the reports of the table; counts as in [`draft_from_table`]."""
    drafts: dict[str, DraftStudy] = {}
    several: Counter = Counter()
    for path in _iter_files(root / mapping.dicom):
        totals["rows"] += 1
        header = read_header(path)
        if header.problem:
            excluded[header.problem] += 1
            continue
        draft = drafts.setdefault(header.study_uid, DraftStudy(header.patient_id, header.study_uid))
        several[header.study_uid] += header.patient_id != draft.patient
        _add_file(draft, header, os.path.relpath(path, root))
    for uid in +several:
        mixed = drafts.pop(uid)
        excluded["row: study of several patients"] += len(mixed.frontals) + len(mixed.laterals)
        excluded["study: of several patients"] += 1
    _settle_days(drafts.values())
    _add_reports(root, mapping, drafts, totals)
    return list(drafts.values())


def _add_file(draft: DraftStudy, header: DicomHeader, path: str) -> None:
    draft.time = _earliest(draft.time, header.date)
    draft.accessions |= {header.accession} - {""}
    draft.identifiers |= {header.patient_id, header.patient_name, header.accession, header.study_uid} - {""}
    if header.view == "lateral":
        draft.laterals.append((0, path))
    else:
        draft.frontals.append((DICOM_FRONTALS.index(header.view), path))


def _iter_files(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"`dicom` must be a folder of DICOM files, got {folder}, which is none.")
    for parent, subfolders, names in os.walk(folder):
        subfolders.sort()
        yield from (Path(parent, name) for name in sorted(names) if name != "DICOMDIR" and not name.startswith("."))


def _settle_days(drafts: Iterable[DraftStudy]) -> None:
    """A day on which one study of a patient has no time of day leaves the order of all its studies unknown."""
    drafts = [draft for draft in drafts if draft.time is not None]
    days = {(draft.patient, draft.time) for draft in drafts if draft.time.time() == MIDNIGHT}
    for draft in drafts:
        day = datetime.combine(draft.time, MIDNIGHT)
        draft.time = day if (draft.patient, day) in days else draft.time


def _add_reports(root: Path, mapping: HospitalMapping, drafts: Mapping[str, DraftStudy], totals: Counter) -> None:
    times_used = Counter(number for draft in drafts.values() for number in draft.accessions)
    by_accession = {
        number: draft for draft in drafts.values() for number in draft.accessions if times_used[number] == 1
    }
    for row, to_remove in read_rows(root, mapping):
        totals["reports"] += 1
        draft = drafts.get(row["StudyInstanceUID"]) or by_accession.get(row["AccessionNumber"])
        if draft is None:
            totals["reports_without_images"] += 1
            continue
        totals["earlier_reports_of_a_study"] += draft.row is not None
        draft.row = row if _has_text(row) or draft.row is None else draft.row
        draft.identifiers |= {*to_remove, row["StudyInstanceUID"], row["AccessionNumber"]} - {""}
