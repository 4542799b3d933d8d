"""Where a free-text radiology report is cut into its sections.

The headings are those of MIMIC-CXR and its like, in any case, with or without a colon, on their own line or within
one. A heading is told from the same word in a sentence by what stands before it; organs ("LUNGS:") head no section of
their own, so a structured finding stays whole. Rules beyond the headings:

- Of several reads, the final report counts. A wet or preliminary read, newest first, and then an addendum are read
  only where the final report has neither findings nor impression.
- "FINDINGS AND IMPRESSION" is the impression, as in the section files of MIMIC-CXR. The name of the views as a heading
  ("PA AND LATERAL VIEWS OF THE CHEST:") opens the findings if nothing else does and no impression is open.
- Without a heading for the findings, they are the paragraphs after the first of the last section before them; in a
  report with no heading at all, every paragraph after the title. Beside an impression, only paragraphs in which a
  sentence ends.
- Signatures, dictation footers and notifications end a section and belong to none.
"""

import re

from processing.reports.report_headings import VIEW_WORD, find_headings


SECTIONS = (
    "examination",
    "indication",
    "technique",
    "comparison",
    "findings",
    "impression",
    "recommendation",
    "addendum",
)

_NUMBER = r"[ \t]+(?:(?:VERSION|Version)[ \t]+)?#?\d+"
_READ = re.compile(
    rf"^[ \t*]*(?P<kind>(?:FINAL REPORT|WET READ|WETREAD|PRELIMINARY RE(?:PORT|AD)|ADDENDUM)(?:{_NUMBER})?\b|"
    # An ordinary sentence may begin with these.
    rf"(?:Final Report|Wet Read|Preliminary Re(?:port|ad)|Addendum)(?:{_NUMBER}\b|(?=[ \t*]*(?:[:;-]|\.?[ \t]*$)))"
    r")[ \t*]*[:.]?",
    re.MULTILINE,
)
_RULE = re.compile(r"^[ \t]*[_=-]{10,}[ \t]*$", re.MULTILINE)
_BOLD = re.compile(r"(?<!\[)\*\*(?!\])")  # but [**...**] is a de-identification mark
_STAMP = re.compile(r"\A(?:[\s_:\d/,.#-]|\b[ap]\.?m\b\.?)*\n", re.IGNORECASE)


def split_sections(text: str) -> dict[str, str]:
    """
    Split a free-text radiology report into its sections.

    Args:
        text (`str`): the report, with its line breaks.

    Returns:
        `dict[str, str]`: every name of `SECTIONS` with its text as it stands in the report, stripped, or `""`; a
        section that comes twice is joined in order, by a blank line.
    """
    reads = _split_reads(_normalize(text))
    sections = _read_sections("\n\n".join(body for kind, body in reads if kind == "final"))
    addenda = [body for kind, body in reads if kind == "addendum"]
    if not _has_body(sections):
        drafts = [_STAMP.sub("", body) for kind, body in reads if kind == "draft"]
        found = next((draft for draft in map(_read_sections, drafts) if _has_body(draft)), None)
        if found is None and any(find_headings(body) for body in addenda):
            found, addenda = _read_addenda(addenda)
        sections = {name: sections[name] or (found or sections)[name] for name in SECTIONS}
    return {**sections, "addendum": "\n\n".join(body.strip() for body in addenda).strip()}


def _normalize(text: str) -> str:
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\xa0", " ").replace("\t", " ")
    return _RULE.sub("", _BOLD.sub("", text))


def _split_reads(text: str) -> list[tuple[str, str]]:
    """The final report, drafts and addenda in the order of the text; what precedes the first of them is final."""
    marks = list(_READ.finditer(text))
    starts = [0, *(mark.end() for mark in marks)]
    ends = [*(mark.start() for mark in marks), len(text)]
    kinds = ["final", *(_kind_of_read(mark["kind"]) for mark in marks)]
    return [(kind, text[start:end]) for kind, start, end in zip(kinds, starts, ends, strict=True)]


def _kind_of_read(mark: str) -> str:
    return {"final": "final", "addendum": "addendum"}.get(mark.split()[0].lower(), "draft")


def _read_addenda(addenda: list[str]) -> tuple[dict[str, str], list[str]]:
    """An addendum that goes on as a whole report: its sections, and what stands before its first heading."""
    text = "\n\n".join(addenda)
    start = find_headings(text)[0][0]
    return _read_sections(text[start:]), [text[:start]]


def _has_body(sections: dict[str, str]) -> bool:
    return bool(sections["findings"] or sections["impression"])


def _read_sections(text: str) -> dict[str, str]:
    headings = find_headings(text)
    ends = [*(start for start, _, _ in headings), len(text)][1:]
    spans = [(section, text[end:stop].strip()) for (_, end, section), stop in zip(headings, ends, strict=True)]
    title, body = _split_title(text[: headings[0][0]] if headings else text)
    spans = [("examination", title), *spans]
    if not any(section == "findings" and content for section, content in spans):
        spans = _find_unheaded_findings(spans, body)
    return {name: "\n\n".join(text for section, text in spans if section == name and text) for name in SECTIONS}


def _split_title(text: str) -> tuple[str, str]:
    """The lines that name the examination, and the text after them."""
    lines = text.strip("\n").split("\n")
    count = 0
    while count < len(lines) and (not lines[count].strip() or _is_title(lines, count)):
        count += 1
    return "\n".join(lines[:count]).strip(), "\n".join(lines[count:]).strip()


def _is_title(lines: list[str], index: int) -> bool:
    line = lines[index].strip()
    if not VIEW_WORD.search(line):
        return False
    ends_paragraph = index + 1 == len(lines) or not lines[index + 1].strip()
    return line.isupper() or (ends_paragraph and not line.endswith((".", "!", "?")))


def _find_unheaded_findings(spans: list[tuple[str, str]], body: str) -> list[tuple[str, str]]:
    has_impression = any(section == "impression" and content for section, content in spans)
    contexts = ("examination", "indication", "technique", "comparison")
    last = max(index for index, (section, _) in enumerate(spans) if section in contexts)
    first, *rest = _paragraphs(spans[last][1]) or [""]
    kept = [paragraph for paragraph in rest if not _is_body(paragraph, has_impression)]
    found = [paragraph for paragraph in rest if _is_body(paragraph, has_impression)]
    found = found or [paragraph for paragraph in _paragraphs(body) if _is_body(paragraph, has_impression)]
    spans[last] = (spans[last][0], "\n\n".join([first, *kept]))
    if not found and len(spans) == 1 and not spans[0][1].isupper():
        return [("findings", spans[0][1])]
    return [*spans, ("findings", "\n\n".join(found))]


def _paragraphs(text: str) -> list[str]:
    return [paragraph.strip() for paragraph in re.split(r"\n[ \t]*\n", text) if paragraph.strip()]


def _is_body(paragraph: str, must_be_sentence: bool) -> bool:
    has_words = re.search(r"[^\W\d_]{2,}", paragraph) is not None
    return has_words and (not must_be_sentence or re.search(r"[^\W\d_]{2,}[.!?](?:\s|\Z)", paragraph) is not None)


__all__ = ["SECTIONS", "split_sections"]
