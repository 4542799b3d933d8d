"""MIMIC-CXR-JPG 2.x, or the DICOM files of MIMIC-CXR, and the reports of MIMIC-CXR to study records.

    python -m processing.mimic_cxr --root DIR [--reports DIR] [--tables DIR] --output OUT [--images jpg|dicom]

| what | where (REPORTS and TABLES are ROOT by default) |
|---|---|
| images | `ROOT/files/p10/p10000032/s50414267/<dicom_id>.jpg`, or `.dcm` with `--images dicom` |
| tables | `TABLES/mimic-cxr-2.*-{metadata,split,chexpert or negbio}.csv` or `.csv.gz`, all of MIMIC-CXR-JPG |
| reports | `REPORTS/files/p10/p10000032/s50414267.txt` of MIMIC-CXR |

A study is all rows of one `subject_id` and one `study_id`. Its time is the earliest StudyDate and StudyTime of its
rows (HHMMSS.fff without its leading zeros: 93455.5 is 09:34:55.5). A row whose date or time cannot be read has none; a
study of only such rows has no prior and is never one. Frontal: the first in table order among the best of PA > AP;
lateral: the first LATERAL or LL; `mimic_views` tells how gaps in ViewPosition are filled.

The split is the official one ("validate" → "validation"). Labels are those of value 1 in the table of the labeler
chosen; -1 counts as `--uncertain-as` says. A study whose report is missing, or cannot train, yields no record but can
be a prior. Every row is an image of a study, or counted under one reason "row: ...".
"""

import argparse
import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from processing.corpora.chexpert_labels import CHEXPERT_LABELS, add_uncertain_option, read_positive_labels
from processing.corpora.mimic_views import FRONTAL_VIEWS, LATERAL_VIEWS, VIEW_COLUMNS, read_view
from processing.corpora.tables import find_table, read_table
from processing.engine.study_plan import Corpus, ImageFile, Plan, Study
from processing.engine.write_records import corpus_parser, run_corpus
from processing.reports.report_texts import DEFAULT_REPORT, add_report_option, check_report_choice, make_texts
from processing.reports.training_text import split_sections


__all__ = ["main", "plan_mimic_cxr", "read_report"]

LICENSE = "PhysioNet Credentialed Health Data License 1.5.0"
SOURCES = {"jpg": "MIMIC-CXR-JPG", "dicom": "MIMIC-CXR"}
SUFFIXES = {"jpg": ".jpg", "dicom": ".dcm"}
LABELERS = ("chexpert", "negbio", "none")
ID_COLUMNS = ("subject_id", "study_id", "dicom_id")
METADATA_COLUMNS = (*ID_COLUMNS, "StudyDate", "StudyTime", *VIEW_COLUMNS)
SPLITS = {"train": "train", "validate": "validation", "test": "test"}
EPOCH = datetime(2000, 1, 1)
DAY = timedelta(days=1)


@dataclass(slots=True)
class _Draft:
    """The rows of one study, so far."""

    frontals: list[tuple[int, ImageFile]] = field(default_factory=list)
    laterals: list[ImageFile] = field(default_factory=list)
    taken: datetime | None = None


def plan_mimic_cxr(
    root: str | Path,
    reports: str | Path | None = None,
    tables: str | Path | None = None,
    images: str = "jpg",
    report: str = DEFAULT_REPORT,
    labels: str = "chexpert",
    uncertain_as: str = "zeros",
) -> Plan:
    """
    Plan the studies of MIMIC-CXR.

    Args:
        root (`str` or `Path`): folder whose `files/` holds the images.
        reports (`str` or `Path`, *optional*): folder whose `files/` holds the reports; `root` by default.
        tables (`str` or `Path`, *optional*): folder of the tables; `root` by default.
        images (`str`, defaults to `"jpg"`): "jpg" or "dicom".
        report (`str`, defaults to `"findings+impression"`): one of `REPORT_CHOICES`.
        labels (`str`, defaults to `"chexpert"`): the labeler, "chexpert" or "negbio", or "none".
        uncertain_as (`str`, defaults to `"zeros"`): what a label of -1 counts as, "zeros" or "ones".

    Raises:
        `FileNotFoundError`: a table is missing, or `reports` has no `files/`.
        `ValueError`: a missing column, a table that contradicts itself, or an argument out of its choices.
    """
    _check_choices(images=(images, tuple(SUFFIXES)), labels=(labels, LABELERS))
    check_report_choice(report)
    reports, tables, counts, excluded = Path(reports or root), Path(tables or root), Counter(), Counter()
    _check_reports(reports)
    splits = _read_splits(find_table(tables, "mimic-cxr-2.*-split.csv"))
    labels_of = (
        {} if labels == "none" else _read_labels(find_table(tables, f"mimic-cxr-2.*-{labels}.csv"), uncertain_as)
    )
    drafts = _draft_studies(
        find_table(tables, "mimic-cxr-2.*-metadata.csv"), splits, SUFFIXES[images], counts, excluded
    )
    folder = "" if reports == Path(root) else f"{reports.resolve()}/"
    make_study = functools.partial(_make_study, source=SOURCES[images], reports=folder)
    studies = [make_study(*ids, drafts.pop(ids), splits, labels_of) for ids in list(drafts)]
    if labels != "none":
        counts["studies_without_labels"] = sum(study.study_id[1:] not in labels_of for study in studies)
    settings = {"images": images, "report": report, "labels": labels, "uncertain_as": uncertain_as}
    corpus = Corpus("MIMIC-CXR", root, functools.partial(read_report, choice=report), settings=settings)
    return Plan(corpus, studies, excluded, counts)


