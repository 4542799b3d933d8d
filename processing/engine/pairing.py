"""Current and prior: the one rule by which every corpus' studies are paired.

The prior of a study is the latest study of the same patient that is strictly earlier. Where the order cannot be known,
there is no prior: a study without a time has none and is never one; studies of one patient at one time have none; and
where the latest earlier time belongs to two studies, neither of them is taken.
"""

from bisect import bisect_left
from collections.abc import Sequence
from math import isfinite
from typing import NamedTuple


__all__ = ["Pairing", "pair_studies"]

FIRST_STUDY = "first study of the patient"
UNKNOWN_TIME = "time is not known"
SHARED_TIME = "another study of the patient at the same time"
SHARED_PRIOR_TIME = "latest earlier time has several studies"


class Pairing(NamedTuple):
    """Index of a study's prior, or `None` and the reason for which there is none."""

    prior: int | None
    reason: str | None = None


def pair_studies(times: Sequence[float | None]) -> list[Pairing]:
    """
    Pair the studies of one patient, of which every one could be a prior.

    Args:
        times (sequence of `float` or `None`): when each study was taken, from any origin; `None` where that is not
            known.

    Returns:
        `list` of [`Pairing`]: one per study.

    Raises:
        `ValueError`: a time that is not finite.
    """
    if not all(time is None or isfinite(time) for time in times):
        raise ValueError(f"`times` must be finite numbers or None, got {list(times)}.")
    at: dict[float, list[int]] = {}
    for index, time in enumerate(times):
        if time is not None:
            at.setdefault(time, []).append(index)
    ordered = sorted(at)
    return [_pair(time, at, ordered) for time in times]


def _pair(time: float | None, at: dict[float, list[int]], ordered: list[float]) -> Pairing:
    if time is None:
        return Pairing(None, UNKNOWN_TIME)
    if len(at[time]) > 1:
        return Pairing(None, SHARED_TIME)
    position = bisect_left(ordered, time)
    if not position:
        return Pairing(None, FIRST_STUDY)
    latest = at[ordered[position - 1]]
    return Pairing(latest[0]) if len(latest) == 1 else Pairing(None, SHARED_PRIOR_TIME)
