"""Which images and reports of an evaluation set are among the training records.

    python -m processing.overlap RECORDS BENCHMARK

RECORDS is a folder of study records, BENCHMARK another one or a folder of image files. Prints JSON for the model card.
Exact means the same pixels once both are made as records are (or the same report, white space and case aside); near
means difference hashes that differ in at most `--max-distance` of 256 bits. At the default of 16, copies that were
scaled, brightened or compressed again are found, and among 298 radiographs only true copies are.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from modeling_alta.configuration_alta import VIEW_NAMES
from modeling_alta.radiograph_alta import read_radiograph
from processing.engine.images import shrink
from processing.engine.shards import find_shards
from processing.records.record_scan import ScannedImage, ScannedRecord, scan_image, scan_records


__all__ = ["find_overlap", "main", "measure_distances"]

MAX_DISTANCE = 16
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm", ".dicom", ".tif", ".tiff")
EXAMPLES = 20
COLUMNS_AT_ONCE = 16384

Named = Mapping[str, ScannedImage]


def find_overlap(
    records: str | Path, benchmark: str | Path, max_distance: int = MAX_DISTANCE, split: str | None = "train"
) -> dict[str, Any]:
    """
    Compare training records with an evaluation set.

    Args:
        records (`str` or `Path`): folder of the training records. Priors count: a model has seen them too.
        benchmark (`str` or `Path`): folder of study records (of which the current images count), or of image files.
        max_distance (`int`, defaults to 16): bits in which near duplicates may differ, out of 256.
        split (`str`, *optional*): split of the training records; all with `None`.

    Returns:
        `dict`: `records` and `benchmark` (last part of the paths), `split`, `max_distance`, `training_images`,
        `benchmark_images`, `unreadable`, then `exact_images`, `near_images` (without the exact ones) and, for study
        records, `same_patients` and `same_reports`: the `count` in the benchmark, its `share`, and `examples` of the
        pairs.

    Raises:
        `ValueError`: a folder with neither records nor images, a split without records.
    """
    training = [record for record in scan_records(records) if split in (None, record.split)]
    if not training:
        raise ValueError(f"`split` must be one with study records, got {split!r}, which has none in {records}.")
    is_records = bool(find_shards(Path(benchmark) / "data"))
    tested = scan_records(benchmark) if is_records else []
    images = _name_images(tested, VIEW_NAMES[:2]) if is_records else _scan_files(Path(benchmark))
    known, readable = _readable(_name_images(training, VIEW_NAMES)), _readable(images)
    exact, near = _match_images(known, readable, max_distance)
    found = {
        **{"records": Path(records).name, "benchmark": Path(benchmark).name, "split": split},
        **{"max_distance": max_distance, "training_images": len({image.pixels for image in known.values()})},
        **{"benchmark_images": len(images), "unreadable": len(images) - len(readable)},
        "exact_images": _tell(exact, len(images)),
        "near_images": _tell(near, len(images)),
    }
    return found | (_compare_studies(training, tested) if is_records else {})


def _name_images(records: Sequence[ScannedRecord], views: Sequence[str]) -> dict[str, ScannedImage]:
    return {
        f"{record.study_id}: {view}": record.images[view]
        for record in records
        for view in views
        if view in record.images
    }


def _scan_files(folder: Path) -> dict[str, ScannedImage]:
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise ValueError(f"`benchmark` must be a folder of study records or of image files, got {folder} with none.")
    progress = tqdm(paths, desc="reading the benchmark", unit="image", delay=2)
    return {str(path.relative_to(folder)): _scan_file(path) for path in progress}


def _scan_file(path: Path) -> ScannedImage:
    try:
        return scan_image(shrink(read_radiograph(path)))
    except (OSError, ValueError):
        return ScannedImage(None, None)


def _readable(images: Named) -> dict[str, ScannedImage]:
    return {name: image for name, image in images.items() if image.pixels is not None}


def _match_images(known: Named, tested: Named, max_distance: int) -> tuple[list[str], list[str]]:
    """Pairs of names with exactly the same pixels, and pairs that are only near."""
    by_pixels: dict[bytes, str] = {}
    for name, image in known.items():
        by_pixels.setdefault(image.pixels, name)
    exact = [f"{name} = {by_pixels[image.pixels]}" for name, image in tested.items() if image.pixels in by_pixels]
    others = {name: image for name, image in tested.items() if image.pixels not in by_pixels}
    names = list(by_pixels.values())
    distances, nearest = measure_distances([i.dhash for i in others.values()], [known[name].dhash for name in names])
    near = [
        f"{name} ~ {names[index]} ({distance} bits)"
        for name, distance, index in zip(others, distances, nearest, strict=True)
        if distance <= max_distance
    ]
    return exact, near


def measure_distances(tested: Sequence[bytes], known: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """
    Distance to the nearest hash, in bits, by products of matrices of ±1, which are fast everywhere.

    Args:
        tested, known (sequences of `bytes`): hashes of one length.

    Returns:
        two `np.ndarray` of shape `(num_tested,)`: the distance, and the index of the nearest in `known`.
    """
    if not tested:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    rows, num_bits = _signs(tested), 8 * len(known[0])
    best = np.full(len(tested), num_bits + 1, np.int64)
    nearest = np.zeros(len(tested), np.int64)
    for start in range(0, len(known), COLUMNS_AT_ONCE):
        columns = _signs(known[start : start + COLUMNS_AT_ONCE])
        for row in range(0, len(rows), 1024):
            part = slice(row, row + 1024)
            distances = (num_bits - rows[part] @ columns.T) / 2  # (tested, known)
            index = distances.argmin(1)
            found = distances[np.arange(len(index)), index].astype(np.int64)
            nearest[part] = np.where(found < best[part], start + index, nearest[part])
            best[part] = np.minimum(found, best[part])
    return best, nearest


def _signs(hashes: Sequence[bytes]) -> np.ndarray:
    bits = np.unpackbits(np.frombuffer(b"".join(hashes), np.uint8).reshape(len(hashes), -1), axis=1)
    return bits.astype(np.float32) * 2 - 1


def _compare_studies(training: Sequence[ScannedRecord], tested: Sequence[ScannedRecord]) -> dict[str, Any]:
    patients = {record.patient_id for record in training}
    reports = {record.report: record.study_id for record in training if record.num_words}
    same = [f"{record.study_id} = {reports[record.report]}" for record in tested if record.report in reports]
    of_patients = [record.study_id for record in tested if record.patient_id in patients]
    return {"same_patients": _tell(of_patients, len(tested)), "same_reports": _tell(same, len(tested))}


def _tell(pairs: Sequence[str], total: int) -> dict[str, Any]:
    return {"count": len(pairs), "share": len(pairs) / total, "examples": list(pairs[:EXAMPLES])}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m processing.overlap", description=__doc__.splitlines()[0])
    parser.add_argument("records", help="folder of the training records")
    parser.add_argument("benchmark", help="folder of study records or of image files")
    parser.add_argument("--max-distance", type=int, default=MAX_DISTANCE, help="bits of 256 (default: 16)")
    parser.add_argument("--split", default="train", help="of the training records, or 'all' (default: train)")
    parser.add_argument("--output", type=Path, help="JSON file to write too")
    options = parser.parse_args(arguments)
    split = None if options.split == "all" else options.split
    try:
        found = find_overlap(options.records, options.benchmark, options.max_distance, split)
    except (OSError, ValueError) as error:
        parser.exit(2, f"error: {error}\n")
    text = json.dumps(found, indent=2, ensure_ascii=False)
    print(text)
    if options.output:
        options.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
