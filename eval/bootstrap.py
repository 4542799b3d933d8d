"""95 % confidence intervals of a figure by percentile bootstrap over patients, whose studies resemble each other."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


# With fewer patients (of a class) a resample can hardly differ from the sample, and the interval would be too narrow.
MIN_PATIENTS = 5


def number_patients(patients: Sequence[str] | None, num_studies: int) -> np.ndarray:
    """
    Numbers in place of names, for the functions below, which take either.

    Args:
        patients (sequence of `str`, *optional*): the patient of every study; by default each is of its own.
        num_studies (`int`): how many there must be.

    Returns:
        `np.ndarray` of shape `(num_studies,)`: 0, 1, and so on, in the order of the first study.

    Raises:
        ValueError: another number of patients, or a study without one.
    """
    if patients is None:
        return np.arange(num_studies)
    if len(patients) != num_studies or any(patient in (None, "") for patient in patients):
        missing = sum(patient in (None, "") for patient in patients)
        raise ValueError(
            f"`patients` must name the patient of each of {num_studies} studies, got {len(patients)} names, {missing} "
            "of them empty."
        )
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(patient, len(numbers)) for patient in patients], dtype=np.int64)


def describe_bootstrap(
    patients: Sequence[str] | None, numbers: np.ndarray, num_samples: int, seed: int
) -> dict[str, Any]:
    """
    What a result says of its intervals.

    Args:
        patients (sequence of `str`, *optional*): as [`number_patients`] got them.
        numbers (`np.ndarray` of shape `(num_studies,)`): what it gave, of the studies that count.
        num_samples, seed (`int`): of the bootstrap.

    Returns:
        `dict`: `samples`, `seed`, the `unit` that was drawn, `"patient"` or `"study"`, and the number of `units`.
    """
    unit = "study" if patients is None else "patient"
    return {"samples": num_samples, "seed": seed, "unit": unit, "units": len(np.unique(numbers))}


def share_interval(
    hits: Sequence[bool], num_samples: int = 1000, seed: int = 0, patients: Sequence[Any] | None = None
) -> list[float] | None:
    """
    95 % interval of a share of queries, such as recall@K.

    Args:
        hits (sequence of `bool`): whether each query was answered.
        num_samples (`int`): bootstrap samples.
        seed (`int`): of the resampling; the same seed gives the same interval.
        patients (sequence, *optional*): the patient of every query, drawn with all queries of theirs; by default each
            query is drawn by itself.

    Returns:
        `list` of two `float`: lower and upper bound. Where all queries agree no resample differs, and the bound that
        is not 0 or 1 is the exact binomial one (Clopper and Pearson) of as many trials as there are patients. `None`
        with fewer than `MIN_PATIENTS` patients whose queries do not agree, or the same share found of each.
    """
    hits = np.asarray(hits, dtype=np.float64)
    of_patient = _places(patients, len(hits))
    asked, answered = np.bincount(of_patient), np.bincount(of_patient, hits)
    exact = 0.025 ** (1 / len(asked))
    if hits.all():
        return [exact, 1.0]
    if not hits.any():
        return [0.0, 1 - exact]
    if len(asked) < MIN_PATIENTS:
        return None

    def resampled(rng: np.random.Generator) -> float:
        drawn = rng.integers(len(asked), size=len(asked))
        return answered[drawn].sum() / asked[drawn].sum()

    return _interval(resampled, num_samples, seed)


def auroc_interval(
    scores: Sequence[float],
    is_positive: Sequence[bool],
    num_samples: int = 1000,
    seed: int = 0,
    patients: Sequence[Any] | None = None,
) -> list[float] | None:
    """
    95 % interval of the area under the ROC curve; patients with a positive study and those without are resampled
    apart, each to their own number.

    Args:
        scores (sequence of `float`): one score per study, higher means positive.
        is_positive (sequence of `bool`): the truth; both classes must occur.
        num_samples (`int`): bootstrap samples.
        seed (`int`): of the resampling; the same seed gives the same interval.
        patients (sequence, *optional*): the patient of every study, drawn with all studies of theirs; by default each
            study is drawn by itself.

    Returns:
        `list` of two `float`: lower and upper bound; or `None` where the bootstrap cannot tell: fewer than
        `MIN_PATIENTS` patients with a study of a class, or scores whose every resample has the same area.
    """
    return _two_class_interval(_auroc, scores, is_positive, num_samples, seed, patients)


def average_precision_interval(
    scores: Sequence[float],
    is_positive: Sequence[bool],
    num_samples: int = 1000,
    seed: int = 0,
    patients: Sequence[Any] | None = None,
) -> list[float] | None:
    """
    95 % interval of the average precision; arguments, resampling and what comes back are those of [`auroc_interval`].
    """
    return _two_class_interval(_average_precision, scores, is_positive, num_samples, seed, patients)


def _two_class_interval(
    statistic: Callable[[np.ndarray, np.ndarray], float],
    scores: Sequence[float],
    is_positive: Sequence[bool],
    num_samples: int,
    seed: int,
    patients: Sequence[Any] | None,
) -> list[float] | None:
    levels = np.unique(np.asarray(scores, dtype=np.float64), return_inverse=True)[1]
    is_positive = np.asarray(is_positive, dtype=bool)
    of_patient = _places(patients, len(levels))
    has_positive, has_negative = (np.bincount(of_patient, truth) > 0 for truth in (is_positive, ~is_positive))
    if min(has_positive.sum(), has_negative.sum()) < MIN_PATIENTS:
        return None
    groups = np.flatnonzero(has_positive), np.flatnonzero(~has_positive)

    def resampled(rng: np.random.Generator) -> float:
        drawn = np.concatenate([rng.choice(group, group.size) for group in groups])
        times = np.bincount(drawn, minlength=len(has_positive))[of_patient]
        positives, negatives = (
            np.bincount(levels[truth], times[truth], levels.max() + 1) for truth in (is_positive, ~is_positive)
        )
        # Without negatives only where every patient has a positive study, and then seldom.
        return statistic(positives, negatives) if negatives.any() else resampled(rng)

    return _interval(resampled, num_samples, seed)


def _places(patients: Sequence[Any] | None, num_studies: int) -> np.ndarray:
    """The place of every study's patient among the patients that occur."""
    return np.arange(num_studies) if patients is None else np.unique(patients, return_inverse=True)[1]


def _auroc(positives: np.ndarray, negatives: np.ndarray) -> float:
    """Area under the ROC curve of the numbers of positives and negatives at each score, the lowest score first."""
    # A positive beats the negatives below it, and half of those of its own score.
    return float(positives @ (np.cumsum(negatives) - negatives / 2)) / (positives.sum() * negatives.sum())


def _average_precision(positives: np.ndarray, negatives: np.ndarray) -> float:
    """Precision at the score of each positive, averaged over them, of the same numbers."""
    found = np.cumsum(positives[::-1])[::-1]
    precision = found / np.maximum(found + np.cumsum(negatives[::-1])[::-1], 1)
    return float(positives @ precision) / positives.sum()


def _interval(statistic: Callable[[np.random.Generator], float], num_samples: int, seed: int) -> list[float] | None:
    rng = np.random.default_rng(seed)
    low, high = np.quantile([statistic(rng) for _ in range(num_samples)], (0.025, 0.975)).tolist()
    return [low, high] if low < high else None


__all__ = [
    "auroc_interval",
    "average_precision_interval",
    "describe_bootstrap",
    "number_patients",
    "share_interval",
]
