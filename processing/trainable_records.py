"""Which records can train at all, found by their small columns before any image is read."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeVar

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from processing.record_stream import RecordStream


__all__ = ["find_trainable"]

ROWS_AT_ONCE = 1000
Result = TypeVar("Result")


def find_trainable(records: datasets.Dataset | RecordStream, views: Sequence[str]) -> tuple[np.ndarray, Counter]:
    """
    Find the records with a report and a current radiograph.

    Args:
        records (`datasets.Dataset` or [`RecordStream`]): study records.
        views (`Sequence[str]`): the views that training reads; at least one of the current ones must have been taken.

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
        text = pc.utf8_trim_whitespace(pc.fill_null(table["report"], ""))
        return np.stack([pc.not_equal(text, "").to_numpy(), has_image])

    has_report, has_image = np.concatenate(_scan(records, current, look), axis=1)
    left_out = {"no report": np.sum(~has_report), f"no {' or '.join(current)}": np.sum(has_report & ~has_image)}
    return np.flatnonzero(has_report & has_image), +Counter({reason: int(count) for reason, count in left_out.items()})


def _scan(
    records: datasets.Dataset | RecordStream, images: Sequence[str], function: Callable[[pa.Table], Result]
) -> list[Result]:
    if isinstance(records, RecordStream):
        # The path beside an image tells that it is there, and is a hundred thousand times smaller.
        return records.scan(["report", *(f"{name}.path" for name in images)], function)
    tables = records.select_columns(["report", *images]).with_format("arrow")
    return [function(table) for table in tables.iter(ROWS_AT_ONCE)]
