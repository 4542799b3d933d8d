"""Study records: the one table that every corpus becomes, its splits, its writer and its reader.

A record is a study with its own images and those of its prior. `OUT/data/<split>-<shard>-of-<shards>.parquet` holds
them, so `datasets.load_dataset(OUT)` gives the splits; `OUT/summary.json` holds the counts.

Images are embedded as 8-bit grey PNG, short side at most 512. PNG because it is lossless: training, evaluation and
image reconstruction see the pixels that the reader gave, with no second JPEG compression, at about twice the bytes.
"""

import hashlib
import io
import json
import re
import tempfile
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, Image, IterableDataset, List, Value

from modeling_alta.configuration_alta import VIEW_NAMES
from modeling_alta.radiograph_alta import read_radiograph


__all__ = [
    "SPLIT_NAMES",
    "STUDY_FEATURES",
    "assign_split",
    "encode_image",
    "find_priors",
    "load_study_records",
    "write_study_records",
]

SPLIT_NAMES = ("train", "validation", "test")
SPLIT_ENDS = (0.8, 0.9, 1.0)
SHORT_SIDE = 512
MIN_SIDE = 32
PNG_LEVEL = 4  # on radiographs as small as level 6, in a third of its time
ROWS_PER_GROUP = 64
MAX_SHARD_BYTES = 500_000_000

STUDY_FEATURES = Features(
    {
        "study_id": Value("string"),
        "patient_id": Value("string"),
        "study_datetime": Value("timestamp[ms]"),
        **{name: Image() for name in VIEW_NAMES},
        "prior_study_id": Value("string"),
        "days_since_prior": Value("float64"),
        "findings": Value("string"),
        "impression": Value("string"),
        "report": Value("string"),
        "labels": List(Value("string")),
        "source": Value("string"),
        "license": Value("string"),
    }
)


def encode_image(image: Any, short_side: int = SHORT_SIDE) -> dict[str, bytes | None]:
    """
    Encode one radiograph for an image column.

    Args:
        image: whatever `read_radiograph` reads, of at least 32 pixels a side: less is an icon or a damaged export, and
            no radiograph. (The reader itself takes any size.)
        short_side (`int`): longest short side in pixels; a larger image is scaled down (bicubic, antialiased).

    Returns:
        `dict`: `bytes`, a PNG of one 8-bit channel, and `path`, `None`.

    Raises:
        `ValueError`: the image cannot be decoded or is too large (see `read_radiograph`), or is too small.
    """
    grey = read_radiograph(image, short_side=short_side)
    min_side = min(MIN_SIDE, short_side)
    if min(grey.size) < min_side:
        source = image if isinstance(image, (str, Path)) else type(image).__name__
        raise ValueError(
            f"`image` must have at least {min_side} pixels a side, got {grey.width} x {grey.height}: {source}."
        )
    buffer = io.BytesIO()
    grey.save(buffer, "PNG", compress_level=PNG_LEVEL)
    return {"bytes": buffer.getvalue(), "path": None}


def assign_split(patient_id: str) -> str:
    """Split of a patient, 80 / 10 / 10, by the SHA-256 of the patient id: the same on every machine and every run."""
    digest = hashlib.sha256(patient_id.encode()).digest()
    fraction = int.from_bytes(digest[:8], "big") / 2**64
    return next(name for name, end in zip(SPLIT_NAMES, SPLIT_ENDS, strict=True) if fraction < end)


def find_priors(days: Sequence[float | None]) -> list[int | None]:
    """
    Find the prior of every study of one patient: the latest study that is strictly earlier.

    Args:
        days (sequence of `float` or `None`): when each study was taken, in days from any origin; `None` where that is
            not known, and such a study has no prior and is never one.

    Returns:
        `list` of `int` or `None`: per study, the index of its prior; of studies at one time, the first is taken.

    Raises:
        `ValueError`: a time that is not finite.
    """
    if not all(day is None or isfinite(day) for day in days):
        raise ValueError(f"`days` must be finite numbers or None, got {list(days)}.")
    first_at: dict[float, int] = {}
    for index, day in enumerate(days):
        if day is not None:
            first_at.setdefault(day, index)
    times = sorted(first_at)
    earlier = [bisect_left(times, day) if day is not None else 0 for day in days]
    return [first_at[times[position - 1]] if position else None for position in earlier]


def write_study_records(
    records: Iterable[Mapping[str, Any]],
    output: str | Path,
    excluded: Counter | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    **totals: int,
) -> dict[str, Any]:
    """
    Write study records as Parquet, one set of files per split, while they come; only a few are held in memory.

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
        `ValueError`: a record with other keys, or no record at all.
    """
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output, prefix=".unfinished-") as folder:
        writers = {name: _SplitWriter(Path(folder), name, max_shard_bytes) for name in SPLIT_NAMES}
        try:
            for record in records:
                _check_keys(record)
                writers[assign_split(record["patient_id"])].write(record)
        finally:
            for writer in writers.values():
                writer.close()
        summary = _summarize(writers, excluded or Counter(), totals)
        if not summary["records"]:
            raise ValueError(f"No study record could be made; left out: {summary['excluded'] or 'nothing'}.")
        _replace_shards(writers.values(), output / "data")
    (output / "summary.json").write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return summary


