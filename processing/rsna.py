"""RSNA Pneumonia Detection Challenge (DICOM frontals and labels, no reports) to study records for evaluation.

    python -m processing.rsna --root DIR --output OUT
    python -m processing.rsna --root DIR --output OUT --test-list FILE [--validation-list FILE] [--train-list FILE]

`DIR` holds `stage_2_train_images/<patientId>.dcm`, `stage_2_train_labels.csv` (a row per box) and, if wanted,
`stage_2_detailed_class_info.csv`. Without a list, all images of the table are taken, and a hash of the patientId makes
the split.

With lists, the images on them are taken and no others, each list in its split. The published lists have a line per
image, `stage_2_test_images/2d29c5d7-cd1e-4fb7-896b-c55b69ca6c96.dcm 1`: path below `DIR`, and 1 for pneumonia. The
3,000 images of the test list are those of `stage_2_test_images/`, which no table of the challenge labels, so the label
of the line counts; lines may have commas for spaces, a patientId alone (then it is one of the table, which labels it),
and a first line of titles.

A patientId is one image, so there are no priors; the challenge does not say which images show the same person. Labels
are "Pneumonia" or "No Pneumonia", and the detailed class where the table has it. "No Finding" would be wrong: many
images without pneumonia are "No Lung Opacity / Not Normal". Training refuses the records, since they have no report.
"""

import argparse
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from processing.corpora.tables import find_table, read_table
from processing.engine.study_plan import Corpus, ImageFile, Plan, Study
from processing.engine.write_records import corpus_parser, run_corpus, write_records
from processing.records.study_features import SPLIT_NAMES


__all__ = ["main", "plan_rsna", "prepare_rsna", "read_rsna_list"]

NAME = "RSNA Pneumonia Detection Challenge"
LICENSE = "terms of the challenge (non-commercial research and education)"
TRAIN_IMAGES = "stage_2_train_images"
LABELS, CLASSES = "stage_2_train_labels.csv", "stage_2_detailed_class_info.csv"
LABEL_OF = {"1": "Pneumonia", "0": "No Pneumonia"}
NO_LABEL = "study: no label"
TITLES = ("image", "patientid", "path")

Listed = tuple[str, str]  # path below the root, and "1", "0" or ""


def plan_rsna(root: str | Path, lists: Mapping[str, str | Path] | None = None) -> Plan:
    """
    Plan the images of the challenge, each a study.

    Args:
        root (`str` or `Path`): folder of the images and the tables.
        lists (`dict` of `str` to `str` or `Path`, *optional*): split → list of its images.

    Raises:
        `FileNotFoundError`: a list or a table is missing; the tables are not needed where the lists have the labels.
        `ValueError`: a missing column, an unknown split, a line that names no image, an image on two lists, or a label
            that contradicts the table.
    """
    excluded, totals = Counter(), Counter(rows=0)
    if not lists:
        targets = _read_targets(find_table(root, LABELS), excluded, totals)
        listed = {image: (f"{TRAIN_IMAGES}/{image}.dcm", target) for image, target in targets.items()}
        splits: dict[str, str] = {}
    else:
        listed, splits = _read_lists(lists, excluded, totals)
        listed = _add_targets(root, listed)
    classes = _read_classes(root)
    studies = [_plan_study(image, *listed[image], classes, splits.get(image)) for image in listed]
    settings = {"lists": sorted(lists or {})}
    return Plan(Corpus(NAME, root, needs_report=False, settings=settings), studies, excluded, totals)


def _read_targets(table: Path, excluded: Counter | None = None, totals: Counter | None = None) -> dict[str, str]:
    """Image → "1" or "0"; `""` where its rows do not agree or say something else."""
    excluded, totals = Counter() if excluded is None else excluded, Counter() if totals is None else totals
    targets: dict[str, str] = {}
    for row in read_table(table, ("patientId", "Target")):
        totals["rows"] += 1
        image, target = row["patientId"], row["Target"] if row["Target"] in LABEL_OF else ""
        if not image:
            excluded["row: no patientId"] += 1
            continue
        excluded["row: another box of the image"] += image in targets
        targets[image] = target if targets.get(image, target) == target else ""
    return targets


