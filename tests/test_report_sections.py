from pathlib import Path

import pytest

from processing.reports.report_sections import SECTIONS, split_sections


def read_cases():
    """Name, text and expected sections of every report of the table."""
    table = (Path(__file__).parent / "data" / "mimic_style_reports.txt").read_text(encoding="utf-8")
    for block in table.split("\n=== ")[1:]:
        name, _, rest = block.partition("\n")
        text, *expected = rest.split("\n--- ")
        pairs = [part.partition("\n") for part in expected]
        yield name, text, {section.strip(): " ".join(content.split()) for section, _, content in pairs}


CASES = {name: (text, expected) for name, text, expected in read_cases()}


def read(text):
    return {name: " ".join(content.split()) for name, content in split_sections(text).items() if content}


def test_the_table_has_at_least_forty_reports_and_names_known_sections():
    assert len(CASES) >= 40
    assert all(set(expected) <= set(SECTIONS) for _, expected in CASES.values())


@pytest.mark.parametrize("name", CASES)
def test_sections_are_those_that_a_reader_finds_in(name):
    text, expected = CASES[name]
    assert read(text) == expected


@pytest.mark.parametrize("name", CASES)
def test_windows_line_ends_and_tabs_change_nothing_in(name):
    text, expected = CASES[name]
    assert read(text.replace("\n ", "\n\t").replace("\n", "\r\n")) == expected


@pytest.mark.parametrize("text", ["", " \n\n ", "FINAL REPORT", "FINDINGS:", ":::", "FINAL REPORT\n\nIMPRESSION:\n"])
def test_a_report_without_text_has_empty_sections(text):
    assert split_sections(text) == dict.fromkeys(SECTIONS, "")
