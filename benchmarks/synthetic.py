"""A corpus of any size out of a few made images, for benchmarks and tests."""

from pathlib import Path

import numpy as np
from PIL import Image

from processing.engine.study_plan import Corpus, ImageFile, Plan, Study


__all__ = ["plan_synthetic", "write_radiographs"]

STUDIES_PER_PATIENT = 3


def write_radiographs(root: str | Path, num_images: int, size: tuple[int, int], suffix: str = "png") -> list[str]:
    """
    Write images that compress about as radiographs do: smooth shapes with a little noise.

    Args:
        root (`str` or `Path`): folder to write into.
        num_images (`int`): how many.
        size (`tuple` of `int`): width and height in pixels.
        suffix (`str`): "png" or "jpg".
    """
    names = [f"{index}.{suffix}" for index in range(num_images)]
    for index, name in enumerate(names):
        generator = np.random.default_rng(index)
        coarse = Image.fromarray(generator.integers(0, 256, (8, 8), dtype=np.uint8))
        smooth = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), np.float32)
        pixels = np.clip(smooth + generator.normal(0, 3, smooth.shape), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(Path(root, name), quality=90)
    return names


def plan_synthetic(root: str | Path, names: list[str], num_studies: int, report: str = "No finding.") -> Plan:
    """Plan studies of three to a patient, a day apart, each with a frontal and every other one with a lateral.

    Args:
        root (`str` or `Path`): folder of the images.
        names (`list` of `str`): the images, used in turn.
        num_studies (`int`): how many.
        report (`str`): report of every study, with its number put behind it.
    """
    studies = []
    for index in range(num_studies):
        patient, day = divmod(index, STUDIES_PER_PATIENT)
        frontal = ImageFile(names[index % len(names)])
        laterals = (ImageFile(names[(index + 1) % len(names)]),) if index % 2 else ()
        text = {"report": f"{report} {index}", "source": "synthetic", "license": "none"}
        studies.append(Study(f"s{index}", f"p{patient}", (frontal,), laterals, time=day, labels=("A",), **text))
    return Plan(Corpus("synthetic", root), studies, totals={"rows": num_studies + num_studies // 2})
