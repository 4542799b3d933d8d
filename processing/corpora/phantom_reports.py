"""The report of made findings: what the views show, what changed against the prior, what the lateral alone shows."""

from collections.abc import Sequence

import numpy as np

from processing.corpora.phantom_findings import SLOTS, Finding, Findings, change_of, visible_findings


__all__ = ["NEGATIVES", "write_sections"]

SIZES = {
    "cardiomegaly": ("mild", "severe"),
    "nodule": ("small", "large"),
    "pleural effusion": ("small", "large"),
    "pneumothorax": ("small", "large"),
}
PHRASES = {
    "cardiomegaly": ("{size} cardiomegaly", "{size} enlargement of the heart"),
    "central venous line": ("right central venous line", "central venous line from the right"),
    "endotracheal tube": ("endotracheal tube in place", "endotracheal tube above the carina"),
    "nodule": ("{size} nodule in the {place}", "{size} nodular opacity in the {place}"),
    "pleural effusion": ("{size} {place} pleural effusion", "{size} pleural effusion on the {place} side"),
    "pneumothorax": ("{size} {place} pneumothorax", "{size} pneumothorax on the {place} side"),
}
LATERAL_PHRASES = {
    "nodule": ("{size} nodule {place}", "{size} nodular opacity {place}"),
    "pleural effusion": ("{size} {place} pleural effusion", "{size} pleural effusion in the {place} sulcus"),
}
ONLY_LATERAL = ("{0}, seen on the lateral only", "on the lateral alone, {0}")
CHANGES = {
    "larger": ("larger than before", "increased since the prior study"),
    "new": ("new since the prior study", "not present before"),
    "resolved": ("has resolved", "is no longer seen"),
    "smaller": ("smaller than before", "decreased since the prior study"),
    "unchanged": ("unchanged", "stable since the prior study"),
}
NEGATIVES = {
    "cardiomegaly": "The heart is not enlarged.",
    "nodule": "No pulmonary nodule.",
    "pleural effusion": "No pleural effusion.",
    "pneumothorax": "No pneumothorax.",
}
NEGATIVE_SHARE = 0.2  # of the kinds that are absent, and said to be
NORMAL = ("No acute abnormality.", "Normal chest.")


def write_sections(
    found: Findings,
    before: Findings | None,
    has_lateral: bool,
    prior_has_lateral: bool,
    rng: np.random.Generator,
) -> dict[str, str]:
    """
    Write the findings and the impression of a study.

    Args:
        found (`dict`): what the study holds; what its views do not show is not mentioned.
        before (`dict`, *optional*): what the prior study holds; without it nothing is said about change.
        has_lateral, prior_has_lateral (`bool`): which laterals were taken. What the lateral alone shows is compared
            only where both were.
        rng (`np.random.Generator`): chooses the wording and the order.

    Returns:
        `dict`: `findings` and `impression`.
    """
    shown = visible_findings(found, has_lateral)
    changes = _changes(shown, before, has_lateral and prior_has_lateral)
    gone = [slot for slot, change in changes.items() if change == "resolved"]
    sentences = [_present(slot, size, changes.get(slot), rng) for slot, size in shown.items()]
    sentences += [f"{_sentence_case(_name(slot, before[slot], rng))} {_pick('resolved', rng)}." for slot in gone]
    sentences += _negatives({slot.kind for slot in (*shown, *gone)}, rng)
    order = rng.permutation(len(sentences)).tolist()
    return {
        "findings": " ".join(sentences[position] for position in order),
        "impression": _impression(shown, changes, rng),
    }


def _changes(shown: Findings, before: Findings | None, compares_laterals: bool) -> dict[Finding, str]:
    if before is None:
        return {}
    seen_before = visible_findings(before, compares_laterals)
    return {
        slot: change_of(seen_before.get(slot, 0), shown.get(slot, 0))
        for slot in SLOTS
        if (slot in shown or slot in seen_before) and (compares_laterals or not slot.only_lateral)
    }


def _present(slot: Finding, size: int, change: str | None, rng: np.random.Generator) -> str:
    text = _name(slot, size, rng)
    if slot.only_lateral:
        text = _choose(ONLY_LATERAL, rng).format(text)
    return _sentence_case(f"{text}, {_pick(change, rng)}." if change else f"{text}.")


def _name(slot: Finding, size: int, rng: np.random.Generator) -> str:
    phrases = LATERAL_PHRASES if slot.only_lateral else PHRASES
    size_word = SIZES[slot.kind][size - 1] if slot.kind in SIZES else ""
    return _choose(phrases[slot.kind], rng).format(size=size_word, place=slot.place)


def _negatives(mentioned: set[str], rng: np.random.Generator) -> list[str]:
    said = rng.random(len(NEGATIVES)) < NEGATIVE_SHARE
    absent = [
        text
        for (kind, text), is_said in zip(NEGATIVES.items(), said, strict=True)
        if is_said and kind not in mentioned
    ]
    return absent if absent or mentioned else [_choose(tuple(NEGATIVES.values()), rng)]


def _impression(shown: Findings, changes: dict[Finding, str], rng: np.random.Generator) -> str:
    """The largest finding, one that changed before one that did not."""
    ranked = sorted(shown, key=lambda slot: (changes.get(slot) == "unchanged", -shown[slot]))
    if not ranked:
        return _choose(NORMAL, rng)
    slot = ranked[0]
    text, change = _name(slot, shown[slot], rng), changes.get(slot)
    return _sentence_case(f"{change} {text}." if change in ("new", "unchanged") else f"{text}.")


def _pick(change: str, rng: np.random.Generator) -> str:
    return _choose(CHANGES[change], rng)


def _choose(options: Sequence[str], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]


def _sentence_case(text: str) -> str:
    return text[0].upper() + text[1:]
