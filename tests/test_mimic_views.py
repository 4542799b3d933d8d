import pytest

from processing.corpora.mimic_views import read_view


@pytest.mark.parametrize(
    ("position", "code", "description", "view"),
    [
        ("AP", "postero-anterior", "CHEST (PA AND LAT)", "AP"),
        ("SWIMMERS", "lateral", "", "other"),
        ("", "postero-anterior", "", "PA"),
        ("", "antero-posterior", "CHEST (PA AND LAT)", "AP"),
        ("", "lateral", "", "LATERAL"),
        ("", "left lateral", "", "LL"),
        ("", "left anterior oblique", "CHEST (PORTABLE AP)", "other"),
        ("", "Recumbent", "CHEST (PORTABLE AP)", "AP"),
        ("", "", "CHEST (PRE-OP AP ONLY)", "AP"),
        ("", "", "CHEST (PA AND LAT)", ""),
        ("", "", "CHEST (SINGLE VIEW)", ""),
        ("", "", "CHEST (LAT DECUB ONLY)", ""),
        ("", "", "TRAUMA #2 (AP CXR AND PELVIS PORT)", ""),
        ("", "", "AP/PA SINGLE VIEW EXPIRATORY CHEST", ""),
        ("", "", "", ""),
    ],
)
def test_gap_in_the_view_is_filled_where_another_column_decides(position, code, description, view):
    assert read_view(position, code, description)[0] == view
