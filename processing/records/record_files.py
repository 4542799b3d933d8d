"""The Parquet files of a split of study records, in a folder or on the Hub: their names, footers and fingerprint."""

import hashlib
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import datasets
import fsspec

from processing.engine.shards import find_shards
from processing.records.study_features import SPLIT_NAMES


__all__ = [
    "NUM_THREADS",
    "find_record_files",
    "find_shards_of",
    "is_hub_id",
    "open_record_file",
    "read_footers",
    "records_fingerprint",
]

NUM_THREADS = 16  # they wait for a disk or a network
FOOTER_END = 8  # bytes: the footer's length and the magic number
LIKELY_FOOTER = 64 * 1024


def is_hub_id(path: str | Path) -> bool:
    """`owner/name` is also a relative path: one whose parent is a folder here is meant as a path."""
    return bool(re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(path))) and not Path(path).parent.is_dir()


def find_record_files(path: str | Path, split: str) -> list[str]:
    """
    The files of a split, in order.

    Args:
        path (`str` or `Path`): a folder that `write_study_records` filled, or the id of a dataset on the Hub.
        split (`str`): "train", "validation" or "test"; in a folder, a split that got no record has no file.

    Returns:
        `list[str]`: paths, or URLs that name the commit, so that a push meanwhile changes nothing.

    Raises:
        `ValueError`: a folder with no records, a split that is not there, a dataset of other files than Parquet.
    """
    return _find_on_hub(str(path), split) if is_hub_id(path) else find_shards_of(Path(path), split)


def find_shards_of(path: Path, split: str) -> list[str]:
    """The files of a split in a folder; arguments and errors are those of `find_record_files`."""
    shards = find_shards(path / "data")
    if not shards:
        raise ValueError(f"`path` must be a folder of study records (data/<split>-*.parquet), got {path} with none.")
    if split not in SPLIT_NAMES:
        raise ValueError(f"`split` must be one of {list(SPLIT_NAMES)}, got '{split}'.")
    return [str(shard) for shard in shards if shard.name.startswith(f"{split}-")]


def open_record_file(file: str, size: int | None = None) -> BinaryIO:
    """
    Open a file for reads of exactly the bytes that are asked for.

    Args:
        file (`str`): a path or a URL of `find_record_files`.
        size (`int`, *optional*): its size in bytes, which saves asking for it.
    """
    filesystem, name = fsspec.url_to_fs(file)
    # fsspec would read whole blocks ahead, most of them images that nobody asked for.
    return filesystem.open(name, "rb", cache_type="none", **({} if size is None else {"size": size}))


def read_footers(files: Iterable[str]) -> list[tuple[bytes, int]]:
    """
    The footers of Parquet files, in order.

    Returns:
        `list[tuple[bytes, int]]`: the end of each file from its footer on, and the size of the file in bytes.

    Raises:
        `ValueError`: a file that is no Parquet file, or cut off.
    """
    with ThreadPoolExecutor(NUM_THREADS) as threads:
        return list(threads.map(_read_footer, files))


def records_fingerprint(path: str | Path, split: str) -> str:
    """
    A short hash of what a split holds, the same for a folder and for its copy on the Hub.

    It covers names, sizes and footers of the files, and so the number of rows, the size of every column chunk and the
    range of its values; the records themselves are not read.

    Args:
        path (`str` or `Path`), split (`str`): see `find_record_files`.

    Returns:
        `str`: 16 hexadecimal digits.
    """
    files = find_record_files(path, split)
    digest = hashlib.sha256()
    for file, (footer, size) in zip(files, read_footers(files), strict=True):
        digest.update(f"{file.rsplit('/', 1)[-1]} {size} {len(footer)}\n".encode() + footer)
    return digest.hexdigest()[:16]


def _find_on_hub(path: str, split: str) -> list[str]:
    try:
        found = datasets.load_dataset_builder(path).config.data_files or {}
    except (OSError, ValueError) as error:
        raise ValueError(f"`path` must be a dataset on the Hub, got {path}: {error}") from error
    if split not in found:
        raise ValueError(f"`split` must be one of {sorted(map(str, found))} of the dataset {path}, got '{split}'.")
    others = [file for file in found[split] if not file.endswith(".parquet")]
    if others:
        raise ValueError(f"`path` must be a dataset of Parquet files, got {path} with {others[0]}.")
    return list(found[split])


def _read_footer(file: str) -> tuple[bytes, int]:
    with open_record_file(file) as source:
        size = source.seek(0, 2)
        start = max(0, size - LIKELY_FOOTER)
        source.seek(start)
        end = source.read(size - start)
        length = int.from_bytes(end[-FOOTER_END:-4], "little") + FOOTER_END
        if end[-4:] != b"PAR1" or length > size:
            raise ValueError(f"`path` must hold whole Parquet files, got {file}, which is none.")
        if length > len(end):
            source.seek(size - length)
            end = source.read(length)
    return end[-length:], size
