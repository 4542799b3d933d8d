"""Intervals: they hold the figure, repeat with the seed, narrow with more data, and never claim to know too much."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from eval.bootstrap import auroc_interval, average_precision_interval, share_interval


def test_interval_of_a_share_is_close_to_the_normal_one():
    # Share 0.5 of 400: standard error sqrt(0.25 / 400) = 0.025, so 0.5 -+ 1.96 * 0.025 = 0.451 to 0.549.
    assert share_interval([False, True] * 200, num_samples=2000) == pytest.approx([0.451, 0.549], abs=0.01)


def test_share_without_a_miss_or_a_hit_still_has_an_interval():
    # Clopper-Pearson, 10 of 10: lower bound 0.025 ** (1 / 10) = 0.6915; 0 of 10 is its mirror image.
    assert share_interval([True] * 10) == pytest.approx([0.6915, 1.0], abs=1e-4)
    assert share_interval([False] * 10) == pytest.approx([0.0, 0.3085], abs=1e-4)


def test_same_seed_gives_the_same_interval_and_another_another():
    hits = np.random.default_rng(0).random(97) < 0.4
    assert share_interval(hits, 200, seed=3) == share_interval(hits, 200, seed=3)
    assert share_interval(hits, 200, seed=3) != share_interval(hits, 200, seed=4)


def _scores(num_studies):
    rng = np.random.default_rng(0)
    truth = rng.random(num_studies) < 0.3
    return (rng.normal(size=num_studies) + truth).round(1), truth


def test_auroc_interval_holds_the_auroc_and_narrows_with_more_studies():
    scores, truth = _scores(2000)
    few, many = auroc_interval(scores[:60], truth[:60]), auroc_interval(scores, truth)
    assert many[0] < roc_auc_score(truth, scores) < many[1]
    assert many[1] - many[0] < (few[1] - few[0]) / 2


def test_auroc_interval_of_negated_scores_is_the_mirror_image():
    # So it is only if a tie counts one half: the scores are rounded to one decimal and have many.
    scores, truth = _scores(60)
    low, high = auroc_interval(scores, truth)
    assert auroc_interval(-scores, truth) == pytest.approx([1 - high, 1 - low])


def test_auroc_of_few_positives_or_without_spread_has_no_interval():
    scores, truth = np.arange(20.0), np.arange(20) >= 10
    assert auroc_interval(scores, truth) is None  # the classes are apart in every resample
    assert auroc_interval(np.r_[scores[:14], 5, 7.5, 8, 9.5], np.arange(18) >= 14) is None  # four positives
    assert auroc_interval(np.r_[scores[:14], 5, 7.5, 8, 9.5, 2], np.arange(19) >= 14) is not None


def test_average_precision_interval_holds_the_figure_and_narrows_with_more_studies():
    scores, truth = _scores(2000)
    few, many = average_precision_interval(scores[:60], truth[:60]), average_precision_interval(scores, truth)
    assert many[0] < average_precision_score(truth, scores) < many[1]
    assert many[1] - many[0] < (few[1] - few[0]) / 2


def test_average_precision_of_each_resample_is_that_of_scikit_learn():
    scores, truth = _scores(40)
    groups, rng = [scores[truth], scores[~truth]], np.random.default_rng(7)
    values = []
    for _ in range(50):
        resample = np.r_[tuple(rng.choice(group, group.size) for group in groups)]
        values.append(average_precision_score(np.arange(40) < truth.sum(), resample))
    expected = np.quantile(values, (0.025, 0.975)).tolist()
    assert average_precision_interval(scores, truth, 50, seed=7) == pytest.approx(expected)


def test_average_precision_of_few_positives_has_no_interval():
    assert average_precision_interval(np.arange(20.0), np.arange(20) >= 16) is None
