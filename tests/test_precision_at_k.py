"""Precision@K: by query, by class, ties, bad input."""

import evaluate
import pytest

from eval.precision_at_k.precision_at_k import PrecisionAtK, query_precisions


SCORES = [[0.9, 0.8, 0.7, 0.1], [0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]]
RELEVANCE = [[1, 0, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]]


@pytest.mark.parametrize("source", ["folder", "class"])
def test_precision_matches_hand_count(source, tmp_path):
    metric = evaluate.load("eval/precision_at_k") if source == "folder" else PrecisionAtK(cache_dir=str(tmp_path))
    results = metric.compute(predictions=SCORES, references=RELEVANCE, k=[1, 2])
    # Best candidates: relevant, irrelevant, relevant -> 2 / 3. Best two: 1, 0 and 1 of 2 -> (1/2 + 0 + 1/2) / 3.
    # Chance: 2/4, 2/4 and 1/4 of the candidates are relevant.
    assert results == {
        "precision_at_1": pytest.approx(2 / 3),
        "precision_at_2": pytest.approx(1 / 3),
        "chance": pytest.approx(5 / 12),
        "queries": 3,
    }


def test_classes_weigh_the_same_whatever_their_number_of_queries(tmp_path):
    metric = PrecisionAtK(cache_dir=str(tmp_path))
    results = metric.compute(predictions=SCORES, references=RELEVANCE, k=[1], classes=["edema", "edema", "effusion"])
    # Edema: 1 and 0, mean 1/2. Effusion: 1. Mean of the two classes 3/4, and not the 2/3 of the three queries.
    assert results["precision_at_1"] == 0.75
    assert results["chance"] == pytest.approx((0.5 + 0.25) / 2)
    assert results["by_class"]["edema"] == {"precision_at_1": 0.5, "chance": 0.5, "queries": 2}
    assert results["by_class"]["effusion"]["precision_at_1"] == 1.0


def test_irrelevant_candidates_come_first_among_equal_scores():
    # Order: the one of score 0.9 (relevant), then of the two at 0.5 the irrelevant one.
    assert query_precisions([[0.5, 0.9, 0.5]], [[1, 1, 0]], [1, 2])[0].tolist() == [1.0, 0.5, pytest.approx(2 / 3)]


@pytest.mark.parametrize(
    ("predictions", "references", "k", "message"),
    [
        ([[0.1, 0.2]], [[1, 0]], [3], "from 1 to the 2 candidates, got \\[3\\]"),
        ([[0.1, 0.2]], [[1, 0]], [0], "from 1 to the 2 candidates, got \\[0\\]"),
        ([[0.1, 0.2]], [[1]], [1], "one relevance per score"),
        ([[0.1, 0.2]], [[1, 2]], [1], "0 and 1 only, got \\[1, 2\\]"),
        ([[0.1, float("inf")]], [[1, 0]], [1], "finite scores"),
        ([[0.1, 0.2]], [], [1], "got 1 and 0"),
    ],
)
def test_bad_input_is_named(predictions, references, k, message):
    with pytest.raises(ValueError, match=message):
        query_precisions(predictions, references, k)


def test_number_of_classes_must_be_that_of_the_queries(tmp_path):
    with pytest.raises(ValueError, match="one class per query \\(3\\), got 1"):
        PrecisionAtK(cache_dir=str(tmp_path)).compute(predictions=SCORES, references=RELEVANCE, k=[1], classes=["a"])
