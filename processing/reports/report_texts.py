"""From the sections of a report to the three texts of a record, or the reason to leave the study out."""

import argparse
from collections.abc import Mapping

from processing.engine.study_plan import StudyLeftOut
from processing.reports.training_text import REPORT_CHOICES, choose_text, clean_text, reason_to_exclude


__all__ = ["DEFAULT_REPORT", "add_report_option", "check_report_choice", "make_texts"]

DEFAULT_REPORT = "findings+impression"


def make_texts(sections: Mapping[str, str | None], choice: str) -> dict[str, str]:
    """
    Make the `findings`, `impression` and `report` of a record.

    Args:
        sections (mapping of `str` to `str` or `None`): from `split_sections` or a table.
        choice (`str`): one of `REPORT_CHOICES`, which sections make the report.

    Raises:
        `StudyLeftOut`: the chosen text is empty, of one word, or of de-identification marks only.
    """
    text = choose_text(sections, choice)
    reason = reason_to_exclude(text)
    if reason:
        raise StudyLeftOut(f"study: {reason}")
    cleaned = {name: clean_text(sections.get(name) or "") for name in ("findings", "impression")}
    return {**cleaned, "report": clean_text(text)}


def check_report_choice(choice: str) -> None:
    """Refuse an unknown choice before any study is planned, with a `ValueError`."""
    if choice not in REPORT_CHOICES:
        raise ValueError(f"`report` must be one of {list(REPORT_CHOICES)}, got {choice!r}.")


def add_report_option(parser: argparse.ArgumentParser) -> None:
    """Add `--report` to a corpus' command."""
    parser.add_argument(
        "--report", choices=REPORT_CHOICES, default=DEFAULT_REPORT, help=f"its sections (default: {DEFAULT_REPORT})"
    )
