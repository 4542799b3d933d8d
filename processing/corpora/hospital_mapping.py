"""How a hospital's table is read: a YAML file says which of its columns means what. `hospital_example.yaml` is one."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from processing.corpora.tables import read_table


__all__ = ["HospitalMapping", "load_mapping", "read_datetime", "read_rows"]

IMAGE_COLUMNS = ("study_id", "patient_id", "image", "view")
KEY_COLUMNS = ("StudyInstanceUID", "AccessionNumber")
TEXT_COLUMNS = ("report", "findings", "impression")
OTHER_COLUMNS = ("datetime", "labels")


@dataclass(frozen=True)
class HospitalMapping:
    """
    Args:
        table (`str`): a CSV (`.csv`, `.csv.gz`) or Parquet file (`.parquet`) below the root. A row is an image, or,
            with `dicom`, a report.
        columns (`dict` of `str` to `str`): meaning → name in the table. Without `dicom`: `study_id`, `patient_id`,
            `image` (path below the root), `view`, and optionally `datetime`. With `dicom`: `StudyInstanceUID`,
            `AccessionNumber` or both. In either case `report` (free text) or `findings` and `impression`, and
            optionally `labels`.
        name, source, license (`str`): of the corpus, and as in the records.
        dicom (`str`, *optional*): folder of DICOM files below the root, "." for the root itself.
        datetime_format (`str`, *optional*): as for `strptime`; ISO 8601 without it.
        label_separator (`str`): between the labels of a row.
        frontal_views, lateral_views (tuple of `str`): values of `view`, best first, in any case.
        remove_from_reports (tuple of `str`): further columns of the table, such as the patient's name, whose values
            are removed from the text of the report.
    """

    table: str
    columns: Mapping[str, str]
    name: str = "Hospital"
    source: str = ""
    license: str = ""
    dicom: str | None = None
    datetime_format: str | None = None
    label_separator: str = "|"
    frontal_views: tuple[str, ...] = ("PA", "AP")
    lateral_views: tuple[str, ...] = ("LATERAL", "LAT", "LL", "RL")
    remove_from_reports: tuple[str, ...] = field(default=())

    def __post_init__(self):
        own = KEY_COLUMNS if self.dicom is not None else (*IMAGE_COLUMNS, OTHER_COLUMNS[0])
        allowed = {*own, *TEXT_COLUMNS, "labels"}
        unknown = sorted(set(self.columns) - allowed)
        if unknown:
            raise ValueError(f"`columns` must have names of {sorted(allowed)}, got {unknown}.")
        missing = [name for name in IMAGE_COLUMNS if self.dicom is None and name not in self.columns]
        if missing:
            raise ValueError(f"`columns` must name {list(IMAGE_COLUMNS)}, but lacks {missing}.")
        for names in (KEY_COLUMNS if self.dicom is not None else (), TEXT_COLUMNS):
            if names and not set(names) & set(self.columns):
                raise ValueError(f"`columns` must name one of {list(names)}, got {sorted(self.columns)}.")


def load_mapping(path: str | Path) -> HospitalMapping:
    """
    Read and check a mapping.

    Raises:
        `FileNotFoundError`: no such file.
        `ValueError`: no YAML, an unknown or missing key, or a value of another kind; the error names the file.
    """
    try:
        settings = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        return HospitalMapping(**_check_settings(settings))
    except (UnicodeDecodeError, yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path} must be a mapping of columns in YAML: {error}") from error


def _check_settings(settings: Any) -> dict[str, Any]:
    if not isinstance(settings, dict):
        raise ValueError(f"it must hold keys and values, got {type(settings).__name__}.")
    known = [entry.name for entry in fields(HospitalMapping)]
    unknown = [name for name in settings if name not in known]
    missing = [name for name in known[:2] if name not in settings]
    if unknown or missing:
        raise ValueError(f"its keys must be of {known} and include `table` and `columns`; got {sorted(settings)}.")
    lists = ("frontal_views", "lateral_views", "remove_from_reports")
    for name, value in settings.items():
        kind = dict if name == "columns" else list if name in lists else str
        texts = (*value, *value.values()) if kind is dict and isinstance(value, dict) else value
        if not isinstance(value, kind) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"`{name}` must be a {kind.__name__} of texts, got {value!r}.")
    return {name: tuple(value) if name in lists else value for name, value in settings.items()}


def read_rows(root: str | Path, mapping: HospitalMapping) -> Iterator[tuple[dict[str, str], list[str]]]:
    """
    Read the table row by row.

    Yields:
        `tuple`: meaning → value, `""` for what is not in the table; and the values to be removed from the report.

    Raises:
        `FileNotFoundError`: no such table.
        `ValueError`: a missing column, or a file that cannot be read.
    """
    path = Path(root, mapping.table)
    names = list(dict.fromkeys((*mapping.columns.values(), *mapping.remove_from_reports)))
    meanings = (*IMAGE_COLUMNS, *KEY_COLUMNS, *TEXT_COLUMNS, *OTHER_COLUMNS)
    for row in _read_parquet(path, names) if path.suffix == ".parquet" else read_table(path, names):
        values = {name: row.get(mapping.columns.get(name, ""), "") for name in meanings}
        yield values, [row[name] for name in mapping.remove_from_reports if row[name]]


def _read_parquet(path: Path, names: list[str]) -> Iterator[dict[str, str]]:
    if not path.is_file():
        raise FileNotFoundError(f"`table` must be a table, got {path}, which is no file.")
    try:
        with pq.ParquetFile(path) as file:
            missing = [name for name in names if name not in file.schema_arrow.names]
            if missing:
                raise ValueError(f"{path} must have the columns {names}, but lacks {missing}.")
            for batch in file.iter_batches(columns=names):
                yield from ({name: _as_text(value) for name, value in row.items()} for row in batch.to_pylist())
    except pa.ArrowException as error:
        raise ValueError(f"{path} must be a Parquet file, but cannot be read: {error}") from error


def _as_text(value: Any) -> str:
    if value is None or value != value:
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # a column of numbers with gaps
    return str(value).strip()


def read_datetime(text: str, datetime_format: str | None) -> datetime | None:
    """A time in the given format, or in ISO 8601; `None` where it cannot be read."""
    try:
        time = datetime.strptime(text, datetime_format) if datetime_format else datetime.fromisoformat(text)
    except ValueError:
        return None
    return time.astimezone(timezone.utc).replace(tzinfo=None) if time.tzinfo else time
