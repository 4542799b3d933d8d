import pytest

from processing.reports.training_text import (
    REPORT_CHOICES,
    choose_text,
    compose_report,
    reason_to_exclude,
    split_sections,
)


SECTIONS = {
    "findings": "1. Clear lungs.\n2. Normal heart.",
    "impression": "Normal chest of ___.",
    "comparison": "None.",
}


@pytest.mark.parametrize(
    ("choice", "both", "findings_only", "impression_only"),
    [
        ("findings", "Long findings here.", "Long findings here.", ""),
        ("impression", "Short.", "", "Short."),
        ("findings+impression", "Long findings here. Short.", "Long findings here.", "Short."),
        ("findings else impression", "Long findings here.", "Long findings here.", "Short."),
        ("impression else findings", "Short.", "Long findings here.", "Short."),
        ("longest", "Long findings here.", "Long findings here.", "Short."),
    ],
)
@pytest.mark.parametrize("empty", ["", None, " ___.\n"])
def test_each_choice_takes_its_sections(choice, both, findings_only, impression_only, empty):
    findings, impression = "Long findings here.", "Short."
    assert compose_report({"findings": findings, "impression": impression}, choice) == both
    assert compose_report({"findings": findings, "impression": empty}, choice) == findings_only
    assert compose_report({"findings": empty, "impression": impression}, choice) == impression_only
    assert compose_report({"findings": empty, "impression": empty}, choice) == ""


def test_all_choices_are_tested_here_and_sorted():
    assert list(REPORT_CHOICES) == sorted(REPORT_CHOICES) and len(REPORT_CHOICES) == 6


def test_the_composed_report_is_the_chosen_text_cleaned():
    assert choose_text(SECTIONS, "findings+impression") == "1. Clear lungs.\n2. Normal heart.\n\nNormal chest of ___."
    assert compose_report(SECTIONS, "findings+impression") == "Clear lungs. Normal heart. Normal chest."


def test_sections_that_are_equal_are_taken_once_and_those_without_an_end_mark_stay_apart():
    assert (
        compose_report({"findings": "Clear lungs.", "impression": "Clear lungs."}, "findings+impression")
        == "Clear lungs."
    )
    assert (
        compose_report({"findings": "Clear lungs", "impression": "Normal"}, "findings+impression")
        == "Clear lungs. Normal"
    )


def test_the_longest_counts_words_and_prefers_the_findings():
    assert compose_report({"findings": "One two.", "impression": "Three four."}, "longest") == "One two."
    assert compose_report({"findings": "___ ___ ___ a.", "impression": "Three four."}, "longest") == "Three four."


def test_the_columns_of_a_table_pass_through_the_same_cleaning():
    row = {"section_findings": "\n1. Clear lungs. ", "section_impression": None}
    sections = {name: row[f"section_{name}"] for name in ("findings", "impression")}
    assert compose_report(sections, "findings+impression") == "Clear lungs."


def test_an_unknown_choice_is_an_error_that_names_the_choices():
    with pytest.raises(ValueError, match=r"`choice` must be one of \['findings', .*'longest'\], got 'summary'"):
        compose_report(SECTIONS, "summary")


@pytest.mark.parametrize(
    ("report", "reason"),
    [
        (None, "no report"),
        ("", "empty report"),
        (" \n.", "empty report"),
        ("___ ___.", "report of de-identification marks only"),
        ("XXXX, [**2101**]", "report of de-identification marks only"),
        ("Normal.", "report of one word"),
        ("1. Unremarkable.", "report of one word"),
        ("___ pneumothorax", "report of one word"),
        ("COVID-19.", "report of one word"),
        ("No change.", None),
        ("肺部清晰。无积液。", None),
    ],
)
def test_a_report_that_cannot_train_has_a_reason(report, reason):
    assert reason_to_exclude(report) == reason


def test_free_text_becomes_training_text():
    text = "INDICATION: ___F with fever.\n\n FINDINGS: Clear lungs.\n\n IMPRESSION:\n 1. No edema since ___.\n"
    assert compose_report(split_sections(text), "findings+impression") == "Clear lungs. No edema."
