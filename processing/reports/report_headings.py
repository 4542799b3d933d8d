"""The headings of a radiology report, and what tells them from the same words in a sentence."""

import re
from collections.abc import Iterator


NO_SECTION = ""
_VIEWS = "views"
_LOOK_BACK = 200  # characters that decide whether a word is a heading
_INDENT = " \t*#>"

_NAMES = {
    "examination": "examination, examinations, exam, type of examination, type of exam, exam type, study, procedure",
    "indication": "indication, indications, indicaton, clinical indication, clinical indications, indication/history, "
    "history/indication, history and indication, history, clinical history, clinical history/indication, "
    "patient history, past medical history, medical history, history of present illness, clinical information, "
    "clinical data, clinical details, clinical question, reason for examination, reason for exam, "
    "reason for study, reason for the study, reason for this examination, reason",
    "technique": "technique, techniques, technqiue, technical factors, exam/technique, technique/comparison, "
    "technique and comparison, views",
    "comparison": "comparison, comparisons, comparision, comparison exam, comparison examination, comparison film, "
    "comparison films, comparison study, comparison studies, reference exam, reference examination, compared to, "
    "compared with, prior studies, prior study",
    "findings": "findings, finding, findngs, fidings, findigs, report",
    "impression": "impression, impressions, impresson, impresion, imression, final impression, overall impression, "
    "conclusion, conclusions, concusion, opinion, interpretation, summary, findings and impression, "
    "findings/impression, findings & impression, findings and impressions, impression and findings, "
    "impression/findings, impression and recommendation, impression and recommendations, "
    "impression/recommendation, impression/recommendations",
    "recommendation": "recommendation, recommendations, recommendation(s)",
    NO_SECTION: "notification, notifications, notification(s), communication, critical results, attestation, "
    "radiation dose, dose, end of impression, end of report",
}
_SECTION_OF = {name: section for section, names in _NAMES.items() for name in names.split(", ")}
_LINE_START_ONLY = frozenset("exam study procedure reason report views dose summary communication".split())
# After one of these, "FINDINGS:" and its like belong to the sentence.
_QUALIFIERS = frozenset(
    "a above acute additional and associated clinical family following for in incidental key new no normal of other "
    "physical previous prior significant similar social surgical the their these this those to with".split()
)

_ALL_NAMES = "|".join(
    re.escape(name).replace(r"\ ", r"[ \t]+").replace("/", r"[ \t]*/[ \t]*")
    for name in sorted(_SECTION_OF, key=len, reverse=True)
)
_HEADING = re.compile(
    rf"(?<![\w/-])(?P<name>{_ALL_NAMES})(?!\w)\**[ \t]*(?P<mark>[:;]\**|-{{1,2}}(?=[ \t])|$|(?<=[ \t][ \t])(?=\S))",
    re.IGNORECASE | re.MULTILINE,
)
VIEW_WORD = re.compile(
    r"\b(?:chest|views?|radiographs?|x-?rays?|cxr|films?|portable|pa|ap|lateral|frontal)\b", re.IGNORECASE
)
_VIEW_HEADING = re.compile(
    r"^[ \t]*(?!reason|indication|history|clinical|compar|prior)"
    r"(?P<name>(?:[^:\n.]|\d:\d\d|\b[AaPp]\.[Mm]\.){3,90}):(?=\s)",
    re.IGNORECASE | re.MULTILINE,
)
_FOOTER = re.compile(
    r"^[ \t]*(?:(?:dictated|transcribed|electronically signed|signed|approved|verified|reported)"
    r"(?:[ \t]+and[ \t]+\w+)?[ \t]+by\b[ \t]*:?|(?:signed|approved|dictated):|report approved|"
    r"_{2,}(?:[ \t]+_{2,})*,?[ \t]*M\.?D\.?[ \t]*$|"
    r"(?:I|we)(?:,[^,\n]+,)? (?:have )?(?:personally )?reviewed the (?:images?|films?|study)\b)",
    re.IGNORECASE | re.MULTILINE,
)


