"""Reads finished records and tells what is in each, without keeping an image: the ground of `check` and `overlap`."""

import hashlib
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image
from tqdm import tqdm

from modeling_alta.configuration_alta import VIEW_NAMES
from processing.engine.shards import find_shards
from processing.engine.workers import map_ordered


__all__ = ["ScannedImage", "ScannedRecord", "difference_hash", "read_rows", "scan_image", "scan_records"]

HASH_SIDE = 16
COPIED = ("study_id", "patient_id", "study_datetime", "prior_study_id", "days_since_prior")
GROUPS_PER_WORKER = 8  # fewer are done before a worker has started


@dataclass(frozen=True, slots=True)
class ScannedImage:
    """
    What is known of one image: the SHA-256 of its size and pixels, and its difference hash of 256 bits.

    Both are `None` where it cannot be decoded.
    """

    pixels: bytes | None
    dhash: bytes | None


@dataclass(frozen=True, slots=True)
class ScannedRecord:
    """A record without its images, and where it stands: `row` of `group` of the file `shard`."""

    split: str
    shard: str
    group: int
    row: int
    study_id: str
    patient_id: str
    study_datetime: datetime | None
    prior_study_id: str | None
    days_since_prior: float | None
    images: Mapping[str, ScannedImage]
    report: bytes
    num_words: int
    labels: tuple[str, ...]
    source: str


def difference_hash(grey: Image.Image) -> bytes:
    """
    256 bits that say where the image grows brighter to the right, on 16 rows of 17 averaged pixels.

    Copies of an image that were scaled, brightened or compressed again differ in few of them. The usual 64 bits are
    too few for radiographs of the chest, which look alike: of 298 images of the COVID-19 collection 57 pairs differ in
    at most 4 of 64 bits, but only the 5 pairs of true copies in less than 31 of 256.

    Args:
        grey (`PIL.Image.Image` of mode "L"): the image.
    """
    small = np.asarray(grey.resize((HASH_SIDE + 1, HASH_SIDE), Image.Resampling.BOX), np.int16)
    return np.packbits(small[:, 1:] > small[:, :-1]).tobytes()


def scan_image(grey: Image.Image) -> ScannedImage:
    """The two hashes of an 8-bit grey image."""
    pixels = hashlib.sha256(repr(grey.size).encode() + grey.tobytes()).digest()
    return ScannedImage(pixels, difference_hash(grey))


def scan_records(
    path: str | Path, num_proc: int | None = None, views: Sequence[str] = VIEW_NAMES
) -> list[ScannedRecord]:
    """
    Scan every record of a folder; every image is decoded once.

    Args:
        path (`str` or `Path`): folder of study records.
        num_proc (`int`, *optional*): worker processes; all cores by default.
        views (sequence of `str`): the image columns to look at.

    Raises:
        `ValueError`: a folder without records.
    """
    shards = find_shards(Path(path) / "data")
    if not shards:
        raise ValueError(f"`path` must be a folder of study records (data/<split>-*.parquet), got {path} with none.")
    total = sum(pq.read_metadata(shard).num_row_groups for shard in shards)
    num_proc = min(num_proc or os.cpu_count() or 1, 1 + total // GROUPS_PER_WORKER)
    # Workers get rows, not files: they are forked, and the threads of Arrow do not survive that.
    found = map_ordered(_scan_group, _read_groups(shards, tuple(views)), num_proc)
    progress = tqdm(found, total=total, desc="checking", unit="group", delay=2)
    return [record for records in progress for record in records]


def _read_groups(shards: Sequence[Path], views: tuple[str, ...]) -> Iterator[tuple]:
    for shard in shards:
        with pq.ParquetFile(shard) as file:
            for group in range(file.num_row_groups):
                yield shard, group, file.read_row_group(group).to_pylist(), views


def _scan_group(task: tuple[Path, int, list[dict[str, Any]], tuple[str, ...]]) -> list[ScannedRecord]:
    shard, group, rows, views = task
    known: dict[bytes, ScannedImage] = {}
    return [_scan_row(shard, group, number, row, views, known) for number, row in enumerate(rows)]


def _scan_row(
    shard: Path, group: int, number: int, row: Mapping[str, Any], views: Sequence[str], known: dict
) -> ScannedRecord:
    report = " ".join((row["report"] or "").lower().split())
    return ScannedRecord(
        split=shard.name.split("-")[0],
        shard=str(shard),
        group=group,
        row=number,
        images={name: _scan_image(row[name]["bytes"] or b"", known) for name in views if row[name] is not None},
        report=hashlib.sha256(report.encode()).digest(),
        num_words=len(report.split()),
        labels=tuple(row["labels"] or ()),
        source=(row["source"] or "").split(",")[0],
        **{name: row[name] for name in COPIED},
    )


def _scan_image(content: bytes, known: dict[bytes, ScannedImage]) -> ScannedImage:
    """A prior's bytes are those of its own record, so half of the images need not be decoded again."""
    key = hashlib.sha256(content).digest()
    if key not in known:
        known[key] = _decode(content)
    return known[key]


def _decode(content: bytes) -> ScannedImage:
    try:
        with Image.open(io.BytesIO(content)) as image:
            grey = image.convert("L")
    except Exception:  # decoders raise almost any error on damaged content
        return ScannedImage(None, None)
    return scan_image(grey)


def read_rows(records: Sequence[ScannedRecord]) -> list[dict[str, Any]]:
    """The whole rows of some scanned records, images as `{"bytes", "path"}`."""
    rows = []
    for record in records:
        table = pq.ParquetFile(record.shard).read_row_group(record.group)
        rows += table.slice(record.row, 1).to_pylist()
    return rows
