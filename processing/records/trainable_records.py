"""Which records can train at all, found by their small columns before any image is read."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeVar

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from processing.records.record_stream import RecordStream


__all__ = ["find_trainable"]

ROWS_AT_ONCE = 1000
Result = TypeVar("Result")


def find_trainable(
    records: datasets.Dataset | RecordStream, views: Sequence[str], required: str | None = "report"
) -> tuple[np.ndarray, Counter]:
    """
    Find the records with a current radiograph and a report, or labels.

    Args:
        records (`datasets.Dataset` or [`RecordStream`]): study records.
        views (`Sequence[str]`): the views that training reads; at least one of the current ones must have been taken.
        required (`str`, *optional*, defaults to `"report"`): the column, of texts or lists, that must not be empty.

    Returns:
        `tuple[np.ndarray, Counter]`: their positions, ascending, and how many were left out by reason.

    Raises:
        `ValueError`: `views` without a current view.
    """
    current = [name for name in views if name.startswith("current_")]
    if not current:
        raise ValueError(f"`views` must hold a current view, got {list(views)}.")

    def look(table: pa.Table) -> np.ndarray:
        has_image = np.any([pc.is_valid(table[name]).to_numpy() for name in current], axis=0)
        is_filled = np.ones_like(has_image) if required is None else _is_filled(table[required])
        return np.stack([is_filled, has_image])

    columns = [] if required is None else [required]
    is_filled, has_image = np.concatenate(_scan(records, columns, current, look), axis=1)
    left_out = {f"no {required}": np.sum(~is_filled), f"no {' or '.join(current)}": np.sum(is_filled & ~has_image)}
    return np.flatnonzero(is_filled & has_image), +Counter({reason: int(count) for reason, count in left_out.items()})


def _is_filled(column: pa.ChunkedArray) -> np.ndarray:
    if pa.types.is_string(column.type):
        return pc.not_equal(pc.utf8_trim_whitespace(pc.fill_null(column, "")), "").to_numpy()
    return pc.greater(pc.fill_null(pc.list_value_length(column), 0), 0).to_numpy()


def _scan(
    records: datasets.Dataset | RecordStream,
    columns: Sequence[str],
    images: Sequence[str],
    function: Callable[[pa.Table], Result],
) -> list[Result]:
    if isinstance(records, RecordStream):
        # The path beside an image tells that it is there, and is a hundred thousand times smaller.
        return records.scan([*columns, *(f"{name}.path" for name in images)], function)
    tables = records.select_columns([*columns, *images]).with_format("arrow")
    return [function(table) for table in tables.iter(ROWS_AT_ONCE)]