def find_headings(text: str) -> list[tuple[int, int, str]]:
    """Start, end and section of every heading in order."""
    found = [(match.start(), match.end(), _name_section(match)) for match in _iter_headings(text)]
    found += [(match.start(), match.start(), NO_SECTION) for match in _FOOTER.finditer(text) if _is_footer(match)]
    taken = [(start, end) for start, end, _ in found]
    for match in _VIEW_HEADING.finditer(text):
        is_free = all(match.end() <= start or end <= match.start() for start, end in taken)
        before = text[max(0, match.start() - _LOOK_BACK) : match.start()]
        is_own = match["name"].isupper() or (match["name"][0].isupper() and _is_closed(before))
        if is_free and is_own and VIEW_WORD.search(match["name"]):
            found.append((match.start(), match.end(), _VIEWS))
    has_findings = any(section == "findings" for _, _, section in found)
    headings: list[tuple[int, int, str]] = []
    for start, end, section in sorted(found):
        if section == _VIEWS:
            if headings and headings[-1][2] in ("findings", "impression", "recommendation", NO_SECTION):
                continue
            is_title = has_findings or not _has_words(text, end, [start for start, _ in taken])
            section = "examination" if is_title else "findings"
        headings.append((start, end, section))
    return headings


def _has_words(text: str, end: int, starts: list[int]) -> bool:
    """Whether more than a date or a time stands before the next heading."""
    stop = min((start for start in starts if start >= end), default=len(text))
    return len(re.findall(r"[A-Za-z]{2,}", text[end:stop])) > 1


def _name_section(match: re.Match) -> str:
    name = re.sub(r"[ \t]*/[ \t]*", "/", " ".join(match["name"].lower().split()))
    return _SECTION_OF[name]


def _iter_headings(text: str) -> Iterator[re.Match]:
    is_lower_style = False
    for match in _HEADING.finditer(text):
        before = text[max(0, match.start() - _LOOK_BACK) : match.start()]
        line = before[before.rfind("\n") + 1 :]
        if line.strip(_INDENT):
            is_heading = _is_heading_within(match, line)
        else:
            is_heading = _is_heading_at_start(match, is_lower_style or _is_closed(before))
        if is_heading:
            is_lower_style = is_lower_style or match["name"].islower()
            yield match


def _is_closed(before: str) -> bool:
    """Whether a line can begin a heading of its own: after nothing, a blank line, or the end of a sentence."""
    before = before.rstrip(_INDENT)
    return not before.strip() or before.rstrip()[-1] in ".!?:_" or re.search(r"\n[ \t]*\n\Z", before) is not None


def _is_heading_at_start(match: re.Match, is_closed: bool) -> bool:
    """Capitals, or one capital and a colon; else only where the line before has come to an end."""
    name, mark = match["name"], match["mark"]
    if mark.startswith((":", ";")):
        return name[0].isupper() or is_closed
    if name.lower() in _LINE_START_ONLY:
        return False
    ends_line = match.string[match.end() : match.end() + 1] in ("", "\n")
    return name.isupper() or (is_closed and name[0].isupper() and bool(mark or ends_line))


def _is_footer(match: re.Match) -> bool:
    """In small letters and without a colon, only where the line before has come to an end: a sentence may go on so."""
    before = match.string[max(0, match.start() - _LOOK_BACK) : match.start()]
    return not match[0].strip()[0].islower() or ":" in match[0] or _is_closed(before)


def _is_heading_within(match: re.Match, line: str) -> bool:
    """After a sentence or two spaces, with a capital; in capitals, after any word that does not qualify it."""
    name = match["name"]
    before = line.rstrip()
    if not match["mark"].startswith((":", ";")) or not name[0].isupper():
        return False
    if re.search(r"(?:^|[.!?:]\s+)[(#]?\d{1,2}[.)]+$", before.lstrip()):
        return False
    if before[-1] in ".!?:;)_" or line.endswith("  "):
        return True
    is_qualified = before.split()[-1].lower() in _QUALIFIERS
    return name.isupper() and not is_qualified and name.lower() not in _LINE_START_ONLY


__all__ = ["NO_SECTION", "VIEW_WORD", "find_headings"]