def _read_classes(root: str | Path) -> dict[str, str]:
    try:
        rows = read_table(find_table(root, CLASSES), ("patientId", "class"))
    except FileNotFoundError:
        return {}
    return {row["patientId"]: row["class"] for row in rows if row["class"]}


def read_rsna_list(path: str | Path) -> list[tuple[str, str, str]]:
    """
    Read a list of images in the published format.

    Args:
        path (`str` or `Path`): a text file; see the top of this module.

    Returns:
        `list` of `tuple`: patientId, path below the root, and "1", "0" or, for a line without a label, `""`.

    Raises:
        `FileNotFoundError`: no such file.
        `ValueError`: a line that has another form.
    """
    lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    found = []
    for number, line in enumerate(lines, start=1):
        name, *label = re.split(r"[\s,]+", line.strip(" \t,")) if line.strip(" \t,") else ("",)
        if not name or (number == 1 and name.lower() in TITLES):
            continue
        if len(label) > 1 or not set(label) <= set(LABEL_OF):
            raise ValueError(f"{path} must have lines of an image and its label, 0 or 1, got {line!r}, line {number}.")
        file = name if "/" in name else f"{TRAIN_IMAGES}/{name.removesuffix('.dcm')}.dcm"
        found.append((PurePosixPath(file).stem, file, label[0] if label else ""))
    return found


def _read_lists(
    lists: Mapping[str, str | Path], excluded: Counter, totals: Counter
) -> tuple[dict[str, Listed], dict[str, str]]:
    listed: dict[str, Listed] = {}
    splits: dict[str, str] = {}
    for split, path in lists.items():
        if split not in SPLIT_NAMES:
            raise ValueError(f"`lists` must have keys of {list(SPLIT_NAMES)}, got {split!r}.")
        for image, file, label in read_rsna_list(path):
            totals["rows"] += 1
            if splits.setdefault(image, split) != split:
                raise ValueError(f"`lists` must have each image on one list, got {image!r} on two.")
            if listed.setdefault(image, (file, label)) != (file, label):
                raise ValueError(f"{path} must have one path and label for each image, got two for {image!r}.")
    excluded["row: another line of the image"] += totals["rows"] - len(listed)
    return listed, splits


def _add_targets(root: str | Path, listed: Mapping[str, Listed]) -> dict[str, Listed]:
    """Labels that the lists lack, from the table, which must not contradict the others."""
    try:
        targets = _read_targets(find_table(root, LABELS))
    except FileNotFoundError:
        if not all(label for _, label in listed.values()):
            raise
        targets = {}
    wrong = [image for image, (_, label) in listed.items() if label and targets.get(image, label) not in (label, "")]
    if wrong:
        raise ValueError(f"`lists` must have the labels of {LABELS}, got others for {len(wrong)} images: {wrong[:3]}.")
    return {image: (file, label or targets.get(image, "")) for image, (file, label) in listed.items()}


def _plan_study(image: str, path: str, target: str, classes: Mapping[str, str], split: str | None) -> Study:
    return Study(
        image,
        image,
        (ImageFile(path),),
        labels=tuple(filter(None, (LABEL_OF.get(target), classes.get(image)))),
        source=NAME,
        license=LICENSE,
        split=split,
        left_out=None if target else NO_LABEL,
    )


def prepare_rsna(
    root: str | Path, output: str | Path, lists: Mapping[str, str | Path] | None = None, num_proc: int = 1
) -> dict[str, Any]:
    """
    Turn images of the challenge into study records; arguments as in [`plan_rsna`] and `write_records`.

    Returns:
        `dict`: the summary of `write_records`. Its **rows** are those of the table, or the lines of the lists.
    """
    return write_records(plan_rsna(root, lists), output, num_proc)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = corpus_parser("rsna", __doc__)
    for split in SPLIT_NAMES:
        parser.add_argument(f"--{split}-list", help=f"list of the images of the {split} split; see above")
    run_corpus(parser, _plan, arguments)


def _plan(options: argparse.Namespace) -> Plan:
    lists = {split: getattr(options, f"{split}_list") for split in SPLIT_NAMES}
    return plan_rsna(options.root, {split: path for split, path in lists.items() if path})


if __name__ == "__main__":
    main()
