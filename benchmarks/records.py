"""How fast study records are made, and where the time goes.

    python -m benchmarks.records [--root FOLDER_OF_IMAGES] [--memory-studies 50000]

Prints JSON: studies per second per core on real or made images, the share of time in decode, resize and encode, and
with `--memory-studies` the peak memory of a run over that many studies of tiny images.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.memory import PeakMemory
from benchmarks.synthetic import plan_synthetic, write_radiographs
from modeling_alta.radiograph_alta import read_radiograph
from processing.engine.images import encode_picture, shrink
from processing.engine.write_records import write_records


__all__ = ["main", "measure_memory", "measure_parts", "measure_speed"]

SUFFIXES = (".jpg", ".jpeg", ".png", ".dcm")


def measure_parts(paths: Iterable[Path]) -> dict[str, Any]:
    """Milliseconds per image, and their shares, of reading and decoding, of the resize and of the encoding."""
    seconds, count, num_bytes = {"decode": 0.0, "resize": 0.0, "encode": 0.0}, 0, 0
    for path in paths:
        start = time.perf_counter()
        grey = read_radiograph(path)
        decoded = time.perf_counter()
        small = shrink(grey)
        resized = time.perf_counter()
        num_bytes += len(encode_picture(small))
        seconds["decode"] += decoded - start
        seconds["resize"] += resized - decoded
        seconds["encode"] += time.perf_counter() - resized
        count += 1
    total = sum(seconds.values())
    return {
        "images": count,
        "milliseconds_per_image": {name: round(1000 * value / count, 2) for name, value in seconds.items()},
        "share": {name: round(value / total, 3) for name, value in seconds.items()},
        "bytes_per_image": num_bytes // count,
    }


def measure_speed(root: Path, names: list[str], num_studies: int, num_proc: int) -> dict[str, Any]:
    """Studies per second of a whole run: decoding, pairing, encoding and writing."""
    plan = plan_synthetic(root, names, num_studies)
    with tempfile.TemporaryDirectory() as output, PeakMemory() as memory:
        before, start = memory.peak, time.perf_counter()
        summary = write_records(plan, output, num_proc)
        seconds = time.perf_counter() - start
        size = sum(path.stat().st_size for path in Path(output).rglob("*.parquet"))
    return {
        "num_proc": num_proc,
        "studies": summary["records"],
        "images": summary["images"],
        "seconds": round(seconds, 2),
        "studies_per_second": round(num_studies / seconds, 2),
        "studies_per_second_per_core": round(num_studies / seconds / num_proc, 2),
        "output_megabytes": round(size / 1e6, 1),
        "memory_before_megabytes": round(before / 1e6),
        "peak_memory_megabytes": round(memory.peak / 1e6),
    }


def measure_memory(num_studies: int, num_proc: int) -> dict[str, Any]:
    """Peak memory, this process and its workers together, over many studies of tiny images."""
    with tempfile.TemporaryDirectory() as root:
        return measure_speed(Path(root), write_radiographs(root, 50, (40, 40)), num_studies, num_proc)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.records", description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, help="folder of images (default: made JPEGs of 2544 x 3056, as in MIMIC)")
    parser.add_argument("--num-studies", type=int, default=60, help="studies to make (default: 60)")
    parser.add_argument("--num-proc", type=int, default=os.cpu_count(), help="worker processes (default: all cores)")
    parser.add_argument("--memory-studies", type=int, default=0, help="studies of the memory run (default: none)")
    options = parser.parse_args()
    # First, while nothing that the other runs leave in the memory counts.
    memory = measure_memory(options.memory_studies, options.num_proc) if options.memory_studies else None
    with tempfile.TemporaryDirectory() as folder:
        root = options.root or Path(folder)
        if options.root is None:
            write_radiographs(root, 6, (2544, 3056), "jpg")
        names = sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.suffix.lower() in SUFFIXES)
        if not names:
            parser.error(f"`--root` must be a folder of images, got {root} with none")
        result = {"machine": platform.machine(), "cores": os.cpu_count(), "images_from": options.root and root.name}
        result["parts"] = measure_parts(root / name for name in names[:100])
        result["run"] = [
            measure_speed(root, names, options.num_studies, num_proc) for num_proc in sorted({1, options.num_proc})
        ]
    result["memory"] = memory
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
