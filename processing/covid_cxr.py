"""COVID-19 Image Data Collection (`metadata.csv` and its images) to study records.

    python -m processing.covid_cxr --root DIR --output OUT

A study is all rows of one `patientid` and one `offset`. A row whose offset is empty or no number is a study of its
own, which has no prior and is never one. The frontal is the first in file order among the best of PA > AP > AP Supine,
the lateral the first L. A file that is missing or cannot be decoded is left out as if its row were not there, so the
next best row takes its place. The report is the clinical notes of the frontal; without them the study yields no
record but can be a prior.

Every row is kept as the frontal or the lateral of a study, or counted under one reason "row: ..."; every study is a
record, or counted under one reason "study: ...". So `rows` = images kept + the rows left out, and
`studies` = `records` + the studies left out.
"""

import argparse
import csv
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from math import isfinite
from pathlib import Path
from typing import Any

from tqdm import tqdm

from processing.study_records import encode_image, find_priors, write_study_records


__all__ = ["group_studies", "iter_study_records", "main", "prepare_covid_cxr", "read_metadata"]

SOURCE = "COVID-19 Image Data Collection"
FRONTAL_VIEWS = ("PA", "AP", "AP Supine")  # best first
LATERAL_VIEW = "L"
REQUIRED_COLUMNS = ("patientid", "offset", "view", "finding", "filename", "license", "clinical_notes")
DATE_FORMATS = ("%Y-%m-%d", "%B %d, %Y", "%b %d, %Y")

Row = Mapping[str, str]


@dataclass
class CovidStudy:
    """Rows of one study, and the images chosen from them; `days` is the offset, `None` where there is none."""

    study_id: str
    days: float | None
    rows: list[Row] = field(default_factory=list)
    frontal_row: Row | None = None
    frontal: dict[str, Any] | None = None
    lateral: dict[str, Any] | None = None


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


def group_studies(rows: Sequence[Row], excluded: Counter) -> dict[str, list[CovidStudy]]:
    """Studies by patient, in file order; a row without a patient is counted and left out."""
    studies: dict[str, dict[Any, CovidStudy]] = {}
    taken: set[str] = set()
    for index, row in enumerate(rows):
        patient, days = row["patientid"], _parse_offset(row["offset"])
        if not patient:
            excluded["row: no patient id"] += 1
            continue
        of_patient = studies.setdefault(patient, {})
        key = ("row", index) if days is None else days
        if key not in of_patient:
            name = Path(row["filename"]).stem if days is None else f"day{days:.15g}"
            of_patient[key] = CovidStudy(_unique(f"p{patient}_{name}", taken), days)
        of_patient[key].rows.append(row)
    return {patient: list(of_patient.values()) for patient, of_patient in studies.items()}


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


def iter_study_records(
    root: str | Path, studies: Mapping[str, Sequence[CovidStudy]], excluded: Counter
) -> Iterator[dict[str, Any]]:
    """Yield the records patient by patient, so that the images of one patient at a time are held in memory.

    Args:
        root (`str` or `Path`): folder of the collection.
        studies (`dict`): studies by patient, from `group_studies`.
        excluded (`Counter`): is filled with what is left out, by reason.
    """
    for patient, of_patient in tqdm(studies.items(), desc="reading radiographs", unit="patient", delay=2):
        for study in of_patient:
            _choose_images(Path(root), study, excluded)
        with_frontal = [study for study in of_patient if study.frontal]
        priors = find_priors([study.days for study in with_frontal])
        for study, prior in zip(with_frontal, priors, strict=True):
            if not study.frontal_row["clinical_notes"]:
                excluded["study: empty clinical notes"] += 1
                continue
            yield _make_record(patient, study, None if prior is None else with_frontal[prior])
        for study in of_patient:
            study.frontal = study.lateral = None


