"""Recall@K and median rank of the paired candidate, with the level of a random ranking beside each figure."""

import bisect
import math
from collections import Counter
from collections.abc import Sequence

import datasets
import evaluate
import numpy as np


_DESCRIPTION = """
Recall@K of a retrieval: the share of the queries whose paired candidate is among the K best scored ones. A tie with a
wrong candidate is counted against the query. Each figure comes with its chance level, the recall of a random ranking.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (list of list of float): one row of similarity scores per query, one score per candidate.
    references (list of int, or list of list of int): per query the index of the right candidate, or the indices of all
        right ones where several are equally right (identical reports, several images of one report).
    k (sequence of int): the cut-offs, 1, 5 and 10 by default.
Returns:
    recall_at_<k> (float): share of the queries with a right candidate among the k best, 0 to 1.
    chance_at_<k> (float): the expected recall of a random ranking, k / candidates where one candidate is right.
    median_rank (float): median over the queries of the rank of the best right candidate, 1 is best.
    chance_median_rank (float): the smallest rank that half of the random rankings reach.
    queries (int): number of queries.
Examples:
    >>> metric = evaluate.load("eval/recall_at_k")
    >>> metric.compute(predictions=[[0.9, 0.1], [0.8, 0.2]], references=[0, 1], k=[1])
    {'recall_at_1': 0.5, 'chance_at_1': 0.5, 'median_rank': 1.5, 'chance_median_rank': 1.0, 'queries': 2}
"""


def pair_ranks(predictions: Sequence[Sequence[float]], references: Sequence[int | Sequence[int]]) -> np.ndarray:
    """
    Rank of the best right candidate of every query, ties with wrong candidates counted against it.

    Args:
        predictions (sequence of `(num_candidates,)` rows): scores, higher is better.
        references (sequence of `int` or of `int` sequences): index or indices of the right candidates.

    Returns:
        `np.ndarray` of shape `(num_queries,)`: ranks from 1.

    Raises:
        ValueError: no query, lengths that differ, a score that is not finite, an index outside the row.
    """
    if len(predictions) != len(references) or len(references) == 0:
        raise ValueError(
            f"`predictions` and `references` must hold one item per query and at least one query, "
            f"got {len(predictions)} and {len(references)}."
        )
    pairs = zip(predictions, references, strict=True)
    return np.array([_rank(query, row, right) for query, (row, right) in enumerate(pairs)])


def chance_recall(num_right: Sequence[int], num_candidates: Sequence[int], k: int) -> float:
    """Expected recall@k of a random ranking, mean over queries with so many right ones among so many candidates."""
    queries = Counter(zip(num_right, num_candidates, strict=True))
    hits = [_chance(right, total, k) * count for (right, total), count in queries.items()]
    return math.fsum(hits) / queries.total()


def chance_median_rank(num_right: Sequence[int], num_candidates: Sequence[int]) -> float:
    """The smallest rank that half of the random rankings reach."""
    ranks = range(1, max(num_candidates) + 1)
    # A hair under one half, since `k / n` summed over queries may miss it by a rounding error.
    index = bisect.bisect_left(ranks, 0.5 - 1e-12, key=lambda k: chance_recall(num_right, num_candidates, k))
    return float(ranks[index])


def check_cutoffs(k: Sequence[int]) -> None:
    """Raise a `ValueError` unless `k` holds at least one integer and all are 1 or more."""
    if not len(k) or any(int(cutoff) != cutoff or cutoff < 1 for cutoff in k):
        raise ValueError(f"`k` must hold integers of at least 1, got {list(k)}.")


def _chance(right: int, total: int, k: int) -> float:
    # The first ranks are as likely to miss the right ones as the right ones to miss the first ranks; the fewer of both
    # are counted, since `comb` of tens of thousands over half of them takes a second.
    fewer, more = sorted((right, min(k, total)))
    placings = math.comb(total, fewer)
    return (placings - math.comb(total - more, fewer)) / placings


def _rank(query: int, row: Sequence[float], right: int | Sequence[int]) -> int:
    scores, indices = np.asarray(row, dtype=np.float64), np.unique(np.atleast_1d(np.asarray(right)))
    if scores.ndim != 1 or not np.isfinite(scores).all():
        raise ValueError(f"`predictions` must hold rows of finite scores, got {row} for query {query}.")
    if not indices.size or not np.isin(indices, np.arange(scores.size)).all():
        raise ValueError(f"`references` must hold indices from 0 to {scores.size - 1}, got {right} for query {query}.")
    wrong = np.delete(scores, indices)
    return 1 + int((wrong >= scores[indices].max()).sum())


class RecallAtK(evaluate.Metric):
    """`evaluate` metric around [`pair_ranks`]; see the README beside this file."""

    def _info(self):
        scores = datasets.Sequence(datasets.Value("float64"))
        indices = (datasets.Sequence(datasets.Value("int64")), datasets.Value("int64"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_KWARGS_DESCRIPTION,
            features=[datasets.Features({"predictions": scores, "references": kind}) for kind in indices],
        )

    def _compute(self, predictions, references, k=(1, 5, 10)):
        check_cutoffs(k)
        ranks = pair_ranks(predictions, references)
        sizes = [np.unique(right).size for right in references], [len(row) for row in predictions]
        results = {f"recall_at_{cutoff}": float((ranks <= cutoff).mean()) for cutoff in k}
        results |= {f"chance_at_{cutoff}": chance_recall(*sizes, cutoff) for cutoff in k}
        results |= {"median_rank": float(np.median(ranks)), "chance_median_rank": chance_median_rank(*sizes)}
        return results | {"queries": len(ranks)}


__all__ = ["RecallAtK", "chance_median_rank", "chance_recall", "check_cutoffs", "pair_ranks"]
