import pytest

from processing.reports.sentences import split_sentences


@pytest.mark.parametrize(
    ("report", "sentences"),
    [
        ("No effusion. Heart is normal!  Stable?", ["No effusion.", "Heart is normal!", "Stable?"]),
        ("A nodule of 1.5 cm. Unchanged.", ["A nodule of 1.5 cm.", "Unchanged."]),
        ("A nodule of 1.5 cm. in the apex. End.", ["A nodule of 1.5 cm. in the apex.", "End."]),
        ("Grew from .5 to 0.75 cm, i.e. by half. End.", ["Grew from .5 to 0.75 cm, i.e. by half.", "End."]),
        ("Seen by Dr. Smith. No change.", ["Seen by Dr. Smith.", "No change."]),
        ("Told Dr. A. B. Jones. No change.", ["Told Dr. A. B. Jones.", "No change."]),
        ("J. Smith was told. No change.", ["J. Smith was told.", "No change."]),
        ("Given vitamin K. Lungs clear.", ["Given vitamin K.", "Lungs clear."]),
        ("Fracture of T4. Lungs clear.", ["Fracture of T4.", "Lungs clear."]),
        ("Lines, e.g. PICC, end high. At 5 p.m. normal.", ["Lines, e.g. PICC, end high.", "At 5 p.m. normal."]),
        ("Called at 5 p.m. The lungs are clear.", ["Called at 5 p.m.", "The lungs are clear."]),
        ("Edema vs. pneumonia. No change.", ["Edema vs. pneumonia.", "No change."]),
        ("Edema vs. Pneumonia. No change.", ["Edema vs. Pneumonia.", "No change."]),
        ("Seen on image No. 2 of 3. End.", ["Seen on image No. 2 of 3.", "End."]),
        ("Is there edema? No. There is none.", ["Is there edema?", "No.", "There is none."]),
        ("Small... if any. Perhaps... The end.", ["Small... if any.", "Perhaps...", "The end."]),
        ("Tubes, lines, etc. are unchanged. End.", ["Tubes, lines, etc. are unchanged.", "End."]),
        ("Pacer (dual lead.) Unchanged.", ["Pacer (dual lead.)", "Unchanged."]),
        ("1. Clear lungs. 2. Big heart since 2004. End", ["1. Clear lungs.", "2. Big heart since 2004.", "End"]),
        ("1) Clear lungs. (2) Big heart.", ["1) Clear lungs.", "(2) Big heart."]),
        ("Effusion. 3.", ["Effusion.", "3."]),
        ("Lungs\nare clear\n\nNormal", ["Lungs are clear", "Normal"]),
        ("Called at 5 p.m.\n\nand read", ["Called at 5 p.m.", "and read"]),
        ("右下肺炎。无积液。", ["右下肺炎。", "无积液。"]),
        (" \n ", []),
    ],
)
def test_sentences_end_where_a_reader_ends_them(report, sentences):
    assert split_sentences(report) == sentences


def test_no_word_is_lost_and_a_second_split_changes_nothing():
    report = "1. Dr. No. 5 vs. 1.5 cm... e.g. A. B.\n\n? ! (2) end. x"
    sentences = split_sentences(report)
    assert " ".join(sentences).split() == report.split()
    assert [split_sentences(sentence) for sentence in sentences] == [[sentence] for sentence in sentences]
