"""The checks of study records: what is wrong, and what is in them, as plain figures."""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from modeling_alta.configuration_alta import VIEW_NAMES
from processing.records.record_scan import ScannedRecord
from processing.records.study_features import SPLIT_NAMES


__all__ = ["check_records"]

CURRENT_VIEWS = tuple(name for name in VIEW_NAMES if name.startswith("current"))
EXAMPLES = 5
QUANTILES = {"shortest": 0, "5 %": 0.05, "median": 0.5, "95 %": 0.95, "longest": 1}


def check_records(records: Sequence[ScannedRecord]) -> dict[str, Any]:
    """
    Check study records.

    Args:
        records (sequence of [`ScannedRecord`]): from `scan_records`.

    Returns:
        `dict` of plain JSON values:
        - **leakage** -- what must not be: name → `count` and some `examples`.
        - **errors**, **warnings** -- the same for what is broken, and for what one should know.
        - **records**, **patients**, **sources** -- counts; **slots** -- split → view → share of records that have it.
        - **report_words** -- quantiles; **labels** -- label → split → records.
    """
    by_id = {record.study_id: record for record in records}
    problems = [problem for record in records for problem in _check_prior(record, by_id)]
    return {
        "leakage": {"patients in two splits": _in_two_splits(records, lambda record: [record.patient_id])},
        "errors": {
            "study ids that come twice": _repeated(records, lambda record: [record.study_id]),
            "images that cannot be read": _tell(
                f"{record.study_id}: {view}"
                for record in records
                for view, image in record.images.items()
                if image.pixels is None
            ),
            "priors in the wrong order": _tell(text for kind, text in problems if kind == "order"),
            "priors of another patient": _tell(text for kind, text in problems if kind == "patient"),
            "priors that lack their id or their images": _tell(text for kind, text in problems if kind == "lack"),
            "empty reports": _tell(record.study_id for record in records if not record.num_words),
            "studies without a current image": _tell(
                record.study_id for record in records if not set(CURRENT_VIEWS) & set(record.images)
            ),
        },
        "warnings": {
            "images that come twice": _repeated(records, _current_pixels),
            "images in two splits": _in_two_splits(records, _current_pixels),
            "reports that come twice": _repeated(records, _report),
            "reports in two splits": _in_two_splits(records, _report),
        },
        **_describe(records),
    }


def _tell(texts: Iterable[str]) -> dict[str, Any]:
    texts = list(texts)
    return {"count": len(texts), "examples": texts[:EXAMPLES]}


def _current_pixels(record: ScannedRecord) -> list[Hashable]:
    """A prior is another record's current image by design, so it is no duplicate."""
    images = [record.images[name] for name in CURRENT_VIEWS if name in record.images]
    return [image.pixels for image in images if image.pixels is not None]


def _report(record: ScannedRecord) -> list[Hashable]:
    return [record.report] if record.num_words else []


def _group(records: Sequence[ScannedRecord], keys: Callable[[ScannedRecord], list]) -> list[list[ScannedRecord]]:
    groups = defaultdict(list)
    for record in records:
        for key in keys(record):
            groups[key].append(record)
    return list(groups.values())


def _repeated(records: Sequence[ScannedRecord], keys: Callable[[ScannedRecord], list]) -> dict[str, Any]:
    """Counts what comes again, so that three copies of one thing count twice."""
    groups = [group for group in _group(records, keys) if len(group) > 1]
    count = sum(len(group) - 1 for group in groups)
    return _tell(", ".join(record.study_id for record in group[:EXAMPLES]) for group in groups) | {"count": count}


def _in_two_splits(records: Sequence[ScannedRecord], keys: Callable[[ScannedRecord], list]) -> dict[str, Any]:
    found = [group for group in _group(records, keys) if len({record.split for record in group}) > 1]
    return _tell(", ".join(f"{r.study_id} ({r.split})" for r in _one_per_split(group)) for group in found)


def _one_per_split(group: list[ScannedRecord]) -> list[ScannedRecord]:
    return list({record.split: record for record in reversed(group)}.values())[::-1]


def _check_prior(record: ScannedRecord, by_id: Mapping[str, ScannedRecord]) -> list[tuple[str, str]]:
    has_images = any(name.startswith("prior") for name in record.images)
    if record.prior_study_id is None:
        return [("lack", f"{record.study_id}: images without an id")] if has_images else []
    name = f"{record.study_id} after {record.prior_study_id}"
    problems = [] if has_images else [("lack", f"{record.study_id}: an id without images")]
    prior = by_id.get(record.prior_study_id)  # a study without a report is a prior without being a record
    if record.days_since_prior is not None and record.days_since_prior <= 0:
        problems.append(("order", f"{name}: {record.days_since_prior:g} days"))
    elif prior and prior.prior_study_id == record.study_id:
        problems.append(("order", f"{name}, which is its own prior's"))
    elif prior and prior.study_datetime and record.study_datetime and prior.study_datetime >= record.study_datetime:
        problems.append(("order", f"{name}: {record.study_datetime} and {prior.study_datetime}"))
    if prior and prior.patient_id != record.patient_id:
        problems.append(("patient", name))
    return problems


def _describe(records: Sequence[ScannedRecord]) -> dict[str, Any]:
    splits = {name: [record for record in records if record.split == name] for name in SPLIT_NAMES}
    splits = {name: found for name, found in splits.items() if found}
    words = [record.num_words for record in records]
    labels = {name: _count_labels(found) for name, found in splits.items()}
    order = sorted(sum(labels.values(), Counter()).items(), key=lambda item: (-item[1], item[0]))
    return {
        "records": {name: len(found) for name, found in splits.items()},
        "patients": {name: len({record.patient_id for record in found}) for name, found in splits.items()},
        "sources": dict(Counter(record.source for record in records).most_common()),
        "slots": {name: {view: _share(found, view) for view in VIEW_NAMES} for name, found in splits.items()},
        "report_words": {name: float(np.quantile(words, at)) for name, at in QUANTILES.items()},
        "labels": {label: {name: labels[name][label] for name in splits} for label, _ in order},
    }


def _count_labels(records: Sequence[ScannedRecord]) -> Counter:
    return Counter(label for record in records for label in dict.fromkeys(record.labels))


def _share(records: Sequence[ScannedRecord], view: str) -> float:
    return sum(view in record.images for record in records) / len(records)