def _choose_images(root: Path, study: CovidStudy, excluded: Counter) -> None:
    frontals = [row for row in study.rows if row["view"] in FRONTAL_VIEWS]
    laterals = [row for row in study.rows if row["view"] == LATERAL_VIEW]
    excluded["row: another or an unknown view"] += len(study.rows) - len(frontals) - len(laterals)
    frontals.sort(key=lambda row: FRONTAL_VIEWS.index(row["view"]))
    study.frontal_row, study.frontal = _first_readable(root, frontals, "frontal", excluded)
    if study.frontal:
        _, study.lateral = _first_readable(root, laterals, "lateral", excluded)
    else:
        excluded["row: lateral of a study without a frontal"] += len(laterals)
        excluded["study: no frontal that can be read" if frontals else "study: no frontal"] += 1


def _first_readable(root: Path, rows: Sequence[Row], name: str, excluded: Counter) -> tuple[Row | None, dict | None]:
    for position, row in enumerate(rows):
        path = root / (row.get("folder") or "images") / row["filename"]
        if not path.is_file():
            excluded["row: file is missing"] += 1
            continue
        try:
            image = encode_image(path)
        except (OSError, ValueError):
            excluded["row: file cannot be decoded"] += 1
            continue
        excluded[f"row: the study has a better or earlier {name}"] += len(rows) - position - 1
        return row, image
    return None, None


def _make_record(patient: str, study: CovidStudy, prior: CovidStudy | None) -> dict[str, Any]:
    row = study.frontal_row
    return {
        "study_id": study.study_id,
        "patient_id": patient,
        "study_datetime": _parse_date(row.get("date", "")),
        "current_frontal": study.frontal,
        "current_lateral": study.lateral,
        "prior_frontal": prior.frontal if prior else None,
        "prior_lateral": prior.lateral if prior else None,
        "prior_study_id": prior.study_id if prior else None,
        "days_since_prior": study.days - prior.days if prior else None,
        "findings": "",  # the notes have no sections
        "impression": "",
        "report": row["clinical_notes"],
        "labels": _split_labels(row["finding"]),
        "source": _name_source(row),
        "license": row["license"],
    }


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


def prepare_covid_cxr(root: str | Path, output: str | Path) -> dict[str, Any]:
    """
    Turn a folder of the collection into study records.

    Args:
        root (`str` or `Path`): folder with `metadata.csv` and the images, at `root/<folder>/<filename>` of each row.
        output (`str` or `Path`): folder to write `data/` and `summary.json` into.

    Returns:
        `dict`: the summary of `write_study_records` with `rows` and `studies` of the input.

    Raises:
        `FileNotFoundError`: no `metadata.csv`.
        `ValueError`: a missing column, or a folder that yields no record.
    """
    rows, excluded = read_metadata(root), Counter()
    studies = group_studies(rows, excluded)
    totals = {"rows": len(rows), "studies": sum(map(len, studies.values()))}
    return write_study_records(iter_study_records(root, studies, excluded), output, excluded, **totals)


def format_summary(summary: Mapping[str, Any]) -> str:
    """Lines for people, of the summary that `prepare_covid_cxr` returns."""
    lines = ["{rows} rows, {studies} studies".format_map(summary)]
    lines += ["{records} records, {with_prior} with a prior, {with_lateral} with a lateral".format_map(summary)]
    lines += [f"  {name}: {counts['records']}" for name, counts in summary["splits"].items()]
    lines += ["left out:" if summary["excluded"] else "left out: nothing"]
    lines += [f"  {reason}: {count}" for reason, count in summary["excluded"].items()]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m processing.covid_cxr", description=__doc__.splitlines()[0])
    parser.add_argument("--root", required=True, help="folder with metadata.csv and images/")
    parser.add_argument("--output", required=True, help="folder for data/<split>-*.parquet and summary.json")
    options = parser.parse_args(arguments)
    try:
        print(format_summary(prepare_covid_cxr(options.root, options.output)))
    except (OSError, ValueError) as error:
        parser.exit(1, f"error: {error}\n")


if __name__ == "__main__":
    main()
