"""CheXpert, with the reports of CheXpert Plus or without reports, to study records.

    python -m processing.chexpert --root DIR --reports df_chexpert_plus_240401.csv --output OUT [--images png]
    python -m processing.chexpert --root DIR --without-reports --output OUT

ROOT is the folder with `train/`, `valid/` and perhaps `test/`, or holds one such folder: `CheXpert-v1.0`,
`CheXpert-v1.0-small`, or the PNG or DICOM folder of CheXpert Plus. `train.csv`, `valid.csv` and `test*.csv`, plain or
gzipped, lie beside those folders, in ROOT, or in `--tables`.

CheXpert has labels and no reports, and a sentence made of labels is no report: without `--reports` the command stops,
unless `--without-reports` asks for records with an empty `report`, which zero-shot evaluation takes and training
refuses. With `--reports` the rows are those of CheXpert Plus' table; labels come from those tables of CheXpert that
are there, which the summary names.

A study is all rows of one patient and one study folder. Its place among the patient's studies is the number of its
folder, or `patient_report_date_order` with `--reports` (unknown if its rows disagree or have none). There are no
dates, so `days_since_prior` stays empty. Frontal: the first in table order among the best of PA > AP > not told; one
of another direction (LL, RL) is left out. Lateral: the first. The split is that of the folder, "valid" → "validation".
Every row is an image of a study, or counted under one reason "row: ...".
"""

import argparse
import functools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from processing.corpora.chexpert_labels import add_uncertain_option
from processing.corpora.chexpert_tables import (
    SPLITS,
    ChexpertRow,
    find_label_tables,
    find_plus_table,
    read_labels,
    read_plus_rows,
    read_rows,
    read_sections,
)
from processing.engine.study_plan import Corpus, ImageFile, Plan, Study
from processing.engine.write_records import corpus_parser, run_corpus
from processing.reports.report_texts import DEFAULT_REPORT, add_report_option, check_report_choice, make_texts


__all__ = ["main", "plan_chexpert", "read_report"]

LICENSE = "Stanford University Dataset Research Use Agreement"
SUFFIXES = {"dicom": ".dcm", "jpg": ".jpg", "png": ".png"}
DIRECTIONS = ("PA", "AP", "")  # of a frontal, best first


@dataclass(slots=True)
class _Draft:
    """The rows of one study, so far."""

    first: ChexpertRow
    orders: set[float | None] = field(default_factory=set)
    frontals: list[tuple[int, ImageFile]] = field(default_factory=list)
    laterals: list[ImageFile] = field(default_factory=list)


def plan_chexpert(
    root: str | Path,
    reports: str | Path | None = None,
    tables: str | Path | None = None,
    images: str = "jpg",
    report: str = DEFAULT_REPORT,
    uncertain_as: str = "zeros",
    without_reports: bool = False,
) -> Plan:
    """
    Plan the studies of CheXpert.

    Args:
        root (`str` or `Path`): folder of `train/` and `valid/`, or a folder that holds one such folder.
        reports (`str` or `Path`, *optional*): the table of CheXpert Plus, or its folder.
        tables (`str` or `Path`, *optional*): folder of `train.csv` and `valid.csv`.
        images (`str`, defaults to `"jpg"`): the kind of file, "jpg", "png" or "dicom".
        report (`str`, defaults to `"findings+impression"`): one of `REPORT_CHOICES`.
        uncertain_as (`str`, defaults to `"zeros"`): what a label of -1 counts as, "zeros" or "ones".
        without_reports (`bool`): make records with an empty `report`.

    Raises:
        `FileNotFoundError`: the images' folder or a table is missing.
        `ValueError`: a missing column, neither `reports` nor `without_reports` or both, an argument out of its
            choices, or a table that contradicts itself.
    """
    _check_arguments(reports, images, report, without_reports)
    folder, counts, excluded = _find_images(Path(root)), Counter(), Counter()
    plus_table = None if without_reports else find_plus_table(Path(reports))
    label_tables = _find_labels(folder, Path(root), tables, is_needed=without_reports)
    rows = read_rows(label_tables) if without_reports else read_plus_rows(plus_table)
    drafts = _draft_studies(rows, SUFFIXES[images], counts, excluded)
    labels_of = read_labels(label_tables, uncertain_as)
    counts["studies_without_labels"] = sum(draft.first.study not in labels_of for draft in drafts.values())
    studies = [_make_study(drafts.pop(key), labels_of, plus_table) for key in list(drafts)]
    settings = {"images": images, "report": "none" if without_reports else report, "uncertain_as": uncertain_as}
    settings |= {"labels": [table.name for table in label_tables]}
    rules = {"time_unit": "order", "needs_report": not without_reports, "settings": settings}
    corpus = Corpus(_name(plus_table), folder, functools.partial(read_report, choice=report), **rules)
    return Plan(corpus, studies, excluded, counts)


