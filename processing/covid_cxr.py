"""COVID-19 Image Data Collection (`metadata.csv` and its images) to study records.

    python -m processing.covid_cxr --root DIR --output OUT

A study is all rows of one `patientid` and one `offset`. A row whose offset is empty or no number is a study of its
own, which has no prior and is never one. The frontal is the first in file order among the best of PA > AP > AP Supine,
the lateral the first L. A file that is missing or cannot be decoded is left out as if its row were not there, so the
next best row takes its place. The report is the clinical notes of the frontal; without them the study yields no
record but can be a prior.

Every row is kept as the frontal or the lateral of a study, or counted under one reason "row: ..."; every study is a
record, or counted under one reason "study: ...". So `rows` = `images` + the rows left out, and
`studies` = `records` + the studies left out.
"""

import argparse
import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from math import isfinite
from pathlib import Path
from typing import Any

from processing.engine.study_plan import Corpus, ImageFile, Plan, Study
from processing.engine.write_records import corpus_parser, run_corpus, write_records


__all__ = ["main", "plan_covid_cxr", "prepare_covid_cxr", "read_metadata"]

SOURCE = "COVID-19 Image Data Collection"
FRONTAL_VIEWS = ("PA", "AP", "AP Supine")  # best first
LATERAL_VIEW = "L"
REQUIRED_COLUMNS = ("patientid", "offset", "view", "finding", "filename", "license", "clinical_notes")
DATE_FORMATS = ("%Y-%m-%d", "%B %d, %Y", "%b %d, %Y")

Row = Mapping[str, str]


def read_metadata(root: str | Path) -> list[Row]:
    """
    Read the rows of `root/metadata.csv`, all values stripped of white space.

    Raises:
        `FileNotFoundError`: no such file.
        `ValueError`: a required column is not there, or the file is no UTF-8 table.
    """
    path = Path(root) / "metadata.csv"
    if not path.is_file():
        raise FileNotFoundError(f"`root` must be a folder with a metadata.csv, got {root}, which has none.")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restval="")
            rows = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"`root` must hold a metadata.csv that is a UTF-8 table, got {path}: {error}") from error
    missing = [name for name in REQUIRED_COLUMNS if name not in (reader.fieldnames or [])]
    if missing:
        raise ValueError(f"{path} must have the columns {list(REQUIRED_COLUMNS)}, but lacks {missing}.")
    return [{name: value.strip() for name, value in row.items() if name is not None} for row in rows]


def plan_covid_cxr(root: str | Path) -> Plan:
    """
    Plan the studies of a folder of the collection.

    Args:
        root (`str` or `Path`): folder with `metadata.csv` and the images, at `root/<folder>/<filename>` of each row.

    Raises:
        `FileNotFoundError`: no `metadata.csv`.
        `ValueError`: a missing column.
    """
    rows, excluded = read_metadata(root), Counter()
    taken: set[str] = set()
    studies = [
        _plan_study(patient, days, of_study, taken, excluded)
        for patient, of_patient in _group_rows(rows, excluded).items()
        for days, of_study in of_patient
    ]
    corpus = Corpus(SOURCE, root, empty_report="study: empty clinical notes", settings={"report": "clinical notes"})
    return Plan(corpus, studies, excluded, {"rows": len(rows)})


def _group_rows(rows: Sequence[Row], excluded: Counter) -> dict[str, list[tuple[float | None, list[Row]]]]:
    """Patient → the offset and the rows of each study, in file order."""
    patients: dict[str, dict[Any, tuple[float | None, list[Row]]]] = {}
    for index, row in enumerate(rows):
        if not row["patientid"]:
            excluded["row: no patient id"] += 1
            continue
        days = _parse_offset(row["offset"])
        key = ("row", index) if days is None else days
        patients.setdefault(row["patientid"], {}).setdefault(key, (days, []))[1].append(row)
    return {patient: list(studies.values()) for patient, studies in patients.items()}


def _plan_study(patient: str, days: float | None, rows: list[Row], taken: set[str], excluded: Counter) -> Study:
    name = Path(rows[0]["filename"]).stem if days is None else f"day{days:.15g}"
    frontals = sorted((row for row in rows if row["view"] in FRONTAL_VIEWS), key=_rank_frontal)
    laterals = [row for row in rows if row["view"] == LATERAL_VIEW]
    excluded["row: another or an unknown view"] += len(rows) - len(frontals) - len(laterals)
    return Study(
        _unique(f"p{patient}_{name}", taken), patient, _image_files(frontals), _image_files(laterals), time=days
    )


def _rank_frontal(row: Row) -> int:
    return FRONTAL_VIEWS.index(row["view"])


def _image_files(rows: Sequence[Row]) -> tuple[ImageFile, ...]:
    """The notes of an image are about the image, so they make the report of the study whose frontal it becomes."""
    return tuple(ImageFile(f"{row.get('folder') or 'images'}/{row['filename']}", _record_fields(row)) for row in rows)


def _record_fields(row: Row) -> dict[str, Any]:
    return {
        "study_datetime": _parse_date(row.get("date", "")),
        "report": row["clinical_notes"],
        "labels": _split_labels(row["finding"]),
        "source": _name_source(row),
        "license": row["license"],
    }


def _parse_offset(text: str) -> float | None:
    try:
        days = float(text)
    except ValueError:
        return None
    return days if isfinite(days) else None


def _unique(name: str, taken: set[str]) -> str:
    candidate, count = name, 1
    while candidate in taken:
        count += 1
        candidate = f"{name}_{count}"
    taken.add(candidate)
    return candidate


def _parse_date(text: str) -> datetime | None:
    """Only whole dates: the collection often gives no more than a year, which is no time of a study."""
    for date_format in DATE_FORMATS:
        try:
            return datetime.strptime(text, date_format)
        except ValueError:
            continue
    return None


def _split_labels(finding: str) -> list[str]:
    labels = [label.strip() for label in finding.split(",")]
    return [label for label in labels if label and label.lower() != "todo"]


def _name_source(row: Row) -> str:
    """The collection and where it took the image from, which the licenses ask to be named."""
    link = row.get("url") or row.get("doi")
    return f"{SOURCE}, {link}" if link else SOURCE


def prepare_covid_cxr(root: str | Path, output: str | Path, num_proc: int = 1) -> dict[str, Any]:
    """
    Turn a folder of the collection into study records.

    Args:
        root (`str` or `Path`): folder with `metadata.csv` and the images, at `root/<folder>/<filename>` of each row.
        output (`str` or `Path`): folder to write `data/` and `summary.json` into.
        num_proc (`int`, defaults to 1): worker processes.

    Returns:
        `dict`: the summary of `write_records`.

    Raises:
        `FileNotFoundError`: no `metadata.csv`.
        `ValueError`: a missing column, or a folder that yields no record.
    """
    return write_records(plan_covid_cxr(root), output, num_proc)


def main(arguments: Sequence[str] | None = None) -> None:
    run_corpus(corpus_parser("covid_cxr", __doc__), _plan, arguments)


def _plan(options: argparse.Namespace) -> Plan:
    return plan_covid_cxr(options.root)


if __name__ == "__main__":
    main()
