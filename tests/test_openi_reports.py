import os
import tarfile
import textwrap
from collections import Counter
from pathlib import Path

import pytest

from processing.corpora.openi_reports import OpeniReport, read_openi_xml
from processing.reports.report_sections import SECTIONS, split_sections
from processing.reports.training_text import choose_text, clean_text, compose_report, reason_to_exclude


ARCHIVE = Path(
    os.environ.get("ALTA_OPENI_REPORTS")
    or Path(__file__).parents[2] / "shared" / "data" / "openi" / "NLMCXR_reports.tgz"
)
REPORT = """<?xml version="1.0" encoding="utf-8"?>
<eCitation><uId id="CXR9"/><licenseURL>http://creativecommons.org/licenses/by-nc-nd/4.0/</licenseURL>
<ccLicense>byncnd</ccLicense><publisher>A university</publisher><title>A collection</title>
<Abstract><AbstractText Label="COMPARISON"/><AbstractText Label="INDICATION">Cough &amp; fever</AbstractText>
<AbstractText Label="FINDINGS"> Clear <b>lungs</b>. </AbstractText><AbstractText Label="NOTE">x</AbstractText>
<AbstractText Label="IMPRESSION">Normal.</AbstractText><AbstractText Label="IMPRESSION">End.</AbstractText></Abstract>
<MeSH><major>normal</major><major>Aorta/tortuous</major><automatic>Cough</automatic></MeSH>
<parentImage id="CXR9_IM-1-1001"/><parentImage id="CXR9_IM-1-2001"/></eCitation>"""


@pytest.fixture(scope="module")
def reports():
    """Every report of the collection, which its license keeps out of this repository."""
    if not ARCHIVE.is_file():
        pytest.skip(f"the Open-i reports are not at {ARCHIVE}; set ALTA_OPENI_REPORTS to NLMCXR_reports.tgz")
    with tarfile.open(ARCHIVE) as archive:
        return [read_openi_xml(archive.extractfile(member).read()) for member in archive if member.isfile()]


def normalize(text):
    return " ".join(text.split())


def test_a_report_file_gives_sections_images_labels_and_license(tmp_path):
    path = tmp_path / "9.xml"
    path.write_text(REPORT, encoding="utf-8")
    expected = OpeniReport(
        study_id="CXR9",
        sections=dict.fromkeys(SECTIONS, "")
        | {"indication": "Cough & fever", "findings": "Clear lungs.", "impression": "Normal.\n\nEnd."},
        image_ids=("CXR9_IM-1-1001", "CXR9_IM-1-2001"),
        major_labels=("normal", "Aorta/tortuous"),
        automatic_labels=("Cough",),
        license="byncnd",
        license_url="http://creativecommons.org/licenses/by-nc-nd/4.0/",
        source="A collection, A university",
    )
    assert read_openi_xml(path) == read_openi_xml(str(path)) == read_openi_xml(REPORT.encode()) == expected


def test_an_empty_report_has_no_sections_and_no_images():
    report = read_openi_xml(b'<eCitation><uId id="CXR1"/></eCitation>')
    assert report.sections == dict.fromkeys(SECTIONS, "") and report.image_ids == report.major_labels == ()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"must be plain XML in UTF-8, got 0 bytes: no element found"),
        (REPORT.encode()[:-20], r"must be plain XML in UTF-8, got \d+ bytes: "),
        (b"\xff\xfe<\x00", r"must be plain XML in UTF-8, got 4 bytes: 'utf-8' codec"),
        (b"<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>", r"got 40 bytes: it has a document type"),
        (b"<html/>", r"must be an Open-i report \(<eCitation> with a <uId>\), got 7 bytes: <html>"),
        (b"<eCitation/>", r"must be an Open-i report"),
        (b" " * 1_000_001, r"must have at most 1000000 bytes, got 1000001 bytes"),
    ],
)
def test_what_is_no_report_is_an_error(content, message):
    with pytest.raises(ValueError, match=message):
        read_openi_xml(content)


def test_a_file_that_is_gone_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="9.xml"):
        read_openi_xml(tmp_path / "9.xml")


def test_every_report_of_the_collection_is_read(reports):
    assert len(reports) == len({report.study_id for report in reports}) == 3955
    assert sum(len(report.image_ids) for report in reports) == 7470
    assert sum(len(report.major_labels) for report in reports) == 8298
    assert sum(len(report.automatic_labels) for report in reports) == 7047
    assert Counter(bool(report.sections["findings"]) for report in reports)[False] == 530
    assert Counter(bool(report.sections["impression"]) for report in reports)[False] == 34
    assert {report.license for report in reports} == {"byncnd"}


def test_every_report_with_findings_or_impression_trains_and_cleaning_is_stable(reports):
    texts = [choose_text(report.sections, "findings+impression") for report in reports]
    assert Counter(map(reason_to_exclude, texts)) == {None: 3927, "empty report": 28}
    composed = [compose_report(report.sections, "findings+impression") for report in reports]
    assert [clean_text(text) for text in composed] == composed
    assert not any("XXXX" in text or "\n" in text for text in composed)


def wrap(text):
    return textwrap.fill(text, 78, break_on_hyphens=False)


def render_headings(sections):
    """Headings in capitals, wrapped lines, as in MIMIC-CXR."""
    blocks = [wrap(f"{name.upper()}:  {text}") for name, text in sections.items() if text]
    return " " * 33 + "FINAL REPORT\n" + "\n \n".join(blocks)


def render_lines(sections):
    """Headings on lines of their own, without a colon."""
    return "\n\n".join(f"{name.upper()}\n{wrap(text)}" for name, text in sections.items() if text)


def render_one_line(sections):
    """Mixed case in one line."""
    return "  ".join(f"{name.capitalize()}: {text}" for name, text in sections.items() if text)


def render_without_findings_heading(sections):
    """The findings are a paragraph of their own after the other headings."""
    return render_headings(sections).replace("FINDINGS:  ", "")


@pytest.mark.parametrize("render", [render_headings, render_lines, render_one_line, render_without_findings_heading])
def test_sections_survive_as_free_text(reports, render):
    names = ("indication", "comparison", "findings", "impression")
    found = Counter()
    for report in reports:
        sections = {name: normalize(report.sections[name]) for name in names}
        if not (sections["findings"] or sections["impression"]):
            continue
        again = split_sections(render(sections))
        found["reports"] += 1
        found["equal"] += all(normalize(again[name]) == text for name, text in sections.items())
        found["body"] += bool(again["findings"] or again["impression"])
    assert found["reports"] == 3927
    assert found["body"] >= 0.99 * found["reports"]
    assert found["equal"] >= 0.99 * found["reports"], found
