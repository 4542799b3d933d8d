"""What a made study holds: findings with a place and a size, how they change from study to study, where they show."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


__all__ = [
    "SLOTS",
    "Finding",
    "Findings",
    "change_of",
    "draw_findings",
    "draw_next_findings",
    "find_labels",
    "visible_findings",
]


@dataclass(frozen=True)
class Finding:
    """
    One thing that can be there.

    Args:
        kind (`str`): its name.
        place (`str`): where, in the words of a report; empty where the kind says it.
        largest (`int`): its sizes are 1 to this.
        share (`float`): of first studies that have it.
        label (`str`): its label in the records.
        only_lateral (`bool`): the frontal does not show it.
    """

    kind: str
    place: str
    largest: int
    share: float
    label: str
    only_lateral: bool = False


# Finding → size, those that are there alone.
Findings = Mapping[Finding, int]

SLOTS = (
    Finding("pleural effusion", "right", 2, 0.2, "Pleural Effusion"),
    Finding("pleural effusion", "left", 2, 0.2, "Pleural Effusion"),
    Finding("pleural effusion", "posterior", 2, 0.2, "Pleural Effusion", only_lateral=True),
    Finding("cardiomegaly", "", 2, 0.25, "Cardiomegaly"),
    Finding("pneumothorax", "right", 2, 0.1, "Pneumothorax"),
    Finding("pneumothorax", "left", 2, 0.1, "Pneumothorax"),
    Finding("nodule", "right upper zone", 2, 0.12, "Nodule"),
    Finding("nodule", "left mid zone", 2, 0.12, "Nodule"),
    Finding("nodule", "behind the heart", 2, 0.2, "Nodule", only_lateral=True),
    Finding("endotracheal tube", "", 1, 0.12, "Support Devices"),
    Finding("central venous line", "right", 1, 0.15, "Support Devices"),
)
RIGHT_EFFUSION, LEFT_EFFUSION, POSTERIOR_EFFUSION = SLOTS[:3]

# From one study to the next: gone, smaller, the same, larger.
CHANGE_SHARES = (0.25, 0.25, 0.25, 0.25)


def draw_findings(rng: np.random.Generator) -> dict[Finding, int]:
    """Findings of a patient's first study."""
    return _without_hidden(_draw_sizes([slot.share for slot in SLOTS], rng))


def draw_next_findings(before: Findings, rng: np.random.Generator) -> dict[Finding, int]:
    """Findings of the study after one with `before`: each goes, shrinks, stays or grows, and new ones come."""
    # As many come as go, so that later studies hold as much as first ones.
    shares = [CHANGE_SHARES[0] * slot.share / (1 - slot.share) for slot in SLOTS]
    new, steps = _draw_sizes(shares, rng), rng.choice(4, size=len(SLOTS), p=CHANGE_SHARES)
    found = {}
    for slot, step in zip(SLOTS, steps.tolist(), strict=True):
        if slot not in before:
            size = new.get(slot, 0)
        elif step == 0:
            size = 0
        else:
            size = min(max(before[slot] + step - 2, 1), slot.largest)
        if size:
            found[slot] = size
    return _without_hidden(found)


def _draw_sizes(shares: list[float], rng: np.random.Generator) -> dict[Finding, int]:
    drawn = zip(SLOTS, shares, rng.random(len(SLOTS)), rng.random(len(SLOTS)), strict=True)
    return {slot: 1 + int(size * slot.largest) for slot, share, present, size in drawn if present < share}


def _without_hidden(found: Findings) -> dict[Finding, int]:
    """An effusion seen on the frontal lies over a posterior one on the lateral."""
    covered = RIGHT_EFFUSION in found or LEFT_EFFUSION in found
    return {slot: size for slot, size in found.items() if not (covered and slot == POSTERIOR_EFFUSION)}


def visible_findings(found: Findings, has_lateral: bool) -> dict[Finding, int]:
    """Those of `found` that the views of a study show."""
    return {slot: size for slot, size in found.items() if has_lateral or not slot.only_lateral}


def change_of(before: int, now: int) -> str:
    """One of "new", "resolved", "larger", "smaller", "unchanged" for two sizes, 0 where it is not there."""
    if not before:
        return "new"
    if not now:
        return "resolved"
    return "unchanged" if now == before else "larger" if now > before else "smaller"


def find_labels(found: Findings) -> list[str]:
    """Labels of what is there, in the order of `SLOTS`; "No Finding" for nothing."""
    return list(dict.fromkeys(slot.label for slot in SLOTS if slot in found)) or ["No Finding"]
