"""Recall@K: ranks, ties, several right answers, chance levels, bad input."""

import itertools
import time

import evaluate
import pytest

from eval.recall_at_k.recall_at_k import RecallAtK, chance_median_rank, chance_recall, pair_ranks


# Ranks by hand: query 0 has its pair first; query 1 has 0.9 and 0.8 above its 0.1; query 2 has 0.6 above its 0.5.
SCORES = [[0.9, 0.1, 0.2, 0.3], [0.9, 0.1, 0.8, 0.0], [0.6, 0.1, 0.5, 0.2]]
PAIRS = [0, 1, 2]


@pytest.mark.parametrize("source", ["folder", "class"])
def test_recall_and_median_rank_match_hand_count(source, tmp_path):
    metric = evaluate.load("eval/recall_at_k") if source == "folder" else RecallAtK(cache_dir=str(tmp_path))
    results = metric.compute(predictions=SCORES, references=PAIRS, k=[1, 2, 3])
    # Ranks 1, 3, 2 of 4 candidates: 1 of 3 within 1, 2 of 3 within 2, all within 3. Chance is k / 4.
    assert results == {
        "recall_at_1": pytest.approx(1 / 3),
        "recall_at_2": pytest.approx(2 / 3),
        "recall_at_3": 1.0,
        "chance_at_1": 0.25,
        "chance_at_2": 0.5,
        "chance_at_3": 0.75,
        "median_rank": 2.0,
        "chance_median_rank": 2.0,
        "queries": 3,
    }


def test_ties_with_wrong_candidates_count_against_the_query():
    assert pair_ranks([[0.5, 0.5, 0.5]], [0]).tolist() == [3]


def test_best_of_several_right_candidates_gives_the_rank():
    # Right ones score 0.2 and 0.7; only 0.9 among the wrong ones is above 0.7.
    assert pair_ranks([[0.2, 0.9, 0.7, 0.1]], [[0, 2]]).tolist() == [2]


def test_tie_between_two_right_candidates_costs_nothing():
    assert pair_ranks([[0.7, 0.7, 0.1]], [[0, 1]]).tolist() == [1]


def test_metric_takes_lists_of_right_candidates(tmp_path):
    metric = RecallAtK(cache_dir=str(tmp_path))
    results = metric.compute(predictions=[[0.1, 0.9, 0.3], [0.3, 0.2, 0.1]], references=[[0, 1], [2]], k=[1])
    # Ranks 1 and 3. Chance at 1: 2 / 3 for the first query and 1 / 3 for the second, 1 / 2 on average.
    assert (results["recall_at_1"], results["median_rank"]) == (0.5, 2.0)
    assert results["chance_at_1"] == pytest.approx(0.5)


def test_chance_of_two_right_among_four_is_the_hypergeometric_share():
    # No right one among the 2 best: C(2, 2) / C(4, 2) = 1 / 6.
    assert chance_recall([2], [4], 2) == pytest.approx(5 / 6)


def test_chance_is_one_when_the_cutoff_takes_every_candidate():
    assert chance_recall([1], [4], 10) == 1.0


@pytest.mark.parametrize(("right", "total", "k"), [(1, 7, 3), (3, 7, 1), (3, 7, 5), (6, 7, 2), (2, 2, 9)])
def test_chance_is_the_share_of_all_rankings_with_a_right_one_among_the_first(right, total, k):
    placings = list(itertools.combinations(range(total), right))
    hits = sum(min(placing) < k for placing in placings)
    assert chance_recall([right], [total], k) == pytest.approx(hits / len(placings))


def test_chance_of_many_candidates_is_counted_soon():
    start = time.process_time()
    chance_median_rank(range(1, 60), [20_000] * 59)
    assert time.process_time() - start < 1


def test_chance_median_rank_is_where_half_the_rankings_arrive():
    assert chance_median_rank([1], [101]) == 51.0


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([[0.1, float("nan")]], [0], "finite scores"),
        ([[0.1, 0.2]], [2], "indices from 0 to 1, got 2"),
        ([[0.1, 0.2]], [-1], "indices from 0 to 1, got -1"),
        ([[0.1, 0.2]], [[]], "indices from 0 to 1"),
        ([[0.1, 0.2]], [0, 1], "got 1 and 2"),
        ([], [], "at least one query"),
    ],
)
def test_bad_input_is_named(predictions, references, message):
    with pytest.raises(ValueError, match=message):
        pair_ranks(predictions, references)


def test_cutoff_of_zero_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`k` must hold integers of at least 1, got \\[0\\]"):
        RecallAtK(cache_dir=str(tmp_path)).compute(predictions=[[0.1]], references=[0], k=[0])
