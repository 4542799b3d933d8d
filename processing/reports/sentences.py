"""Where a sentence of a report ends."""

import re


# A full stop after one of these ends no sentence.
ABBREVIATIONS = frozenset(
    "approx ca cf dr drs e.g ed eg fig i.e ie incl jr mr mrs ms prof resp sr st v.s vs w.r.t".split()
)
# A full stop after one of these ends a sentence only where the next word does not go on with it.
_SHORTENED = frozenset(
    "a.m p.m am pm cm mm ml cc sec min hr hrs wk wks yr yrs etc ext int lat inf sup max m.d d.o".split()
)
_BEFORE_NUMBER = frozenset("no nos nr vol p pp ser im img".split())

_PARAGRAPH = re.compile(r"\n\s*\n")
# White space after a mark that closes a sentence; Chinese, Japanese and Hindi marks need no space.
_BOUNDARY = re.compile(r"(?<=[.!?…])\s+|(?<=[.!?…][\"')\]])\s+|(?<=[。！？।])\s*")
_LIST_NUMBER = re.compile(r"[(#]?(?:\d{1,2}|[A-Za-z])[.)]+")
_INITIAL = re.compile(r"[A-Z]\.(?:-?[A-Z]\.)*")


def split_sentences(report: str) -> list[str]:
    """
    Split a report at blank lines and the ends of its sentences.

    Numbers, titles, abbreviations, initials and list numbers stay whole; an ellipsis, "cm." and "p.m." end a sentence
    only before a capital or a digit.

    Args:
        report (`str`): free text.

    Returns:
        `list[str]`: the sentences in order, white space made single, none of them empty.
    """
    return [sentence for paragraph in _PARAGRAPH.split(report) for sentence in _split_paragraph(paragraph)]


def _split_paragraph(paragraph: str) -> list[str]:
    pieces = [" ".join(piece.split()) for piece in _BOUNDARY.split(paragraph)]
    pieces = [piece for piece in pieces if piece]
    sentences, pending = [], ""
    for index, piece in enumerate(pieces):
        pending = f"{pending} {piece}".lstrip()
        if index + 1 == len(pieces) or not _goes_on(pending, pieces[index + 1]):
            sentences.append(pending)
            pending = ""
    return sentences


def _goes_on(text: str, following: str) -> bool:
    """Whether the mark at the end of `text` closes no sentence before `following`."""
    *before, last = text.split()
    last = last.lstrip("(\"'")
    if last.endswith(("...", "…")):
        return following[0].islower()
    if not before and _LIST_NUMBER.fullmatch(last):
        return True
    word = last[:-1].lower() if last.endswith(".") else ""
    if word in ABBREVIATIONS:
        return True
    if word in _BEFORE_NUMBER:
        return following[0].isdigit() and (word != "no" or len(before) == 0 or last[0] == "N")
    if word in _SHORTENED:
        return following[0].islower()
    return _is_initial_of_name(before, last, following)


def _is_initial_of_name(before: list[str], last: str, following: str) -> bool:
    """An initial stands before or within a name: "J. Smith", "Dr. A. B. Jones"; "vitamin K." ends a sentence."""
    if not _INITIAL.fullmatch(last) or not following[0].isupper():
        return False
    previous = before[-1] if before else ""
    return not previous or previous.rstrip(".").lower() in ABBREVIATIONS or _INITIAL.fullmatch(previous) is not None


__all__ = ["ABBREVIATIONS", "split_sentences"]
