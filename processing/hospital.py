"""Your own hospital (a table of images, or DICOM files and a table of reports) to study records.

    ALTA_SALT=... python -m processing.hospital --root DIR --mapping FILE.yaml --output OUT [--report CHOICE]

The mapping says which columns of the table mean what (`processing/hospital_example.yaml`). Either a row of the table
is an image, with its study, patient, view, time and report; or, with the key `dicom`, the images are a folder of DICOM
files of which the headers say all that (`processing.corpora.dicom_headers`), and a row is a report, found by
StudyInstanceUID, else by an AccessionNumber of one study only. Of several reports of one study the last that has a
text counts, of several times the earliest. Where a study has a day but no time of day, it and the others of its
patient on that day count as one time.

What identifies a patient stays behind. `patient_id` and `study_id` are hashes under a secret salt, from the
environment variable ALTA_SALT or `--salt-file`; keep it, since the next run needs it for the same names, and keep it
away from the records. The records hold differences of days, no dates (`--keep-dates` keeps them). Identifiers that
the table or the header gives are removed from the reports, and the summary names files that cannot be read by a hash
of their path. This finds no other identifier: de-identify the reports, and the pixels if text is burned in, before.

The rows that are counted are those of the table of images, or the DICOM files.
"""

import argparse
import functools
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from processing.corpora.hospital_mapping import HospitalMapping, load_mapping
from processing.corpora.hospital_studies import DraftStudy, draft_from_dicom, draft_from_table
from processing.corpora.pseudonyms import SALT_VARIABLE, Pseudonyms, read_salt, remove_identifiers
from processing.engine.study_plan import Corpus, ImageFile, Plan, Study, StudyLeftOut
from processing.engine.write_records import corpus_parser, run_corpus, write_records
from processing.reports.report_sections import split_sections
from processing.reports.report_texts import DEFAULT_REPORT, add_report_option, check_report_choice, make_texts


__all__ = ["main", "plan_hospital", "prepare_hospital"]

EPOCH = datetime(1970, 1, 1)
DAY = timedelta(days=1)
NO_REPORT = "study: no report"
TEXTS = ("findings", "impression")


def plan_hospital(
    root: str | Path,
    mapping: HospitalMapping,
    salt: bytes,
    report: str = DEFAULT_REPORT,
    keep_dates: bool = False,
) -> Plan:
    """
    Plan the studies of a hospital.

    Args:
        root (`str` or `Path`): folder of the table and the images.
        mapping ([`HospitalMapping`]): from `load_mapping`.
        salt (`bytes`): the secret of the pseudonyms, from `read_salt`.
        report (`str`): sections that make the report, one of `REPORT_CHOICES`.
        keep_dates (`bool`, defaults to `False`): put the time of the study into `study_datetime`.

    Raises:
        `FileNotFoundError`: no table, or no folder of DICOM files.
        `ValueError`: an unknown choice, a missing column, or a table that cannot be read.
    """
    check_report_choice(report)
    excluded, totals = Counter(), Counter(rows=0)
    draft = draft_from_table if mapping.dicom is None else draft_from_dicom
    drafts = draft(Path(root), mapping, excluded, totals)
    make_study = functools.partial(_make_study, mapping, Pseudonyms(salt), report, keep_dates)
    dates = "kept" if keep_dates else "differences only"
    corpus = Corpus(mapping.name, root, empty_report=NO_REPORT, settings={"report": report, "dates": dates})
    return Plan(corpus, [make_study(found) for found in drafts], excluded, totals)


def _make_study(mapping: HospitalMapping, name: Pseudonyms, report: str, keep_dates: bool, draft: DraftStudy) -> Study:
    def files(ranked: list[tuple[int, str]]) -> tuple[ImageFile, ...]:
        ordered = sorted(ranked, key=lambda pair: pair[0])
        return tuple(ImageFile(path, shown_as=name("file", path)) for _, path in ordered)

    row = draft.row or {}
    return Study(
        name("study", draft.key),
        name("patient", draft.patient),
        files(draft.frontals),
        files(draft.laterals),
        time=None if draft.time is None else (draft.time - EPOCH) / DAY,
        study_datetime=draft.time if keep_dates else None,
        labels=tuple(filter(None, map(str.strip, row.get("labels", "").split(mapping.label_separator)))),
        source=mapping.source or mapping.name,
        license=mapping.license,
        **_make_texts(draft, report),
    )


def _make_texts(draft: DraftStudy, choice: str) -> dict[str, str]:
    if draft.row is None:
        return {"left_out": NO_REPORT}
    texts = {name: remove_identifiers(draft.row[name], draft.identifiers) for name in ("report", *TEXTS)}
    sections = split_sections(texts["report"]) if texts["report"] else {}
    try:
        return make_texts(sections | {name: texts[name] for name in TEXTS if texts[name]}, choice)
    except StudyLeftOut as reason:
        return {"left_out": str(reason)}


def prepare_hospital(
    root: str | Path,
    output: str | Path,
    mapping: HospitalMapping,
    salt: bytes,
    report: str = DEFAULT_REPORT,
    keep_dates: bool = False,
    num_proc: int = 1,
) -> dict[str, Any]:
    """
    Turn a hospital's images and reports into study records; arguments as in [`plan_hospital`] and `write_records`.

    Returns:
        `dict`: the summary of `write_records`; with DICOM files also how many **reports** the table has, how many of
        them are **reports_without_images**, and **earlier_reports_of_a_study**, which were not taken.
    """
    return write_records(plan_hospital(root, mapping, salt, report, keep_dates), output, num_proc)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = corpus_parser("hospital", __doc__)
    parser.add_argument("--mapping", required=True, help="YAML file that says what the columns of the table mean")
    parser.add_argument("--salt-file", help=f"file of the secret salt (default: the environment's {SALT_VARIABLE})")
    parser.add_argument("--keep-dates", action="store_true", help="keep the time of each study in its record")
    add_report_option(parser)
    run_corpus(parser, _plan, arguments)


def _plan(options: argparse.Namespace) -> Plan:
    mapping, salt = load_mapping(options.mapping), read_salt(options.salt_file)
    return plan_hospital(options.root, mapping, salt, options.report, options.keep_dates)


if __name__ == "__main__":
    main()
