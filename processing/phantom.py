"""PhantomCXR: made chest studies, whose every finding is known, as study records.

    python -m processing.phantom --output OUT --num-studies N --seed S

Patients have one to four studies, each with a frontal and most with a lateral; every study after the first has the one
before it as its prior. The report says what the views show, what changed against the prior, and what the lateral alone
shows. A study depends on the seed, its patient and its number alone: more studies leave the first ones as they are.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from processing.corpora.phantom_findings import (
    Findings,
    draw_findings,
    draw_next_findings,
    find_labels,
    visible_findings,
)
from processing.corpora.phantom_images import Anatomy, draw_anatomy, draw_view
from processing.corpora.phantom_reports import write_sections
from processing.engine.images import MIN_SIDE, encode_image
from processing.engine.shards import write_study_records
from processing.reports.training_text import compose_report


__all__ = ["PhantomStudy", "draw_patient", "main", "make_records", "prepare_phantom"]

SOURCE, LICENSE = "PhantomCXR", "CC0-1.0"
STUDIES_SHARES = (0.15, 0.35, 0.3, 0.2)  # of patients with one to four studies
LATERAL_SHARE = 0.8
FIRST_DAY = datetime(2020, 1, 1)


@dataclass(frozen=True)
class PhantomStudy:
    """
    One study of a patient.

    Args:
        study_id, patient_id (`str`).
        day (`int`): days after the first study of the patient.
        anatomy ([`Anatomy`]): of the patient.
        found (`dict`): what is there, seen or not.
        has_lateral (`bool`): whether a lateral was taken.
        seeds (`tuple[int, ...]`): of the films and the wording.
    """

    study_id: str
    patient_id: str
    day: int
    anatomy: Anatomy
    found: Findings
    has_lateral: bool
    seeds: tuple[int, ...]

    def draw(self, view: str, size: int) -> np.ndarray | None:
        """Picture "frontal" or "lateral", 8-bit grey of shape `(size, size)`; `None` where it was not taken."""
        if view == "lateral" and not self.has_lateral:
            return None
        rng = np.random.default_rng([*self.seeds, view == "lateral"])
        return draw_view(self.anatomy, self.found, view, size, rng)


def draw_patient(seed: int, index: int) -> list[PhantomStudy]:
    """
    The studies of one patient, in the order of their days.

    Args:
        seed (`int`): of the whole set.
        index (`int`): number of the patient, from 0.
    """
    rng = np.random.default_rng([seed, index])
    anatomy, name = draw_anatomy(rng), f"phantom-{seed}-{index:06d}"
    found, day, studies = draw_findings(rng), 0, []
    for number in range(1 + int(rng.choice(len(STUDIES_SHARES), p=STUDIES_SHARES))):
        if number:
            found, day = draw_next_findings(found, rng), day + int(rng.integers(1, 365))
        has_lateral = bool(rng.random() < LATERAL_SHARE)
        seeds = (seed, index, number)
        studies.append(PhantomStudy(f"{name}-{number}", name, day, anatomy, found, has_lateral, seeds))
    return studies


def make_records(num_studies: int, seed: int = 0, size: int = 128) -> Iterator[dict[str, Any]]:
    """
    Study records, patient after patient.

    Args:
        num_studies (`int`): how many; the last patient's later studies are left out where they are more.
        seed (`int`): decides everything.
        size (`int`): side of the images in pixels.

    Raises:
        `ValueError`: fewer than one study, or a size that is no picture.
    """
    if num_studies < 1:
        raise ValueError(f"`num_studies` must be at least 1, got {num_studies}.")
    if size < MIN_SIDE:
        raise ValueError(f"`size` must be at least {MIN_SIDE}, got {size}.")
    index = 0
    while num_studies > 0:
        studies = draw_patient(seed, index)[:num_studies]
        yield from _records_of_patient(studies, size)
        num_studies, index = num_studies - len(studies), index + 1


def _records_of_patient(studies: list[PhantomStudy], size: int) -> Iterator[dict[str, Any]]:
    prior, prior_images = None, {"frontal": None, "lateral": None}
    for study in studies:
        images = {view: _encode(study.draw(view, size)) for view in ("frontal", "lateral")}
        yield {
            "study_id": study.study_id,
            "patient_id": study.patient_id,
            "study_datetime": FIRST_DAY + timedelta(days=study.day),
            **{f"current_{view}": image for view, image in images.items()},
            **{f"prior_{view}": image for view, image in prior_images.items()},
            "prior_study_id": prior.study_id if prior else None,
            "days_since_prior": float(study.day - prior.day) if prior else None,
            **_texts(study, prior),
            "labels": find_labels(visible_findings(study.found, study.has_lateral)),
            "source": SOURCE,
            "license": LICENSE,
        }
        prior, prior_images = study, images


def _texts(study: PhantomStudy, prior: PhantomStudy | None) -> dict[str, str]:
    rng = np.random.default_rng([*study.seeds, 2])
    before, prior_has_lateral = (prior.found, prior.has_lateral) if prior else (None, False)
    sections = write_sections(study.found, before, study.has_lateral, prior_has_lateral, rng)
    return {**sections, "report": compose_report(sections, "findings+impression")}


def _encode(pixels: np.ndarray | None) -> dict[str, bytes | None] | None:
    return None if pixels is None else encode_image(Image.fromarray(pixels))


def prepare_phantom(output: str | Path, num_studies: int, seed: int = 0, size: int = 128) -> dict[str, Any]:
    """
    Write made studies as study records, split by patient.

    Args:
        output (`str` or `Path`): folder to write `data/` and `summary.json` into.
        num_studies, seed, size (`int`): see [`make_records`].

    Returns:
        `dict`: the summary of `write_study_records`.
    """
    return write_study_records(make_records(num_studies, seed, size), output, seed=seed, size=size)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, type=Path, help="folder to write")
    parser.add_argument("--num-studies", required=True, type=int, help="how many studies")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--size", type=int, default=128, help="side of the images in pixels (default: %(default)s)")
    args = parser.parse_args(argv)
    try:
        summary = prepare_phantom(args.output, args.num_studies, args.seed, args.size)
    except ValueError as error:
        parser.error(str(error))
    counts = ", ".join(f"{split['records']} {name}" for name, split in summary["splits"].items())
    print(f"{summary['records']} studies ({counts}), {summary['with_prior']} with a prior: {args.output}")


if __name__ == "__main__":
    main()
