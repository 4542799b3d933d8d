"""Precision@K of class-match retrieval (the CheXpert 8x200 and 5x200 protocols), overall and by class."""

from collections.abc import Sequence

import datasets
import evaluate
import numpy as np


_DESCRIPTION = """
Precision@K of a retrieval: the share of relevant candidates among the K best scored ones, averaged over the queries,
or over the classes of the queries first. Among equal scores the irrelevant candidates are ranked first.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (list of list of float): one row of similarity scores per query, one score per candidate.
    references (list of list of int): per query one 0 or 1 per candidate, 1 where the candidate is relevant.
    k (sequence of int): the cut-offs, 5, 10 and 50 by default; none may exceed the number of candidates.
    classes (list of str, optional): the class of every query. The figures are then the mean over the classes of their
        own means, and each class is reported too.
Returns:
    precision_at_<k> (float): 0 to 1.
    chance (float): expected precision of a random ranking at any k, averaged as the figures are.
    queries (int): number of queries.
    by_class (dict): with `classes`: class to its own `precision_at_<k>`, `chance` and `queries`.
Examples:
    >>> metric = evaluate.load("eval/precision_at_k")
    >>> metric.compute(predictions=[[0.9, 0.5, 0.1]], references=[[1, 0, 1]], k=[2])
    {'precision_at_2': 0.5, 'chance': 0.6666666666666666, 'queries': 1}
"""

_CITATION = """
@inproceedings{zhang2022contrastive,
    title={Contrastive Learning of Medical Visual Representations from Paired Images and Text},
    author={Zhang, Yuhao and Jiang, Hang and Miura, Yasuhide and Manning, Christopher D. and Langlotz, Curtis P.},
    booktitle={Machine Learning for Healthcare Conference},
    year={2022}
}
"""


def query_precisions(
    predictions: Sequence[Sequence[float]], references: Sequence[Sequence[int]], k: Sequence[int]
) -> np.ndarray:
    """
    Precision at every cut-off of every query, then the share of relevant candidates, which is its chance level.

    Args:
        predictions (sequence of `(num_candidates,)` rows): scores, higher is better.
        references (sequence of `(num_candidates,)` rows): 1 where the candidate is relevant, else 0.
        k (sequence of `int`): the cut-offs.

    Returns:
        `np.ndarray` of shape `(num_queries, len(k) + 1)`.

    Raises:
        ValueError: no query, lengths that differ, a score that is not finite, a relevance other than 0 and 1, a
            cut-off under 1 or above the number of candidates.
    """
    if len(predictions) != len(references) or len(references) == 0:
        raise ValueError(
            f"`predictions` and `references` must hold one row per query and at least one query, "
            f"got {len(predictions)} and {len(references)}."
        )
    return np.array(
        [_precisions(query, *rows, k) for query, rows in enumerate(zip(predictions, references, strict=True))]
    )


def _precisions(query: int, row: Sequence[float], relevance: Sequence[int], k: Sequence[int]) -> list[float]:
    scores, relevant = np.asarray(row, dtype=np.float64), np.asarray(relevance)
    _check_query(query, scores, relevant)
    if not len(k) or any(int(cutoff) != cutoff or not 1 <= cutoff <= scores.size for cutoff in k):
        raise ValueError(f"`k` must hold integers from 1 to the {scores.size} candidates, got {list(k)}.")
    ranked = relevant[np.lexsort((relevant, -scores))]
    return [float(ranked[:cutoff].mean()) for cutoff in k] + [float(relevant.mean())]


def _check_query(query: int, scores: np.ndarray, relevant: np.ndarray) -> None:
    if scores.ndim != 1 or scores.shape != relevant.shape:
        raise ValueError(
            f"`references` must hold one relevance per score, got {relevant.shape} for {scores.shape} in query "
            f"{query}."
        )
    if not np.isfinite(scores).all():
        raise ValueError(f"`predictions` must hold finite scores, got {scores.tolist()} for query {query}.")
    if not np.isin(relevant, (0, 1)).all():
        raise ValueError(f"`references` must hold 0 and 1 only, got {relevant.tolist()} for query {query}.")


def _summary(precisions: np.ndarray, k: Sequence[int], num_queries: int) -> dict[str, float]:
    names = [*(f"precision_at_{cutoff}" for cutoff in k), "chance"]
    return dict(zip(names, precisions.mean(axis=0).tolist(), strict=True)) | {"queries": num_queries}


class PrecisionAtK(evaluate.Metric):
    """`evaluate` metric around [`query_precisions`]; see the README beside this file."""

    def _info(self):
        features = {
            "predictions": datasets.Sequence(datasets.Value("float64")),
            "references": datasets.Sequence(datasets.Value("int64")),
        }
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(features),
        )

    def _compute(self, predictions, references, k=(5, 10, 50), classes=None):
        precisions = query_precisions(predictions, references, k)
        if classes is None:
            return _summary(precisions, k, len(precisions))
        if len(classes) != len(precisions):
            raise ValueError(f"`classes` must hold one class per query ({len(precisions)}), got {len(classes)}.")
        members = {name: precisions[np.array([name == other for other in classes])] for name in dict.fromkeys(classes)}
        means = np.array([rows.mean(axis=0) for rows in members.values()])
        by_class = {name: _summary(rows, k, len(rows)) for name, rows in members.items()}
        return _summary(means, k, len(precisions)) | {"by_class": by_class}


__all__ = ["PrecisionAtK", "query_precisions"]
