"""The 14 labels of the CheXpert labeler, which CheXpert's and MIMIC-CXR-JPG's tables share: 1, 0, -1 or empty."""

import argparse
from collections.abc import Mapping
from pathlib import Path


__all__ = ["CHEXPERT_LABELS", "UNCERTAIN_AS", "add_uncertain_option", "read_positive_labels"]

CHEXPERT_LABELS = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
UNCERTAIN_AS = ("ones", "zeros")
POSITIVE, UNCERTAIN, NEGATIVE = {"1", "1.0"}, {"-1", "-1.0"}, {"0", "0.0", ""}


def read_positive_labels(row: Mapping[str, str], uncertain_as: str, table: str | Path) -> tuple[str, ...]:
    """
    The labels of a row that hold: those of value 1. Negative (0) and unmentioned ones (empty) are not told apart.

    Args:
        row (mapping of `str` to `str`): value of each of `CHEXPERT_LABELS`.
        uncertain_as (`str`): what is done with an uncertain label, -1: "zeros", it does not hold (U-Zeros of the
            CheXpert paper, section 3), or "ones", it does (U-Ones).
        table (`str` or `Path`): for the error.

    Raises:
        `ValueError`: another value than 1, 0, -1 and empty, or an unknown `uncertain_as`.
    """
    if uncertain_as not in UNCERTAIN_AS:
        raise ValueError(f"`uncertain_as` must be one of {list(UNCERTAIN_AS)}, got {uncertain_as!r}.")
    positive = POSITIVE | UNCERTAIN if uncertain_as == "ones" else POSITIVE
    labels = tuple(name for name in CHEXPERT_LABELS if row[name] in positive)
    for name in CHEXPERT_LABELS:
        if row[name] not in POSITIVE | UNCERTAIN | NEGATIVE:
            raise ValueError(f"{table} must have labels of 1, 0, -1 or none, got {row[name]!r} for {name!r}.")
    return labels


def add_uncertain_option(parser: argparse.ArgumentParser) -> None:
    """Add `--uncertain-as` to a corpus' command."""
    parser.add_argument(
        "--uncertain-as", choices=UNCERTAIN_AS, default="zeros", help="what a label of -1 counts as (default: zeros)"
    )
