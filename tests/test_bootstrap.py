"""Intervals: they hold the figure, repeat with the seed, narrow with more data, and never claim to know too much."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from eval.bootstrap import auroc_interval, average_precision_interval, number_patients, share_interval


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


def _share_of_patients(rng):
    """Queries of 40 patients with 1 to 21 studies, half of whom are found nearly always; the share is 0.5."""
    patients = np.repeat(np.arange(40), rng.integers(1, 22, size=40))
    found = np.where(rng.random(40) < 0.5, 0.95, 0.05)
    return rng.random(patients.size) < found[patients], patients


def _scores_of_patients(rng):
    """Scores of 40 patients with 1 to 21 studies, which share a patient's level and, often, the finding."""
    patients = np.repeat(np.arange(40), rng.integers(1, 22, size=40))
    changing = rng.random(patients.size) < 0.3
    truth = np.where(changing, rng.random(patients.size) < 0.4, (rng.random(40) < 0.4)[patients])
    return truth + rng.normal(size=40)[patients] + 0.5 * rng.normal(size=patients.size), truth, patients


def test_intervals_over_patients_hold_the_truth_as_often_as_they_say_and_those_over_studies_do_not():
    rng, truth = np.random.default_rng(0), 0.5
    held = {"patients": [], "studies": []}
    for _ in range(100):
        hits, patients = _share_of_patients(rng)
        for unit, drawn in (("patients", patients), ("studies", None)):
            low, high = share_interval(hits, 200, patients=drawn)
            held[unit].append(low <= truth <= high)
    assert np.mean(held["patients"]) > 0.9 and np.mean(held["studies"]) < 0.7


@pytest.mark.parametrize(
    ("interval", "statistic"),
    [(auroc_interval, roc_auc_score), (average_precision_interval, average_precision_score)],
)
def test_two_class_intervals_over_patients_hold_the_truth_far_more_often(interval, statistic):
    rng = np.random.default_rng(0)
    samples = [_scores_of_patients(rng) for _ in range(1000)]
    scores, truth = (np.concatenate([sample[part] for sample in samples]) for part in (0, 1))
    expected = statistic(truth, scores)
    held = {"patients": [], "studies": []}
    for values, positive, patients in samples[:60]:
        for unit, drawn in (("patients", patients), ("studies", None)):
            low, high = interval(values, positive, 100, patients=drawn)
            held[unit].append(low <= expected <= high)
    assert np.mean(held["patients"]) > 0.85 and np.mean(held["studies"]) < 0.7


def test_patients_of_one_study_each_give_the_interval_over_studies():
    scores, truth = _scores(60)
    names = [f"p{index}" for index in reversed(range(60))]
    numbers = number_patients(names, 60)
    assert share_interval(truth, patients=numbers) == share_interval(truth)
    assert auroc_interval(scores, truth, patients=numbers) == auroc_interval(scores, truth)


def test_auroc_of_each_resample_counts_a_patient_as_often_as_drawn():
    scores, truth = _scores(60)
    patients = np.arange(60) // 3
    with_positive = np.unique(patients[truth])
    groups, rng, values = [with_positive, np.setdiff1d(patients, with_positive)], np.random.default_rng(5), []
    for _ in range(50):
        drawn = np.concatenate([rng.choice(group, group.size) for group in groups])
        studies = np.concatenate([np.flatnonzero(patients == patient) for patient in drawn])
        values.append(roc_auc_score(truth[studies], scores[studies]))
    expected = np.quantile(values, (0.025, 0.975)).tolist()
    assert auroc_interval(scores, truth, 50, seed=5, patients=patients) == pytest.approx(expected)


class GivenDraws:
    """In place of numpy's generator: patients that were drawn, and none of the stratum that is empty."""

    def __init__(self, *draws):
        self.draws = list(draws)

    def choice(self, group, size):
        return np.array(self.draws.pop(0)) if size else group


def test_a_resample_without_a_negative_is_drawn_again(monkeypatch):
    # Every patient has a positive study, and the last no other, who may be drawn six times.
    patients, truth, scores = np.repeat(np.arange(6), 2), np.array([True, False] * 5 + [True, True]), np.arange(12.0)
    draws = GivenDraws([5] * 6, [0] * 6, [0, 0, 0, 1, 1, 1])
    monkeypatch.setattr(np.random, "default_rng", lambda seed: draws)
    # Scores of patient 0: positive 0, negative 1, area 0. With as many of patient 1, 2 and 3: 2 beats 1, a quarter.
    assert auroc_interval(scores, truth, 2, patients=patients) == pytest.approx([0.025 * 0.25, 0.975 * 0.25])
    assert not draws.draws


def test_few_patients_have_no_interval_however_many_studies():
    scores, truth = _scores(60)
    assert share_interval(truth, patients=np.arange(60) % 4) is None
    assert share_interval(truth, patients=np.arange(60) % 5) is not None
    assert auroc_interval(scores, truth, patients=np.where(truth, np.arange(60) % 4, np.arange(60))) is None
    assert share_interval([True, False] * 10, patients=np.arange(20) // 2) is None  # of each the same share
    # Clopper-Pearson of as many trials as patients: 0.025 ** (1 / 4) = 0.3976.
    assert share_interval([True] * 60, patients=np.arange(60) % 4) == pytest.approx([0.3976, 1.0], abs=1e-4)


@pytest.mark.parametrize(
    ("patients", "message"),
    [(["p"], "each of 2 studies, got 1 names, 0"), (["p", None], "each of 2 studies, got 2 names, 1 of them empty")],
)
def test_studies_without_a_patient_are_an_error(patients, message):
    with pytest.raises(ValueError, match=f"`patients` must name the patient of {message}"):
        number_patients(patients, 2)
