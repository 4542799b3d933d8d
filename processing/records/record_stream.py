"""Study records read while training: by position, a row group at a time, with nothing prepared or downloaded first."""

import copy
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from processing.batches.batch_order import WINDOW_GROUPS
from processing.records.record_files import NUM_THREADS, find_record_files, open_record_file, read_footers
from processing.records.study_features import STUDY_FEATURES


__all__ = ["RecordStream"]

Result = TypeVar("Result")


class RecordStream(torch.utils.data.Dataset):
    """
    A split of study records as a map-style dataset that reads its Parquet files while it is used.

    The footers are read at once; then a record is read with its whole row group (64 studies in files that
    `write_study_records` wrote), and the last groups stay in memory. `BatchOrder` with `row_groups` asks for the
    records in an order in which each group is read about once. Files are open only while a group is read, so that a
    stream can be forked, pickled and sent to workers.

    Args:
        path (`str` or `Path`): a folder that `write_study_records` filled, or the id of a dataset on the Hub, which is
            read over the network.
        split (`str`): "train", "validation" or "test"; in a folder, a split that got no record has length 0.
        columns (`Sequence[str]`, *optional*): the columns to read; all by default.
        cached_groups (`int`, defaults to 4): row groups that a process keeps in memory.

    Attributes:
        row_groups (`list[int]`): number of records of each row group, in order.
        column_names (`list[str]`): the columns that records have.

    Raises:
        `ValueError`: a folder with no records, a split or a column that is not there, a file that is cut off.
    """

    def __init__(
        self,
        path: str | Path,
        split: str,
        columns: Sequence[str] | None = None,
        cached_groups: int = WINDOW_GROUPS,
    ):
        self.files = find_record_files(path, split)
        footers = read_footers(self.files)
        self.sizes = [size for _, size in footers]
        self.footers = [pq.read_metadata(pa.BufferReader(footer)) for footer, _ in footers]
        counts = [
            (file, group, footer.row_group(group).num_rows)
            for file, footer in enumerate(self.footers)
            for group in range(footer.num_row_groups)
        ]
        self.places = [(file, group) for file, group, num_rows in counts if num_rows]
        self.row_groups = [num_rows for *_, num_rows in counts if num_rows]
        self.group_ends = np.cumsum(self.row_groups, dtype=np.int64)
        self.column_names = self.footers[0].schema.to_arrow_schema().names if self.files else list(STUDY_FEATURES)
        self.cached_groups = cached_groups
        self.cache: OrderedDict[int, pa.Table] = OrderedDict()
        if columns is not None:
            self._set_columns(columns)

    def select_columns(self, columns: Sequence[str]) -> "RecordStream":
        """The same records with fewer columns; the others are not read."""
        stream = copy.copy(self)
        stream._set_columns(columns)
        return stream

    def __len__(self) -> int:
        return int(self.group_ends[-1]) if self.row_groups else 0

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One record, with images as `{"bytes", "path"}` or `None`."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Records in the order asked for; each of their row groups is read once at most."""
        rows = [range(len(self))[index] for index in indices]
        groups = np.searchsorted(self.group_ends, rows, side="right").tolist()
        records: dict[int, dict[str, Any]] = {}
        for group in dict.fromkeys(groups):
            table, start = self._read_group(group), int(self.group_ends[group]) - self.row_groups[group]
            records |= {
                row: table.slice(row - start, 1).to_pylist()[0]
                for row, other in zip(rows, groups, strict=True)
                if other == group
            }
        return [records[row] for row in rows]

    def scan(self, columns: Sequence[str], function: Callable[[pa.Table], Result]) -> list[Result]:
        """
        Apply a function to some columns of every file, several files at once; the results come in the files' order.

        Args:
            columns (`Sequence[str]`): names of columns, or of parts such as `current_frontal.path`, which is read
                without the images.
            function (`Callable`): takes the table of a file.
        """
        with ThreadPoolExecutor(NUM_THREADS) as threads:
            return list(threads.map(lambda file: function(self._read_file(file, columns)), range(len(self.files))))

    def _set_columns(self, columns: Sequence[str]) -> None:
        missing = [name for name in columns if name not in self.column_names]
        if missing:
            raise ValueError(f"`columns` must be out of {self.column_names}, got {missing}.")
        self.column_names, self.cache = list(columns), OrderedDict()

    def _read_group(self, group: int) -> pa.Table:
        if group not in self.cache:
            while len(self.cache) >= self.cached_groups:
                self.cache.popitem(last=False)
            file, position = self.places[group]
            with open_record_file(self.files[file], self.sizes[file]) as source:
                self.cache[group] = self._parquet(source, file).read_row_group(
                    position, self.column_names, use_threads=False
                )
        self.cache.move_to_end(group)
        return self.cache[group]

    def _read_file(self, file: int, columns: Sequence[str]) -> pa.Table:
        with open_record_file(self.files[file], self.sizes[file]) as source:
            return self._parquet(source, file).read(list(columns), use_threads=False)

    def _parquet(self, source, file: int) -> pq.ParquetFile:
        return pq.ParquetFile(source, metadata=self.footers[file], pre_buffer=True)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"cache": OrderedDict()}
