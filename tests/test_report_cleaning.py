import pytest

from processing.reports.report_cleaning import clean_text


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("The lungs\n are   clear.\n", "The lungs are clear."),
        ("Small effusion\n\nNormal heart", "Small effusion. Normal heart"),
        ("Unchanged since ___.", "Unchanged."),
        (
            "In comparison with the study of ___, there is little change.",
            "In comparison with the study, there is little change.",
        ),
        ("Compared to ___ the edema is worse.", "the edema is worse."),
        ("AP chest compared to ___ through ___:\n\nModerate effusion.", "AP chest: Moderate effusion."),
        ("___-year-old with cough. ___F, [**Known lastname 12**] was told.", "year-old with cough. F, was told."),
        ("Discussed with Dr. ___ by Dr. ___ on ___ at ___.", "Discussed."),
        ("Told by phone to Drs. ___ and ___ at 4:05 pm.", "Told by phone at 4:05 pm."),
        ("Normal chest x-XXXX. The XXXX are normal.", "Normal chest x-ray. The are normal."),
        ("Catheter tip in ___ . No change , stable..", "Catheter tip. No change, stable."),
        (
            "Clear lungs (compared to ___). Film (___) of XX/XX/XXXX; 02/10/XXXX.",
            "Clear lungs. Film.",
        ),
        ("Dual-XXXX pacer, XXXX, XXXX. .", "Dual pacer."),
        ("Told at ___ p.m. on ___. Told at ___ p.m. The end.", "Told. Told. The end."),
        ("Tip at XXXXPM, the ___ lobe.", "Tip, the lobe."),
    ],
)
def test_marks_go_with_what_they_leave_alone(text, cleaned):
    assert clean_text(text) == cleaned


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("1. Small effusion.\n2. No edema.", "Small effusion. No edema."),
        ("1) Small effusion\n2) No edema", "Small effusion. No edema"),
        ("(1) Small effusion. (2) No edema.", "Small effusion. No edema."),
        ("1. Small effusion. 2. No edema. 3.Old fracture.", "Small effusion. No edema. Old fracture."),
        ("Stable:\n- small effusion\n- edema", "Stable: small effusion. edema"),
        ("• Edema\n* Effusion", "Edema. Effusion"),
        ("1. Nodule of\n 5 mm.\n\n2. Fracture of rib\n 7. No edema.", "Nodule of 5 mm. Fracture of rib 7. No edema."),
        ("1. A.\n2. B.\n1. C.", "A. B. C."),
    ],
)
def test_list_numbers_and_bullets_go_and_items_end_as_sentences(text, cleaned):
    assert clean_text(text) == cleaned


@pytest.mark.parametrize(
    "text",
    [
        "A nodule of 1.5 cm and one of .5 cm.",
        "Nodules of 5-6 mm, 2 x 3 cm; T4. Fracture of T12-L1.",
        "Seen by Dr. Smith, e.g., at 5 p.m., on 02/10/2015.",
        "Image No. 2 of 3. Fracture in 2004. Stable.",
        "Is there edema? Perhaps... if any (small).",
        "Non-specific, left-sided, and/or x-ray; post-XRT.",
        "T XX. pattern, MRI C-XX is kept.",
        "-5 mm shift, 50% loss: mild.",
        "肺部清晰。",
    ],
)
def test_numbers_names_and_abbreviations_stay(text):
    assert clean_text(text) == text


@pytest.mark.parametrize(
    "text", ["", " \n", "___", "___ ___.\n", "XXXX, XXXX. .", "[**2101-1-1**]", "1. ___", "- ;.", "( ___ )"]
)
def test_nothing_stays_of_a_text_without_words(text):
    assert clean_text(text) == ""
