"""What is removed from the text of a report before it trains: marks, list numbers, line breaks and their remains."""

import re


# ___ and [**...**] of MIMIC, XXXX of Open-i; one of them stands for the rest.
_ANY_MARK = re.compile(r"\[\*\*.*?\*\*\]|_{2,}|(?<![A-Za-z])(?:XX?/){0,2}X{3,}(?=(?:s|[AaPp][Mm])?\b)", re.DOTALL)
_MARK = "\ue000"
_X_RAY = re.compile(r"\b([Xx])-X{3,}")  # Open-i hides "ray" as if it were a name

_ITEM = re.compile(
    r"(?P<before>\A[ \t]*|\n[ \t]*|(?<=[.!?:;])(?<!\bNo\.)(?<!\bDr\.)(?<!\bvs\.)[ \t]+)"
    r"(?:(?P<bullet>[-*•–·▪])|[(#]?(?P<number>\d{1,2})[.)][.,)]?)(?:[ \t]+|(?=[A-Z]))(?!\n)"
)
_PREPOSITION = (
    "about|above|after|along|and|as|at|before|below|between|by|dated|for|from|in|into|near|of|on|or|over|since|than|"
    "through|to|under|until|via|with|within"
)
_CLAUSE = "a|an|are|but|has|have|is|no|that|the|there|this|was|were|which"
_END = r"(?:[.,;:!?)\]]|\Z)"
_STRANDED = rf"(?=\s*(?:{_END}|(?:{_PREPOSITION}|{_CLAUSE})\b))"
_COMPARED = r"(?:as\s+)?compared\s+(?:to|with)"
_TITLE = "dr|drs|doctor|mr|mrs|ms|prof|professor"
_REPAIRS = [
    (re.compile(pattern, re.IGNORECASE), replacement)
    for pattern, replacement in (
        # Several marks in a row are one; so is a mark with what hangs on it.
        (rf"{_MARK}(?:(?:\s*[,&/:.-]?\s*|\s+(?:and|or|through|to|at|on|from|-)\s+){_MARK})+", _MARK),
        (rf"\b[a-z]-{_MARK}|\b(?:\d{{1,3}}/){{1,2}}{_MARK}|{_MARK}'s\b|{_MARK}(?:st|nd|rd|th|s)\b", _MARK),
        (rf"{_MARK}\s*(?:[ap]\.m\.(?=\s+(?-i:[a-z,{_MARK}]))|[ap]\.?m\b)", _MARK),
        (rf"{_MARK}-(?=\w)|(?<=\w)-{_MARK}", ""),
        # A title, a preposition or an article that a mark leaves with nothing to stand before.
        (rf"\b(?:(?:{_PREPOSITION})\s+)?(?:{_TITLE})\b\.?\s*{_MARK}", ""),
        (rf"\b(?:{_COMPARED}|{_PREPOSITION})\s+(?:(?:the|a|an)\s+)?{_MARK}{_STRANDED}", ""),
        (rf"\b(?:the|a|an)\s+{_MARK}(?=\s*{_END})", ""),
        (_MARK, " "),
        (r"\[<|>\]", " "),
    )
]
_TIDY = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\(\s+", "("),
        (r"(?<=[.!?])\s+[,;:]+", ""),
        (r"\s+(?=[.,;:!?)\]])(?!\.\d)", ""),
        (r"\((?:[\s.,;:/-]|\band\b)*\)|\[[\s.,;:]*\]", ""),
        (r"(?<=\()[,;:]\s*", ""),
        (r"(?<![,;:])[,;:]+(?=\s*[.!?)](?!\d))", ""),
        (r"(?<!\.)\.(?:\s*\.)(?![.\d])(?!\s*\.)", "."),
        (r"([,;:])(?:\s*[,;:])+", r"\1"),
        (r"\s+(?=[.,;:!?)\]])(?!\.\d)", ""),
        (r"\s{2,}", " "),
    )
]


def clean_text(text: str) -> str:
    """
    Turn the text of a section into plain sentences on one line.

    De-identification marks go, with the title or preposition that they leave alone: "on ___." or "by Dr. ___". List
    numbers go where they count from 1, bullets at the start of a line; each item, and each paragraph, gets a full stop
    if it has no end mark. "x-XXXX" of Open-i becomes "x-ray". Cleaning twice changes nothing.

    Args:
        text (`str`): free text with its line breaks.

    Returns:
        `str`: the text, or `""` if no word or number is left.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\xa0", " ")
    text = _ANY_MARK.sub(_MARK, _X_RAY.sub(r"\1-ray", text))
    text = " ".join(_close_paragraphs(_drop_enumeration(text)).split())
    for pattern, replacement in _REPAIRS:
        text = pattern.sub(replacement, text)
    text = _until_stable(" ".join(text.split()))
    return text if re.search(r"\w", text) else ""


def _until_stable(text: str) -> str:
    previous = None
    while text != previous:
        previous = text
        for pattern, replacement in _TIDY:
            text = pattern.sub(replacement, text)
        text = re.sub(r"\A(?:[\s,;:!?)\]/]|\.(?!\d)|-(?!\d))+", "", text).rstrip(" ,;-/")
    return text


def _drop_enumeration(text: str) -> str:
    """Remove bullets, and numbers that count 1, 2, 3; other numbers at the start of a line belong to a sentence."""
    parts, position, last = [], 0, 0
    for match in _ITEM.finditer(text):
        is_bullet = match["bullet"] and ("\n" in match["before"] or match.start() == 0)
        number = int(match["number"] or 0)
        if is_bullet or (number and number in (1, last + 1)):
            parts += [text[position : match.start()], "\n\n"]
            position, last = match.end(), number or last
    return "".join([*parts, text[position:]])


def _close_paragraphs(text: str) -> str:
    paragraphs = [paragraph.strip() for paragraph in re.split(r"\n[ \t]*(?:\n[ \t]*)+", text)]
    paragraphs = [paragraph for paragraph in paragraphs if paragraph]
    closed = [part if part[-1] in ".!?:;,。！？।" else f"{part}." for part in paragraphs[:-1]]
    return "\n".join([*closed, *paragraphs[-1:]])


__all__ = ["clean_text"]
