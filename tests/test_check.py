import json
import re
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from processing.check import main
from processing.engine.images import encode_image
from processing.records.record_checks import check_records
from processing.records.record_scan import scan_records
from processing.records.study_features import STUDY_FEATURES


IMAGES = [encode_image(np.random.default_rng(seed).integers(0, 256, (40, 50), dtype=np.uint8)) for seed in range(9)]


def make_record(number, **changes):
    record = dict.fromkeys(STUDY_FEATURES, None)
    record |= {"study_id": f"s{number}", "patient_id": f"p{number}", "report": f"Report {number}.", "labels": ["A"]}
    return record | {"current_frontal": IMAGES[number], "source": "S", "license": "L"} | changes


def write(folder, **splits):
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for split, records in splits.items():
        table = pa.Table.from_pylist(records, schema=STUDY_FEATURES.arrow_schema)
        pq.write_table(table, folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


def check(folder, **splits):
    """Counts of the problems that were found, by name, and the description."""
    found = check_records(scan_records(write(folder, **splits), 1))
    problems = found["leakage"] | found["errors"] | found["warnings"]
    return {name: problem["count"] for name, problem in problems.items() if problem["count"]}, found


def prior(number, of=0, **changes):
    days = {"prior_study_id": f"s{of}", "days_since_prior": 1.0, "prior_frontal": IMAGES[of], "patient_id": "p0"}
    return make_record(number, **days | changes)


def test_records_without_a_fault_have_no_finding(tmp_path):
    assert check(tmp_path, train=[make_record(0), prior(1)], test=[make_record(2)])[0] == {}


def test_patient_in_two_splits_is_leakage_and_exit_status_1(tmp_path, capsys):
    write(tmp_path, train=[make_record(0)], test=[make_record(1, patient_id="p0")])
    with pytest.raises(SystemExit) as error:
        main([str(tmp_path), "--num-proc", "1"])
    assert error.value.code == 1
    assert "patients in two splits: 1  (s0 (train), s1 (test))" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"days_since_prior": 0.0}, "priors in the wrong order"),
        ({"days_since_prior": -2.0}, "priors in the wrong order"),
        ({"study_datetime": datetime(2020, 1, 1)}, "priors in the wrong order"),
        ({"patient_id": "p1"}, "priors of another patient"),
        ({"prior_frontal": None}, "priors that lack their id or their images"),
        ({"prior_study_id": None}, "priors that lack their id or their images"),
        ({"report": " "}, "empty reports"),
        ({"current_frontal": None}, "studies without a current image"),
        ({"current_frontal": {"bytes": b"broken", "path": None}}, "images that cannot be read"),
        ({"study_id": "s0", "prior_study_id": "gone"}, "study ids that come twice"),
        ({"current_lateral": IMAGES[0]}, "images that come twice"),
        ({"report": "REPORT  0."}, "reports that come twice"),
    ],
)
def test_every_fault_is_found_once_and_by_its_name(tmp_path, changes, problem):
    first = make_record(0, study_datetime=datetime(2020, 1, 2))
    assert check(tmp_path, train=[first, prior(1, **changes)])[0] == {problem: 1}


def test_two_studies_that_are_each_others_prior_are_in_the_wrong_order(tmp_path):
    pair = [prior(0, of=1, days_since_prior=None), prior(1, of=0, days_since_prior=None)]
    assert check(tmp_path, train=pair)[0] == {"priors in the wrong order": 2}


def test_same_image_and_report_in_two_splits_are_warnings(tmp_path):
    copy = make_record(1, current_frontal=IMAGES[0], report="Report 0.")
    problems, found = check(tmp_path, train=[make_record(0)], test=[copy])
    assert problems == {
        f"{what} {why}": 1 for what in ("images", "reports") for why in ("that come twice", "in two splits")
    }
    assert found["warnings"]["images in two splits"]["examples"] == ["s0 (train), s1 (test)"]


def test_views_reports_and_labels_are_described(tmp_path):
    train = [make_record(0, labels=["A", "B", "B"], report="one two three"), prior(1), make_record(2), make_record(3)]
    _, found = check(tmp_path, train=train, validation=[make_record(4, labels=["B"])])
    assert found["slots"]["train"] == {
        "current_frontal": 1.0,
        "current_lateral": 0.0,
        "prior_frontal": 0.25,
        "prior_lateral": 0.0,
    }
    assert found["report_words"]["shortest"] == 2 and found["report_words"]["longest"] == 3
    assert found["labels"] == {"A": {"train": 4, "validation": 0}, "B": {"train": 1, "validation": 1}}
    assert found["patients"] == {"train": 3, "validation": 1} and found["sources"] == {"S": 5}


def test_page_is_self_contained_and_shows_the_studies_beside_their_reports(tmp_path, capsys):
    broken = make_record(2, current_lateral={"bytes": b"broken", "path": None}, report="<script>alert()</script>")
    write(tmp_path, train=[make_record(0), prior(1), broken])
    (tmp_path / "summary.json").write_text(json.dumps({"corpus": "Mine", "excluded": {"row: late": 7}}))
    main([str(tmp_path), "--num-proc", "1"])
    assert "images that cannot be read: 1  (s2: current_lateral)" in capsys.readouterr().out
    page = (tmp_path / "records_report.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page) and "<script" not in page
    assert page.count("data:image/jpeg;base64,") == 4 and page.count("<svg") == 4
    assert page.count("cannot be read</div>") == 1 and page.count("not taken") == 7
    assert all(text in page for text in ("Report 1.", "prior s0", "Mine", "row: late"))


def test_choice_of_studies_follows_the_seed_and_the_number(tmp_path, capsys):
    write(tmp_path, train=[make_record(number) for number in range(9)])
    pages = []
    for seed in (0, 0, 1):
        main([str(tmp_path), "--num-proc", "1", "--num-studies", "4", "--seed", str(seed)])
        pages.append(re.findall(r"<h3>(s\d)", (tmp_path / "records_report.html").read_text()))
    assert pages[0] == pages[1] != pages[2] and len(set(pages[0])) == 4


def test_scan_by_workers_finds_the_same(tmp_path):
    table = pa.Table.from_pylist([make_record(n) for n in range(9)] * 4, schema=STUDY_FEATURES.arrow_schema)
    write(tmp_path, train=[])
    pq.write_table(table, tmp_path / "data" / "train-00000-of-00001.parquet", row_group_size=2)
    assert scan_records(tmp_path, 2) == scan_records(tmp_path, 1)


def test_folder_without_records_ends_the_command_with_a_clear_error(tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        main([str(tmp_path)])
    assert error.value.code == 2 and "folder of study records" in capsys.readouterr().err
