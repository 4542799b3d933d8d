"""Parquet files of study records, about 500 MB each with the image bytes inside, and the summary beside them.

`OUT/data/<split>-<shard>-of-<shards>.parquet` holds the records, so `datasets.load_dataset(OUT)` gives the splits;
`OUT/summary.json` holds the counts.
"""

import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from modeling_alta.configuration_alta import VIEW_NAMES
from processing.engine.folder_lock import lock_folder
from processing.records.study_features import SPLIT_NAMES, STUDY_FEATURES, assign_split


__all__ = [
    "MAX_SHARD_BYTES",
    "ShardWriter",
    "find_shards",
    "shard_name",
    "summarize",
    "write_study_records",
    "write_summary",
]

ROWS_PER_GROUP = 64
MAX_SHARD_BYTES = 500_000_000
COUNTS = ("records", "with_prior", "with_lateral")


class ShardWriter:
    """
    Writes records into one Parquet file, in groups of 64 rows; only a group is held in memory.

    The file is made with the first record: `datasets.load_dataset` fails on an empty one, for the other splits too.

    Args:
        path (`Path`): the file.
    """

    def __init__(self, path: Path):
        self.path = path
        self.schema = STUDY_FEATURES.arrow_schema
        self.counts = Counter(dict.fromkeys(COUNTS, 0))
        self.num_bytes = 0  # of the images, which are nearly all of the file
        self.rows: list[Mapping[str, Any]] = []
        self.writer: pq.ParquetWriter | None = None

    def write(self, record: Mapping[str, Any]) -> None:
        """Add one record, whose keys are those of `STUDY_FEATURES`."""
        if record.keys() != STUDY_FEATURES.keys():
            wrong = sorted(record.keys() ^ STUDY_FEATURES.keys())
            raise ValueError(f"A record must have the keys {list(STUDY_FEATURES)}; missing or unknown: {wrong}.")
        self.rows.append(record)
        self.num_bytes += sum(len(record[name]["bytes"]) for name in VIEW_NAMES if record[name] is not None)
        self.counts["records"] += 1
        self.counts["with_prior"] += record["prior_study_id"] is not None
        self.counts["with_lateral"] += record["current_lateral"] is not None
        if len(self.rows) == ROWS_PER_GROUP:
            self._flush()

    def close(self) -> None:
        """Write what is held and finish the file."""
        self._flush()
        if self.writer:
            self.writer.close()
        self.writer = None

    def _flush(self) -> None:
        if not self.rows:
            return
        if self.writer is None:
            self.writer = pq.ParquetWriter(self.path, self.schema, write_page_index=True)
        self.writer.write_table(pa.Table.from_pylist(self.rows, schema=self.schema))
        self.rows = []


def shard_name(split: str, index: int, num_shards: int) -> str:
    """Name of a finished shard, which `datasets.load_dataset` sorts into its split."""
    return f"{split}-{index:05d}-of-{num_shards:05d}.parquet"


def find_shards(folder: Path) -> list[Path]:
    """The finished shards in a folder, by split and number."""
    return [path for name in SPLIT_NAMES for path in sorted(folder.glob(f"{name}-*-of-*.parquet"))]


def write_study_records(
    records: Iterable[Mapping[str, Any]],
    output: str | Path,
    excluded: Counter | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    **totals: int,
) -> dict[str, Any]:
    """
    Write study records that are made already, while they come; `write_records` makes and writes those of a corpus.

    The files of an earlier run in the same folder are replaced, and only when every record has been written.

    Args:
        records (iterable of mappings): the keys of `STUDY_FEATURES`, images as `encode_image` gives them.
        output (`str` or `Path`): folder to write into, made if need be.
        excluded (`Counter`, *optional*): number of things left out by reason; may be filled while `records` are read.
        max_shard_bytes (`int`): size at which the next file of a split is begun.
        **totals (`int`): further counts for the summary, such as `rows` of the input.

    Returns:
        `dict`: the summary, also in `summary.json`: `totals`, `records`, `with_prior`, `with_lateral` (in the current
        study), `excluded`, and `splits` with the same three counts each.

    Raises:
        `ValueError`: a record with other keys, no record at all, or another run that writes to `output`.
    """
    output = Path(output)
    with lock_folder(output), tempfile.TemporaryDirectory(dir=output, prefix=".unfinished-") as folder:
        shards = _write_splits(records, Path(folder), max_shard_bytes)
        counts = {name: sum((writer.counts for writer in shards[name]), Counter()) for name in SPLIT_NAMES}
        summary = summarize(counts, excluded or Counter(), totals)
        _replace_shards(shards, output / "data")
        write_summary(summary, output)
    return summary


def _write_splits(
    records: Iterable[Mapping[str, Any]], folder: Path, max_shard_bytes: int
) -> dict[str, list[ShardWriter]]:
    shards: dict[str, list[ShardWriter]] = {name: [] for name in SPLIT_NAMES}
    try:
        for record in records:
            split = assign_split(record["patient_id"])
            writers = shards[split]
            if not writers or writers[-1].num_bytes >= max_shard_bytes:
                if writers:
                    writers[-1].close()
                writers.append(ShardWriter(folder / f"{split}-{len(writers):05d}.parquet"))
            writers[-1].write(record)
    finally:
        for writers in shards.values():
            if writers:
                writers[-1].close()
    return shards


def _replace_shards(shards: Mapping[str, list[ShardWriter]], folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for path in find_shards(folder):
        path.unlink()
    for split, writers in shards.items():
        for index, writer in enumerate(writers):
            writer.path.rename(folder / shard_name(split, index, len(writers)))


def summarize(counts: Mapping[str, Counter], excluded: Counter, totals: Mapping[str, Any]) -> dict[str, Any]:
    """
    The summary of a run.

    Args:
        counts (`dict`): split → `records`, `with_prior` and `with_lateral`.
        excluded (`Counter`): reason → how many were left out.
        totals (`dict`): further entries, which come first.

    Raises:
        `ValueError`: there is no record.
    """
    splits = {name: {key: counts[name][key] for key in COUNTS} for name in SPLIT_NAMES}
    sums = {key: sum(split[key] for split in splits.values()) for key in COUNTS}
    summary = {**totals, **sums, "excluded": dict(sorted((+excluded).items())), "splits": splits}
    if not summary["records"]:
        raise ValueError(f"No study record could be made; left out: {summary['excluded'] or 'nothing'}.")
    return summary


def write_summary(summary: Mapping[str, Any], folder: Path) -> None:
    """Write `summary.json`."""
    text = json.dumps(summary, indent=2, ensure_ascii=False) + "\n"
    (folder / "summary.json").write_text(text, encoding="utf-8")