def _check_arguments(reports: str | Path | None, images: str, report: str, without_reports: bool) -> None:
    if images not in SUFFIXES:
        raise ValueError(f"`images` must be one of {list(SUFFIXES)}, got {images!r}.")
    check_report_choice(report)
    if (reports is None) != without_reports:
        given = "neither" if reports is None else "both"
        raise ValueError(
            "`reports` must be the table of CheXpert Plus, or `without_reports` be set: CheXpert has labels and no "
            f"reports; got {given}."
        )


def _name(plus_table: Path | None) -> str:
    return "CheXpert Plus" if plus_table else "CheXpert"


def _find_images(root: Path) -> Path:
    folders = sorted(path for path in root.glob("*") if path.is_dir())
    found = [folder for folder in (root, *folders) if _split_folders(folder)]
    if not found or (found[0] != root and len(found) > 1):
        names = [folder.name for folder in found]
        raise FileNotFoundError(f"`root` must be or hold one folder with train/ or valid/, got {root} with {names}.")
    return found[0]


def _split_folders(folder: Path) -> list[str]:
    return [name for name in SPLITS if (folder / name).is_dir()]


def _find_labels(folder: Path, root: Path, tables: str | Path | None, is_needed: bool) -> list[Path]:
    """The tables of labels: where they are needed, one for each split that has images."""
    places = [Path(tables)] if tables else [folder, root]
    place = next((place for place in places if find_label_tables(place)), places[0])
    found = find_label_tables(place)
    missing = [name for name in _split_folders(folder) if name not in found]
    if missing and is_needed:
        raise FileNotFoundError(f"`tables` must be a folder with the tables of {missing}, got {place} without them.")
    return list(found.values())


def _draft_studies(
    rows: Iterable[ChexpertRow], suffix: str, counts: Counter, excluded: Counter
) -> dict[tuple[str, str], _Draft]:
    """Patient and folder of the study → its images by view."""
    drafts: dict[tuple[str, str], _Draft] = {}
    for row in rows:
        counts["rows"] += 1
        if not row.study:
            excluded["row: path names no study"] += 1
        elif not row.patient:
            excluded["row: no patient id"] += 1
        else:
            draft = drafts.setdefault((row.patient, row.study), _Draft(row))
            draft.orders.add(row.order)
            _add_image(draft, row, ImageFile(str(PurePosixPath(row.path).with_suffix(suffix))), excluded)
    return drafts


def _add_image(draft: _Draft, row: ChexpertRow, file: ImageFile, excluded: Counter) -> None:
    if row.view == "lateral":
        draft.laterals.append(file)
    elif row.view != "frontal":
        excluded["row: view is not known"] += 1
    elif row.direction not in DIRECTIONS:
        excluded["row: frontal that is neither PA nor AP"] += 1
    else:
        draft.frontals.append((DIRECTIONS.index(row.direction), file))


def _make_study(draft: _Draft, labels_of: Mapping[str, tuple[str, ...]], plus_table: Path | None) -> Study:
    first = draft.first
    return Study(
        "_".join(first.study.split("/")[1:]),
        first.patient,
        tuple(file for _, file in sorted(draft.frontals, key=lambda ranked: ranked[0])),
        tuple(draft.laterals),
        time=draft.orders.pop() if len(draft.orders) == 1 else None,
        report_file=str(plus_table.resolve() / first.report) if plus_table else None,
        labels=labels_of.get(first.study, ()),
        source=_name(plus_table),
        license=LICENSE,
        split=first.split,
    )


def read_report(path: Path, choice: str) -> dict[str, str]:
    """The texts of the row of a table, at `table/position`; `choice` is one of `REPORT_CHOICES`."""
    return make_texts(read_sections(path.parent, path.name), choice)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = corpus_parser("chexpert", __doc__)
    parser.add_argument("--reports", help="table of CheXpert Plus, or its folder")
    parser.add_argument("--without-reports", action="store_true", help="make records with an empty report")
    parser.add_argument("--tables", help="folder of train.csv and valid.csv (default: beside the images, or ROOT)")
    parser.add_argument("--images", choices=list(SUFFIXES), default="jpg", help="files to read (default: jpg)")
    add_report_option(parser)
    add_uncertain_option(parser)
    run_corpus(parser, _plan, arguments)


def _plan(options: argparse.Namespace) -> Plan:
    names = ("root", "reports", "tables", "images", "report", "uncertain_as", "without_reports")
    return plan_chexpert(**{name: getattr(options, name) for name in names})


if __name__ == "__main__":
    main()
