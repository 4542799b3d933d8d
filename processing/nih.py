"""NIH ChestX-ray14 (PNG frontals and labels, no reports) to study records for evaluation.

    python -m processing.nih --root DIR --output OUT

`DIR` holds `Data_Entry_2017_v2020.csv` (else `Data_Entry_2017.csv`), `train_val_list.txt`, `test_list.txt`, and the
images anywhere below it (`images_001/images/00000001_000.png` … `images_012/`, or one folder).

An image is a study; its place in time is its Follow-up #, a number without unit, so `days_since_prior` stays empty.
The splits are the official ones, which part patients; a tenth of the patients of `train_val_list.txt`, by hash, is for
validation. The labels are the finding labels, "No Finding" for none. Training refuses the records, since they have no
report.
"""

import argparse
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from processing.corpora.find_images import find_images
from processing.corpora.tables import find_table, read_table
from processing.engine.study_plan import Corpus, ImageFile, Plan, Study
from processing.engine.write_records import corpus_parser, run_corpus, write_records
from processing.records.study_features import assign_split


__all__ = ["main", "plan_nih", "prepare_nih"]

NAME = "NIH ChestX-ray14"
LICENSE = "no restrictions; the NIH Clinical Center is to be acknowledged"
TABLES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")  # with corrected labels first
TRAIN_LIST, TEST_LIST = "train_val_list.txt", "test_list.txt"
COLUMNS = ("Image Index", "Finding Labels", "Follow-up #", "Patient ID", "View Position")
VIEWS = ("PA", "AP")


def plan_nih(root: str | Path) -> Plan:
    """
    Plan the images of the corpus, each a study.

    Args:
        root (`str` or `Path`): folder of the table, the lists and the images.

    Raises:
        `FileNotFoundError`: no table, or not both lists.
        `ValueError`: a missing column, or a patient on both lists.
    """
    table, on_list, excluded, totals = _find_table(root), _read_lists(root), Counter(), Counter(rows=0)
    files, studies = find_images(root, ".png"), []
    for row in read_table(table, COLUMNS):
        totals["rows"] += 1
        if reason := _reason_to_leave_out(row, on_list):
            excluded[f"row: {reason}"] += 1
        else:
            studies.append(_plan_study(row, on_list[row["Image Index"]], files))
    corpus = Corpus(NAME, root, time_unit="order", needs_report=False, settings={"table": table.name})
    return Plan(corpus, studies, excluded, totals)


def _find_table(root: str | Path) -> Path:
    try:
        return find_table(root, TABLES[0])
    except FileNotFoundError:
        return find_table(root, TABLES[1])


def _read_lists(root: str | Path) -> dict[str, str]:
    """Image → the list that it is on."""
    test = set(_read_list(Path(root, TEST_LIST)))
    both = next((image for image in _read_list(Path(root, TRAIN_LIST)) if image in test), None)
    if both:
        raise ValueError(f"{TRAIN_LIST} and {TEST_LIST} must have no image in common, got {both!r} in both.")
    return dict.fromkeys(_read_list(Path(root, TRAIN_LIST)), TRAIN_LIST) | dict.fromkeys(test, TEST_LIST)


def _read_list(path: Path) -> Iterator[str]:
    if not path.is_file():
        raise FileNotFoundError(f"`root` must be a folder with {path.name}, got {path.parent} without it.")
    return filter(None, map(str.strip, path.read_text(encoding="utf-8-sig").splitlines()))


def _reason_to_leave_out(row: Mapping[str, str], on_list: Mapping[str, str]) -> str | None:
    if not (row["Image Index"] and row["Patient ID"]):
        return "no image or patient"
    if row["View Position"].upper() not in VIEWS:
        return "another or an unknown view"
    if row["Image Index"] not in on_list:
        return "image is on neither list"
    return None


def _plan_study(row: Mapping[str, str], on_list: str, files: Mapping[str, str]) -> Study:
    image, patient = row["Image Index"], row["Patient ID"]
    is_validation = assign_split(patient) == "validation"
    split = "test" if on_list == TEST_LIST else "validation" if is_validation else "train"
    return Study(
        image.removesuffix(".png"),
        patient,
        (ImageFile(files.get(image, image)),),
        time=float(row["Follow-up #"]) if row["Follow-up #"].isdecimal() else None,
        labels=tuple(filter(None, map(str.strip, row["Finding Labels"].split("|")))),
        source=NAME,
        license=LICENSE,
        split=split,
    )


def prepare_nih(root: str | Path, output: str | Path, num_proc: int = 1) -> dict[str, Any]:
    """
    Turn the corpus into study records; arguments as in [`plan_nih`] and `write_records`.

    Returns:
        `dict`: the summary of `write_records`.
    """
    return write_records(plan_nih(root), output, num_proc)


def main(arguments: Sequence[str] | None = None) -> None:
    run_corpus(corpus_parser("nih", __doc__), _plan, arguments)


def _plan(options: argparse.Namespace) -> Plan:
    return plan_nih(options.root)


if __name__ == "__main__":
    main()