class _SplitWriter:
    """Writes the records of one split into numbered Parquet files.

    A split without records gets no file: `datasets.load_dataset` fails on an empty one, for the other splits too.
    """

    def __init__(self, folder: Path, split: str, max_shard_bytes: int):
        self.folder, self.split, self.max_shard_bytes = folder, split, max_shard_bytes
        self.schema = STUDY_FEATURES.arrow_schema
        self.counts = Counter(records=0, with_prior=0, with_lateral=0)
        self.paths: list[Path] = []
        self.rows: list[Mapping[str, Any]] = []
        self.writer: pq.ParquetWriter | None = None
        self.num_bytes = 0

    def write(self, record: Mapping[str, Any]) -> None:
        if self.num_bytes >= self.max_shard_bytes:
            self.close()
        self.rows.append(record)
        self.num_bytes += sum(len(record[name]["bytes"]) for name in VIEW_NAMES if record[name] is not None)
        self.counts["records"] += 1
        self.counts["with_prior"] += record["prior_study_id"] is not None
        self.counts["with_lateral"] += record["current_lateral"] is not None
        if len(self.rows) == ROWS_PER_GROUP:
            self._flush()

    def close(self) -> None:
        self._flush()
        if self.writer:
            self.writer.close()
        self.writer, self.num_bytes = None, 0

    def _flush(self) -> None:
        if not self.rows:
            return
        if self.writer is None:
            self.paths.append(self.folder / f"{self.split}-{len(self.paths):05d}.parquet")
            self.writer = pq.ParquetWriter(self.paths[-1], self.schema, write_page_index=True)
        self.writer.write_table(pa.Table.from_pylist(self.rows, schema=self.schema))
        self.rows = []


def _check_keys(record: Mapping[str, Any]) -> None:
    if record.keys() != STUDY_FEATURES.keys():
        wrong = sorted(record.keys() ^ STUDY_FEATURES.keys())
        raise ValueError(f"A record must have the keys {list(STUDY_FEATURES)}; missing or unknown: {wrong}.")


def _summarize(writers: Mapping[str, _SplitWriter], excluded: Counter, totals: Mapping[str, int]) -> dict[str, Any]:
    splits = {name: dict(writer.counts) for name, writer in writers.items()}
    sums = {key: sum(counts[key] for counts in splits.values()) for key in ("records", "with_prior", "with_lateral")}
    return {**totals, **sums, "excluded": dict(sorted((+excluded).items())), "splits": splits}


def _replace_shards(writers: Iterable[_SplitWriter], folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for path in _shards(folder):
        path.unlink()
    for writer in writers:
        for index, path in enumerate(writer.paths):
            path.rename(folder / f"{writer.split}-{index:05d}-of-{len(writer.paths):05d}.parquet")


def _shards(folder: Path) -> list[Path]:
    return sorted(path for name in SPLIT_NAMES for path in folder.glob(f"{name}-*-of-*.parquet"))


def load_study_records(path: str | Path, split: str, streaming: bool = False) -> Dataset | IterableDataset:
    """
    Load one split of study records.

    Args:
        path (`str` or `Path`): a folder that `write_study_records` filled, or the id of a dataset on the Hub.
        split (`str`): "train", "validation" or "test"; in a folder, a split that got no record is an empty dataset.
        streaming (`bool`): read while iterating instead of preparing the whole split first.

    Raises:
        `ValueError`: a folder with no records, a split that is not there, a table that lacks columns of a record.
    """
    if _is_hub_id(path):
        records = _load_from_hub(str(path), split, streaming)
    else:
        records = _load_from_folder(Path(path), split, streaming)
    missing = [name for name in STUDY_FEATURES if name not in (records.features or {})]
    if missing:
        raise ValueError(f"`path` must hold study records, got {path}, which lacks the columns {missing}.")
    return records


def _is_hub_id(path: str | Path) -> bool:
    """`owner/name` is also a relative path: one whose parent is a folder here is meant as a path."""
    return bool(re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(path))) and not Path(path).parent.is_dir()


def _load_from_hub(path: str, split: str, streaming: bool) -> Dataset | IterableDataset:
    try:
        return datasets.load_dataset(path, split=split, streaming=streaming)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"`path` must be a folder of study records or a dataset on the Hub with the split '{split}', "
            f"got {path}: {error}"
        ) from error


def _load_from_folder(path: Path, split: str, streaming: bool) -> Dataset | IterableDataset:
    shards = _shards(path / "data")
    if not shards:
        raise ValueError(f"`path` must be a folder of study records (data/<split>-*.parquet), got {path} with none.")
    if split not in SPLIT_NAMES:
        raise ValueError(f"`split` must be one of {list(SPLIT_NAMES)}, got '{split}'.")
    files = [str(shard) for shard in shards if shard.name.startswith(f"{split}-")]
    if files:
        return datasets.load_dataset("parquet", data_files={split: files}, split=split, streaming=streaming)
    if streaming:
        return IterableDataset.from_generator(_no_records, features=STUDY_FEATURES)
    return Dataset.from_dict({name: [] for name in STUDY_FEATURES}, features=STUDY_FEATURES)


def _no_records() -> Iterator[dict[str, Any]]:
    yield from ()
