"""The tables of CheXpert (`train.csv`, `valid.csv`, `test*.csv`) and of CheXpert Plus, read into rows of one kind."""

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from math import isfinite
from pathlib import Path
from typing import NamedTuple

from processing.corpora.chexpert_labels import CHEXPERT_LABELS, read_positive_labels
from processing.corpora.tables import find_table, read_row_at, read_table, read_table_with_positions


__all__ = [
    "SPLITS",
    "ChexpertRow",
    "find_label_tables",
    "find_plus_table",
    "read_labels",
    "read_plus_rows",
    "read_rows",
    "read_sections",
]

SPLITS = {"train": "train", "valid": "validation", "test": "test"}  # folder → split
TABLES = {"train": "train.csv", "valid": "valid.csv", "test": "test*.csv"}
VIEW_COLUMNS = ("Frontal/Lateral", "AP/PA")
PLUS_TABLE = "df_chexpert_plus_*.csv"
PLUS_COLUMNS = ("path_to_image", "frontal_lateral", "ap_pa", "deid_patient_id", "patient_report_date_order")
SECTION_COLUMNS = {"findings": "section_findings", "impression": "section_impression"}
PATH = re.compile(r"(?:.*/)?(?P<study>(?P<split>train|valid|test)/(?P<patient>[^/]+)/study(?P<number>\d+))/[^/]+")


class ChexpertRow(NamedTuple):
    """
    One image.

    Args:
        study (`str`): folder of its study, such as "train/patient00001/study1", or "" if its path names none.
        path (`str`): its path below the folder of the images.
        split, patient (`str`): as in a [`Study`].
        order (`float`, *optional*): place of the study among those of the patient.
        view (`str`): "frontal", "lateral" or "".
        direction (`str`): "PA", "AP", another, or "".
        report (`str`, *optional*): position of the row in CheXpert Plus' table.
    """

    study: str
    path: str
    split: str
    patient: str
    order: float | None
    view: str
    direction: str
    report: str | None = None


def find_label_tables(folder: Path) -> dict[str, Path]:
    """Those of CheXpert's tables that are in a folder, by the folder of their images: "train", "valid", "test"."""
    found = {}
    for name, pattern in TABLES.items():
        with suppress(FileNotFoundError):
            found[name] = find_table(folder, pattern)
    return found


def find_plus_table(reports: Path) -> Path:
    """CheXpert Plus' table, given as it is or by its folder; not gzipped, since reports are read from its middle."""
    table = find_table(reports, PLUS_TABLE) if reports.is_dir() else reports
    if table.suffix == ".gz":
        raise ValueError(f"`reports` must be a table that is not gzipped, got {table}.")
    return table


def read_labels(tables: Sequence[Path], uncertain_as: str) -> dict[str, tuple[str, ...]]:
    """Folder of the study → its labels. CheXpert repeats those of a study in each of its rows."""
    shared: dict[tuple[str, ...], tuple[str, ...]] = {}
    labels_of = {}
    for table in tables:
        for row in read_table(table, ("Path", *CHEXPERT_LABELS)):
            labels = read_positive_labels(row, uncertain_as, table)
            if path := PATH.fullmatch(row["Path"]):
                labels_of[path["study"]] = shared.setdefault(labels, labels)
    return labels_of


def read_rows(tables: Sequence[Path]) -> Iterator[ChexpertRow]:
    """The rows of CheXpert's tables. The view columns may be missing in the test table: file names tell the view."""
    for table in tables:
        required = () if table.name.startswith("test") else VIEW_COLUMNS
        for row in read_table(table, ("Path", *required), VIEW_COLUMNS):
            path = PATH.fullmatch(row["Path"])
            order = float(path["number"]) if path else None
            yield _make_row(path, path["patient"] if path else "", order, *(row[name] for name in VIEW_COLUMNS))


def read_plus_rows(table: Path) -> Iterator[ChexpertRow]:
    """The rows of CheXpert Plus' table."""
    for position, row in read_table_with_positions(table, (*PLUS_COLUMNS, *SECTION_COLUMNS.values())):
        path, view, direction, patient, order = (row[name] for name in PLUS_COLUMNS)
        yield _make_row(PATH.fullmatch(path), patient, _read_order(order), view, direction, position)


def _make_row(
    path: re.Match | None, patient: str, order: float | None, view: str, direction: str, report: str | None = None
) -> ChexpertRow:
    if path is None:
        return ChexpertRow("", "", "", patient, order, "", "")
    file = path.string[path.start("study") :]
    view = view.lower() or next((name for name in ("frontal", "lateral") if name in file.rsplit("/", 1)[-1]), "")
    return ChexpertRow(path["study"], file, SPLITS[path["split"]], patient, order, view, direction.upper(), report)


def _read_order(text: str) -> float | None:
    try:
        return float(text) if isfinite(float(text)) else None
    except ValueError:
        return None


def read_sections(table: Path, position: str) -> dict[str, str]:
    """Findings and impression of a row of CheXpert Plus' table."""
    row = read_row_at(table, position, tuple(SECTION_COLUMNS.values()))
    return {section: row[column] for section, column in SECTION_COLUMNS.items()}
