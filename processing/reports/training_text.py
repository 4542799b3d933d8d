"""From the sections of a report to the text that trains.

Which sections make the text is a choice that changes every figure, so it has a name, to be written into the metadata
of the records:

| choice | text |
|---|---|
| `findings+impression` | the findings, then the impression; the one that is there, if only one is |
| `findings`, `impression` | that section alone |
| `findings else impression`, `impression else findings` | the first, or the second if the first is empty |
| `longest` | the one with more words, the findings if equal |

A section that holds nothing but de-identification marks is empty. The same functions serve corpora that come with
their sections, such as CheXpert Plus: `compose_report({"findings": row["section_findings"], ...}, choice)`.
"""

import re
from collections.abc import Mapping

from processing.reports.report_cleaning import clean_text
from processing.reports.report_sections import SECTIONS, split_sections


REPORT_CHOICES = (
    "findings",
    "findings else impression",
    "findings+impression",
    "impression",
    "impression else findings",
    "longest",
)


def choose_text(sections: Mapping[str, str | None], choice: str) -> str:
    """
    Choose the text of a report, as it stands in its sections.

    Args:
        sections (mapping of `str` to `str` or `None`): at least `findings` and `impression`, or one of them.
        choice (`str`): one of `REPORT_CHOICES`.

    Returns:
        `str`: the text before cleaning; two sections are joined by a blank line.

    Raises:
        `ValueError`: an unknown choice.
    """
    if choice not in REPORT_CHOICES:
        raise ValueError(f"`choice` must be one of {list(REPORT_CHOICES)}, got '{choice}'.")
    findings, impression = (sections.get(name) or "" for name in ("findings", "impression"))
    if choice == "findings+impression":
        return "\n\n".join(dict.fromkeys(text for text in (findings, impression) if text.strip()))
    if " else " in choice:
        first, second = (findings, impression) if choice.startswith("findings") else (impression, findings)
        return first if clean_text(first) or not clean_text(second) else second
    if choice == "longest":
        return max(findings, impression, key=lambda text: len(clean_text(text).split()))
    return findings if choice == "findings" else impression


def compose_report(sections: Mapping[str, str | None], choice: str) -> str:
    """
    Make the text that trains: the chosen sections, cleaned.

    Args:
        sections (mapping of `str` to `str` or `None`): from `split_sections`, an Open-i file or a table.
        choice (`str`): one of `REPORT_CHOICES`.

    Returns:
        `str`: one line of plain sentences, or `""`.

    Raises:
        `ValueError`: an unknown choice.
    """
    return clean_text(choose_text(sections, choice))


def reason_to_exclude(report: str | None) -> str | None:
    """
    Say why a report cannot train.

    Args:
        report (`str`, *optional*): a text of `choose_text` or `compose_report`. Only the former, which is not cleaned,
            can tell a report of de-identification marks from an empty one.

    Returns:
        `str`, *optional*: "no report", "empty report", "report of de-identification marks only", "report of one word",
        or `None` for a report to keep.
    """
    if report is None:
        return "no report"
    words = re.findall(r"[^\W_]+(?:[-'.][^\W_]+)*", clean_text(report))
    if not words:
        return "report of de-identification marks only" if re.search(r"[\w*]", report) else "empty report"
    return "report of one word" if len(words) == 1 else None


__all__ = [
    "REPORT_CHOICES",
    "SECTIONS",
    "choose_text",
    "clean_text",
    "compose_report",
    "reason_to_exclude",
    "split_sections",
]
