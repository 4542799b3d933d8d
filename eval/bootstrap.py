"""95 % confidence intervals of a figure over its queries or studies, by percentile bootstrap."""

from collections.abc import Callable, Sequence

import numpy as np


# With fewer studies of a class a resample can hardly differ from the sample, and the interval would be far too narrow.
MIN_STUDIES_PER_CLASS = 5


def share_interval(hits: Sequence[bool], num_samples: int = 1000, seed: int = 0) -> list[float]:
    """
    95 % interval of a share of queries, such as recall@K.

    Args:
        hits (sequence of `bool`): whether each query was answered.
        num_samples (`int`): bootstrap samples.
        seed (`int`): of the resampling; the same seed gives the same interval.

    Returns:
        `list` of two `float`: lower and upper bound. Where all queries agree no resample differs, and the bound that
        is not 0 or 1 is the exact binomial one (Clopper and Pearson).
    """
    hits = np.asarray(hits, dtype=np.float64)
    exact = 0.025 ** (1 / len(hits))
    if hits.all():
        return [exact, 1.0]
    if not hits.any():
        return [0.0, 1 - exact]
    return _interval(lambda rng: hits[rng.integers(len(hits), size=len(hits))].mean(), num_samples, seed)


def auroc_interval(
    scores: Sequence[float], is_positive: Sequence[bool], num_samples: int = 1000, seed: int = 0
) -> list[float] | None:
    """
    95 % interval of the area under the ROC curve; positives and negatives are resampled apart, each to its own number.

    Args:
        scores (sequence of `float`): one score per study, higher means positive.
        is_positive (sequence of `bool`): the truth; both classes must occur.
        num_samples (`int`): bootstrap samples.
        seed (`int`): of the resampling; the same seed gives the same interval.

    Returns:
        `list` of two `float`: lower and upper bound; or `None` where the bootstrap cannot tell: fewer than
        `MIN_STUDIES_PER_CLASS` studies of a class, or scores whose every resample has the same area.
    """
    return _two_class_interval(_auroc, scores, is_positive, num_samples, seed)


def average_precision_interval(
    scores: Sequence[float], is_positive: Sequence[bool], num_samples: int = 1000, seed: int = 0
) -> list[float] | None:
    """
    95 % interval of the average precision; arguments, resampling and what comes back are those of [`auroc_interval`].
    """
    return _two_class_interval(_average_precision, scores, is_positive, num_samples, seed)


def _two_class_interval(
    statistic: Callable[[np.ndarray, np.ndarray], float],
    scores: Sequence[float],
    is_positive: Sequence[bool],
    num_samples: int,
    seed: int,
) -> list[float] | None:
    levels = np.unique(np.asarray(scores, dtype=np.float64), return_inverse=True)[1]
    is_positive = np.asarray(is_positive, dtype=bool)
    groups = levels[is_positive], levels[~is_positive]
    if min(group.size for group in groups) < MIN_STUDIES_PER_CLASS:
        return None

    def resampled(rng: np.random.Generator) -> float:
        return statistic(*(np.bincount(rng.choice(group, group.size), minlength=levels.max() + 1) for group in groups))

    interval = _interval(resampled, num_samples, seed)
    return interval if interval[0] < interval[1] else None


def _auroc(positives: np.ndarray, negatives: np.ndarray) -> float:
    """Area under the ROC curve of the numbers of positives and negatives at each score, the lowest score first."""
    # A positive beats the negatives below it, and half of those of its own score.
    return float(positives @ (np.cumsum(negatives) - negatives / 2)) / (positives.sum() * negatives.sum())


def _average_precision(positives: np.ndarray, negatives: np.ndarray) -> float:
    """Precision at the score of each positive, averaged over them, of the same numbers."""
    found = np.cumsum(positives[::-1])[::-1]
    precision = found / np.maximum(found + np.cumsum(negatives[::-1])[::-1], 1)
    return float(positives @ precision) / positives.sum()


def _interval(statistic: Callable[[np.random.Generator], float], num_samples: int, seed: int) -> list[float]:
    rng = np.random.default_rng(seed)
    return np.quantile([statistic(rng) for _ in range(num_samples)], (0.025, 0.975)).tolist()


__all__ = ["auroc_interval", "average_precision_interval", "share_interval"]
