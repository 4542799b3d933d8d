"""Open-i, the chest X-ray collection of Indiana University (XML reports and PNG images) to study records.

    python -m processing.openi --root DIR --output OUT [--report CHOICE]

`DIR` holds the reports as distributed (`NLMCXR_reports.tgz`, or `ecgen-radiology/` from it), the PNG images anywhere
below it (`CXR1_1_IM-0001-3001.png` of `NLMCXR_png.tgz`, or `1_IM-0001-3001.dcm.png` of the Kaggle copy), and a table
of views, `indiana_projections.csv` or `nlmcxr_dicom_metadata.csv` (see `processing.corpora.openi_views`).

A report is a study, and a study a patient: the collection has one per patient. Its reports have no dates, so there are
no priors. The frontal is the first in the order of the report among the best of PA and "frontal" > AP, the lateral the
first; images whose view nothing decides are left out. The labels are the MeSH and RadLex codes by hand, whole, such as
"Cardiomegaly/mild" or "normal".

The rows that are counted are the images that the reports name.
"""

import argparse
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from processing.corpora.find_images import find_images
from processing.corpora.openi_reports import MAX_BYTES, OpeniReport, read_openi_xml
from processing.corpora.openi_views import image_key, read_openi_views
from processing.engine.study_plan import Corpus, ImageFile, Plan, Study, StudyLeftOut
from processing.engine.write_records import corpus_parser, run_corpus, write_records
from processing.reports.report_texts import DEFAULT_REPORT, add_report_option, check_report_choice, make_texts


__all__ = ["main", "plan_openi", "prepare_openi", "read_openi_reports"]

NAME = "Open-i (Indiana University)"
ARCHIVE, FOLDER = "NLMCXR_reports.tgz", "ecgen-radiology"
RANK = {"PA": 0, "frontal": 0, "AP": 1}
_LICENSE_URL = re.compile(r"/licenses/([a-z-]+)/(\d\.\d)")


def plan_openi(root: str | Path, report: str = DEFAULT_REPORT) -> Plan:
    """
    Plan the studies of the collection.

    Args:
        root (`str` or `Path`): folder of the reports, the images and the table of views.
        report (`str`): sections that make the report, one of `REPORT_CHOICES`.

    Raises:
        `FileNotFoundError`: no reports, or no table of views.
        `ValueError`: an unknown choice, a missing column, or an archive that cannot be read.
    """
    check_report_choice(report)
    excluded: Counter = Counter()
    reports = sorted(read_openi_reports(root, excluded), key=lambda found: (len(found.study_id), found.study_id))
    views, files = read_openi_views(root), find_images(root, ".png", image_key)
    studies = [_plan_study(found, report, views, files, excluded) for found in reports]
    corpus = Corpus(NAME, root, settings={"report": report})
    return Plan(corpus, studies, excluded, {"rows": sum(len(found.image_ids) for found in reports)})


def read_openi_reports(root: str | Path, excluded: Counter) -> Iterator[OpeniReport]:
    """
    Read every report of the collection; one that cannot be read is counted in `excluded`.

    Raises:
        `FileNotFoundError`: neither `ecgen-radiology/` nor `NLMCXR_reports.tgz` in `root`.
        `ValueError`: an archive that cannot be read.
    """
    for content in _read_files(Path(root)):
        try:
            yield read_openi_xml(content)
        except ValueError:
            excluded["study: report cannot be read"] += 1


def _read_files(root: Path) -> Iterator[bytes]:
    folder, archive = root / FOLDER, root / ARCHIVE
    if folder.is_dir():
        yield from (path.read_bytes() for path in sorted(folder.glob("*.xml")))
    elif archive.is_file():
        yield from _read_archive(archive)
    else:
        raise FileNotFoundError(f"`root` must be a folder with {FOLDER}/ or {ARCHIVE}, got {root} without either.")


def _read_archive(path: Path) -> Iterator[bytes]:
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                if member.isfile() and member.name.endswith(".xml"):
                    yield archive.extractfile(member).read(MAX_BYTES + 1)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(f"{path} must be a tar archive of XML reports, but cannot be read: {error}") from error


def _plan_study(
    found: OpeniReport, choice: str, views: Mapping[str, str], files: Mapping[str, str], excluded: Counter
) -> Study:
    viewed = [(views.get(image_key(name)), name) for name in found.image_ids]
    excluded["row: no table decides the view"] += sum(view is None for view, _ in viewed)
    frontals = sorted((pair for pair in viewed if pair[0] in RANK), key=lambda pair: RANK[pair[0]])
    texts, left_out = {}, None
    try:
        texts = make_texts(found.sections, choice)
    except StudyLeftOut as reason:
        left_out = str(reason)
    return Study(
        found.study_id,
        found.study_id,
        tuple(_image_file(name, files) for _, name in frontals),
        tuple(_image_file(name, files) for view, name in viewed if view == "lateral"),
        **texts,
        labels=found.major_labels,
        source=found.source,
        license=_name_license(found),
        left_out=left_out,
    )


def _image_file(name: str, files: Mapping[str, str]) -> ImageFile:
    return ImageFile(files.get(image_key(name), f"{name}.png"))


def _name_license(found: OpeniReport) -> str:
    """ "CC BY-NC-ND 4.0" of its address, or what the file calls it."""
    match = _LICENSE_URL.search(found.license_url)
    return f"CC {match[1].upper()} {match[2]}" if match else found.license


def prepare_openi(
    root: str | Path, output: str | Path, report: str = DEFAULT_REPORT, num_proc: int = 1
) -> dict[str, Any]:
    """
    Turn the collection into study records.

    Args:
        root (`str` or `Path`): folder of the reports, the images and the table of views.
        output (`str` or `Path`): folder to write `data/` and `summary.json` into.
        report (`str`): sections that make the report, one of `REPORT_CHOICES`.
        num_proc (`int`, defaults to 1): worker processes.

    Returns:
        `dict`: the summary of `write_records`.

    Raises:
        `FileNotFoundError`, `ValueError`: see [`plan_openi`], or a folder that yields no record.
    """
    return write_records(plan_openi(root, report), output, num_proc)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = corpus_parser("openi", __doc__)
    add_report_option(parser)
    run_corpus(parser, _plan, arguments)


def _plan(options: argparse.Namespace) -> Plan:
    return plan_openi(options.root, options.report)


if __name__ == "__main__":
    main()
