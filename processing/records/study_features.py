"""The one table that every corpus becomes: its columns and its splits.

A record is a study with its own images and those of its prior.
"""

import hashlib

from datasets import Features, Image, List, Value

from modeling_alta.configuration_alta import VIEW_NAMES


__all__ = ["SPLIT_NAMES", "STUDY_FEATURES", "assign_split"]

SPLIT_NAMES = ("train", "validation", "test")
SPLIT_ENDS = (0.8, 0.9, 1.0)

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


def assign_split(patient_id: str) -> str:
    """Split of a patient, 80 / 10 / 10, by the SHA-256 of the patient id: the same on every machine and every run."""
    digest = hashlib.sha256(patient_id.encode()).digest()
    fraction = int.from_bytes(digest[:8], "big") / 2**64
    return next(name for name, end in zip(SPLIT_NAMES, SPLIT_ENDS, strict=True) if fraction < end)
