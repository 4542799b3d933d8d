"""
How much faster is a large JPEG read with the decoder's own down-scaling than decoded in full, and is it the same?

`python -m benchmarks.radiograph` prints JSON: for each image the milliseconds of both ways, taken in turn in one run,
their ratio, and the mean and largest difference of the results in grey levels. Both ways read bytes in memory and end
in 8-bit grey of the same size. Images: a chest-like one of 3000 x 2500, as grey and as colour JPEG (2 MB), and with a
strong grain (3 MB), where both ways spend most of their time on the entropy code, which nothing shortens; and the
radiographs in `samples/`, enlarged to a short side of 2500, as files of that size are too large to ship.
"""

import argparse
import io
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, features
from PIL.Image import Resampling

from modeling_alta.radiograph_alta import read_radiograph


SAMPLES = Path(__file__).parents[1] / "samples" / "images"
LARGE_SIDE = 2500


def chest_like(height: int = 3000, width: int = 2500, grain: float = 3) -> Image.Image:
    """Lungs, ribs and mediastinum as smooth shapes, with the grain of a detector."""
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    pixels = 100 + 120 * np.exp(-((x / 0.25) ** 2)) + 25 * np.sin(40 * y + 3 * x * x) ** 8
    for side in (-0.45, 0.45):
        pixels -= 70 * np.exp(-((((x - side) / 0.25) ** 2 + ((y + 0.1) / 0.5) ** 2) ** 2))
    pixels += np.random.default_rng(0).normal(0, grain, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def enlarged(path: Path) -> Image.Image:
    """A sample at the size at which radiographs leave the detector."""
    grey = read_radiograph(path)
    scale = LARGE_SIDE / min(grey.size)
    return grey.resize([round(side * scale) for side in grey.size], Resampling.LANCZOS)


def read_in_full(content: bytes, short_side: int) -> Image.Image:
    """Decode every pixel, then scale down, as the reader does for every other file."""
    grey = read_radiograph(content)
    scale = short_side / min(grey.size)
    return grey.resize([round(side * scale) for side in grey.size], Resampling.BICUBIC)


def compare(picture: Image.Image, quality: int, short_side: int, repeats: int) -> dict[str, float | int | list[int]]:
    """Both ways on one picture saved as JPEG; the median of `repeats` runs each, in turn."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    content = buffer.getvalue()
    full_ms, reduced_ms = [], []
    for _ in range(repeats):
        full_ms.append(_milliseconds(lambda: read_in_full(content, short_side)))
        reduced_ms.append(_milliseconds(lambda: read_radiograph(content, short_side=short_side)))
    full, reduced = read_in_full(content, short_side), read_radiograph(content, short_side=short_side)
    difference = np.abs(np.asarray(full, int) - np.asarray(reduced, int))
    return {
        "size": list(picture.size),
        "result_size": list(reduced.size),
        "jpeg_kb": len(content) // 1000,
        "full_ms": round(statistics.median(full_ms), 2),
        "reduced_ms": round(statistics.median(reduced_ms), 2),
        "ratio": round(statistics.median(full_ms) / statistics.median(reduced_ms), 2),
        "mean_difference": round(float(difference.mean()), 3),
        "max_difference": int(difference.max()),
    }


def _milliseconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return (time.perf_counter() - start) * 1000


def main() -> None:
    """Measure, and print the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--short-side", type=int, default=512)
    parser.add_argument("--quality", type=int, default=95, help="of the JPEGs that are read")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--samples", type=int, default=8, help="number of radiographs of samples/ to measure")
    args = parser.parse_args()
    grey = chest_like()
    pictures = {"chest-like, grey": grey, "chest-like, colour": grey.convert("RGB")}
    pictures["chest-like, strong grain"] = chest_like(grain=6)
    pictures |= {path.name: enlarged(path) for path in sorted(SAMPLES.glob("*.jpg"))[: args.samples]}
    images = {name: compare(image, args.quality, args.short_side, args.repeats) for name, image in pictures.items()}
    summary = {
        "min_ratio": min(result["ratio"] for result in images.values()),
        "max_mean_difference": max(result["mean_difference"] for result in images.values()),
    }
    versions = {"pillow": PIL.__version__, "libjpeg_turbo": features.version_feature("libjpeg_turbo")}
    print(json.dumps({**vars(args), **versions, **summary, "images": images}, indent=2))


if __name__ == "__main__":
    main()
