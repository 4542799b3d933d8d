"""The XML report files of Open-i (Indiana University chest X-ray collection).

Read with the standard library: the safe wrapper around it that is most used has had no release since 2021. Its two
dangers are shut out before the parser sees a byte: a file must be UTF-8, so that no other encoding hides anything, and
it must have no document type, without which XML can neither define entities (expansion bombs) nor name other files.
"""

import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from html import unescape
from pathlib import Path

from processing.reports.report_sections import SECTIONS


MAX_BYTES = 1_000_000  # far more than any report has


@dataclass(frozen=True)
class OpeniReport:
    """
    One report file.

    Args:
        study_id (`str`): such as "CXR1".
        sections (`dict[str, str]`): every name of `SECTIONS` with its text as it stands in the file, or `""`.
        image_ids (`tuple[str, ...]`): such as "CXR1_1_IM-0001-3001", the names of the images; may be empty.
        major_labels (`tuple[str, ...]`): MeSH and RadLex codes by hand, such as "Cardiomegaly/mild" or "normal".
        automatic_labels (`tuple[str, ...]`): MeSH terms found by the collection's indexer.
        license (`str`): as in the file, "byncnd".
        license_url (`str`): where its text is.
        source (`str`): title of the collection and its publisher.
    """

    study_id: str
    sections: dict[str, str]
    image_ids: tuple[str, ...]
    major_labels: tuple[str, ...]
    automatic_labels: tuple[str, ...]
    license: str
    license_url: str
    source: str


def read_openi_xml(file: str | Path | bytes) -> OpeniReport:
    """
    Read one report.

    Args:
        file (`str`, `Path` or `bytes`): path of the XML file, or its content.

    Raises:
        `FileNotFoundError`: no such file.
        `ValueError`: content that is no Open-i report, is not UTF-8, has a document type, or is larger than 1 MB.
    """
    root = _parse(file if isinstance(file, bytes) else Path(file).read_bytes(), _name(file))
    study = root.find("uId")
    if root.tag != "eCitation" or study is None or not study.get("id"):
        raise ValueError(
            f"`file` must be an Open-i report (<eCitation> with a <uId>), got {_name(file)}: <{root.tag}>."
        )
    return OpeniReport(
        study_id=study.get("id"),
        sections=_read_sections(root),
        image_ids=tuple(image.get("id", "") for image in root.iter("parentImage")),
        major_labels=_texts(root, "MeSH/major"),
        automatic_labels=_texts(root, "MeSH/automatic"),
        license=_first(root, "ccLicense"),
        license_url=_first(root, "licenseURL"),
        source=", ".join(filter(None, (_first(root, "title"), _first(root, "publisher")))),
    )


def _name(file: str | Path | bytes) -> str:
    return f"{len(file)} bytes" if isinstance(file, bytes) else str(file)


def _parse(content: bytes, name: str) -> ElementTree.Element:
    if len(content) > MAX_BYTES:
        raise ValueError(f"`file` must have at most {MAX_BYTES} bytes, got {name} with {len(content)}.")
    try:
        text = content.decode("utf-8-sig")
        if "<!DOCTYPE" in text:
            raise ValueError("it has a document type")
        return ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise ValueError(f"`file` must be plain XML in UTF-8, got {name}: {error}.") from error


def _read_sections(root: ElementTree.Element) -> dict[str, str]:
    """A label that comes twice is joined by a blank line; other labels than ours are left out."""
    sections: dict[str, list[str]] = {name: [] for name in SECTIONS}
    for element in root.iter("AbstractText"):
        text = unescape("".join(element.itertext())).strip()  # a few are escaped twice
        if text:
            sections.get(element.get("Label", "").lower(), []).append(text)
    return {name: "\n\n".join(texts) for name, texts in sections.items()}


def _texts(root: ElementTree.Element, path: str) -> tuple[str, ...]:
    texts = ("".join(element.itertext()).strip() for element in root.findall(path))
    return tuple(text for text in texts if text)


def _first(root: ElementTree.Element, path: str) -> str:
    return next(iter(_texts(root, path)), "")


__all__ = ["OpeniReport", "read_openi_xml"]
