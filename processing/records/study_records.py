"""Study records: the one table that every corpus becomes, and its reader.

`OUT/data/<split>-<shard>-of-<shards>.parquet` holds the records, so `datasets.load_dataset(OUT)` gives the splits;
`OUT/summary.json` holds the counts. Columns and splits are in `study_features`, the rule of pairing in `pairing`, the
encoding of images in `images`, the writer in `shards`, and the engine that does all of it for a corpus in
`write_records`; what readers of records need from there can be imported from here.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, IterableDataset

from processing.engine.images import encode_image
from processing.engine.shards import write_study_records
from processing.records.record_files import find_shards_of, is_hub_id
from processing.records.study_features import SPLIT_NAMES, STUDY_FEATURES, assign_split


__all__ = [
    "SPLIT_NAMES",
    "STUDY_FEATURES",
    "assign_split",
    "encode_image",
    "load_study_records",
    "write_study_records",
]


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
    if is_hub_id(path):
        records = _load_from_hub(str(path), split, streaming)
    else:
        records = _load_from_folder(Path(path), split, streaming)
    missing = [name for name in STUDY_FEATURES if name not in (records.features or {})]
    if missing:
        raise ValueError(f"`path` must hold study records, got {path}, which lacks the columns {missing}.")
    return records


def _load_from_hub(path: str, split: str, streaming: bool) -> Dataset | IterableDataset:
    try:
        return datasets.load_dataset(path, split=split, streaming=streaming)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"`path` must be a folder of study records or a dataset on the Hub with the split '{split}', "
            f"got {path}: {error}"
        ) from error


def _load_from_folder(path: Path, split: str, streaming: bool) -> Dataset | IterableDataset:
    files = find_shards_of(path, split)
    if files:
        return datasets.load_dataset("parquet", data_files={split: files}, split=split, streaming=streaming)
    if streaming:
        return IterableDataset.from_generator(_no_records, features=STUDY_FEATURES)
    return Dataset.from_dict({name: [] for name in STUDY_FEATURES}, features=STUDY_FEATURES)


def _no_records() -> Iterator[dict[str, Any]]:
    yield from ()
