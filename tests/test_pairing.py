import numpy as np
import pytest

from processing.engine.pairing import pair_studies


def test_prior_is_the_latest_study_that_is_strictly_earlier():
    assert [pairing.prior for pairing in pair_studies([5, -10, 0, None, 7.5])] == [2, None, 1, None, 0]
    assert pair_studies([]) == []


def test_studies_at_one_time_have_no_prior_and_are_nobodys():
    pairings = pair_studies([0, 1, 1, 2, 3])
    assert [pairing.prior for pairing in pairings] == [None, None, None, None, 3]
    assert [pairing.reason for pairing in pairings[:4]] == [
        "first study of the patient",
        "another study of the patient at the same time",
        "another study of the patient at the same time",
        "latest earlier time has several studies",
    ]


def test_study_without_a_time_has_no_prior_and_is_never_one():
    assert pair_studies([None, 4]) == [(None, "time is not known"), (None, "first study of the patient")]


def test_time_that_is_not_finite_is_an_error():
    with pytest.raises(ValueError, match="`times` must be finite"):
        pair_studies([0, float("nan")])


def test_prior_is_earlier_and_nothing_known_lies_between_in_any_order():
    generator = np.random.default_rng(0)
    for _ in range(200):
        times = [None if time < 2 else float(time) for time in generator.integers(0, 12, generator.integers(1, 9))]
        for time, (prior, reason) in zip(times, pair_studies(times), strict=True):
            assert (prior is None) != (reason is None)
            if prior is not None:
                assert times[prior] < time and times.count(times[prior]) == times.count(time) == 1
                assert not [other for other in times if other is not None and times[prior] < other < time]