def _check_choices(**choices: tuple[str, Sequence[str]]) -> None:
    for name, (value, allowed) in choices.items():
        if value not in allowed:
            raise ValueError(f"`{name}` must be one of {list(allowed)}, got {value!r}.")


def _check_reports(reports: Path) -> None:
    if not (reports / "files").is_dir():
        raise FileNotFoundError(f"`reports` must be a folder with files/p10/p10000032/s50414267.txt, got {reports}.")


def _read_splits(table: Path) -> dict[str, str]:
    """Split by patient: the official split is one of patients, and a table in which it is not would leak."""
    splits: dict[str, str] = {}
    for row in read_table(table, ("subject_id", "split")):
        if row["split"] not in SPLITS:
            raise ValueError(f"{table} must have splits of {list(SPLITS)}, got {row['split']!r}.")
        split = SPLITS[row["split"]]
        if splits.setdefault(row["subject_id"], split) != split:
            raise ValueError(f"{table} must have each patient in one split, got {row['subject_id']!r} in two.")
    return splits


def _read_labels(table: Path, uncertain_as: str) -> dict[str, tuple[str, ...]]:
    """Labels by study; equal ones are one object, of which there are few."""
    shared: dict[tuple[str, ...], tuple[str, ...]] = {}
    rows = read_table(table, ("study_id", *CHEXPERT_LABELS))
    labels_of = ((row["study_id"], read_positive_labels(row, uncertain_as, table)) for row in rows)
    return {study: shared.setdefault(labels, labels) for study, labels in labels_of}


def _draft_studies(
    table: Path, splits: Mapping[str, str], suffix: str, counts: Counter, excluded: Counter
) -> dict[tuple[str, str], _Draft]:
    """Patient and study → its images, by view, and when it was taken."""
    drafts: dict[tuple[str, str], _Draft] = {}
    for row in read_table(table, METADATA_COLUMNS):
        counts["rows"] += 1
        patient, study, dicom = (row[name] for name in ID_COLUMNS)
        if not (patient and study and dicom):
            excluded["row: no subject_id, study_id or dicom_id"] += 1
        elif patient not in splits:
            excluded["row: patient is not in the split table"] += 1
        else:
            draft = drafts.setdefault((patient, study), _Draft())
            taken = _read_time(row["StudyDate"], row["StudyTime"])
            counts["rows_without_time"] += taken is None
            draft.taken = min(filter(None, (draft.taken, taken)), default=None)
            _add_image(draft, ImageFile(f"{_folder(patient, study)}/{dicom}{suffix}"), row, counts, excluded)
    return drafts


def _folder(patient: str, study: str) -> str:
    return f"files/p{patient[:2]}/p{patient}/s{study}"


def _add_image(draft: _Draft, file: ImageFile, row: Mapping[str, str], counts: Counter, excluded: Counter) -> None:
    view, column = read_view(*(row[name] for name in VIEW_COLUMNS))
    if view in FRONTAL_VIEWS:
        draft.frontals.append((FRONTAL_VIEWS.index(view), file))
    elif view in LATERAL_VIEWS:
        draft.laterals.append(file)
    else:
        excluded["row: another view" if view else "row: view is not known"] += 1
        return
    if column != "ViewPosition":
        counts[f"views_from_{column}"] += 1


def _read_time(date: str, time: str) -> datetime | None:
    """When a row was taken: `20800102` and `93455.5` are 2080-01-02 09:34:55.5."""
    date = date.removesuffix(".0")
    whole, _, fraction = time.partition(".")
    try:
        if not (len(date) == 8 and 0 < len(whole) <= 6 and (date + whole + (fraction or "0")).isdecimal()):
            return None
        digits = date + whole.zfill(6)
        moment = datetime(int(digits[:4]), *(int(digits[start : start + 2]) for start in range(4, 14, 2)))
        return moment + timedelta(milliseconds=round(float(f"0.{fraction or 0}") * 1000))
    except ValueError:
        return None


def _make_study(
    patient: str,
    study: str,
    draft: _Draft,
    splits: Mapping[str, str],
    labels_of: Mapping[str, tuple[str, ...]],
    source: str,
    reports: str,
) -> Study:
    return Study(
        f"s{study}",
        f"p{patient}",
        tuple(file for _, file in sorted(draft.frontals, key=lambda ranked: ranked[0])),
        tuple(draft.laterals),
        time=None if draft.taken is None else (draft.taken - EPOCH) / DAY,
        study_datetime=draft.taken,
        report_file=f"{reports}{_folder(patient, study)}.txt",
        labels=labels_of.get(study, ()),
        source=source,
        license=LICENSE,
        split=splits[patient],
    )


def read_report(path: Path, choice: str) -> dict[str, str]:
    """The texts of a report file; `choice` is one of `REPORT_CHOICES`."""
    return make_texts(split_sections(path.read_text(encoding="utf-8")), choice)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = corpus_parser("mimic_cxr", __doc__)
    parser.add_argument("--reports", help="folder whose files/ holds the reports (default: ROOT)")
    parser.add_argument("--tables", help="folder of the tables of MIMIC-CXR-JPG (default: ROOT)")
    parser.add_argument("--images", choices=list(SUFFIXES), default="jpg", help="files to read (default: jpg)")
    parser.add_argument("--labels", choices=LABELERS, default="chexpert", help="labeler (default: chexpert)")
    add_report_option(parser)
    add_uncertain_option(parser)
    run_corpus(parser, _plan, arguments)


def _plan(options: argparse.Namespace) -> Plan:
    names = ("root", "reports", "tables", "images", "report", "labels", "uncertain_as")
    return plan_mimic_cxr(**{name: getattr(options, name) for name in names})


if __name__ == "__main__":
    main()
