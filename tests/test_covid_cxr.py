import csv
import json
import runpy
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from processing.covid_cxr import main, prepare_covid_cxr, read_metadata
from processing.records.study_records import SPLIT_NAMES, assign_split, load_study_records


ROOT = Path(__file__).parents[1]
COLUMNS = ["patientid", "offset", "view", "finding", "filename", "folder", "license", "clinical_notes", "url", "date"]
DEFAULTS = {"offset": "0", "view": "PA", "finding": "A", "folder": "images", "license": "CC BY", "clinical_notes": "N"}


@pytest.fixture(autouse=True)
def separate_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def build(root, *rows, columns=COLUMNS):
    """Write a collection; the image of row number i is flat grey of value i."""
    (root / "images").mkdir(parents=True, exist_ok=True)
    with (root / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", restval="")
        writer.writeheader()
        for index, row in enumerate(rows):
            row = DEFAULTS | {"patientid": "1", "filename": f"{index}.png"} | row
            writer.writerow(row)
            Image.fromarray(np.full((32, 32), index, np.uint8)).save(root / "images" / f"{index}.png")
    return root


def run(root, *rows):
    """Records by study id, and the summary, which must add up."""
    summary = prepare_covid_cxr(build(root, *rows), root / "out")
    loaded = [record for split in SPLIT_NAMES for record in load_study_records(root / "out", split)]
    left_out = {
        kind: sum(n for why, n in summary["excluded"].items() if why.startswith(kind)) for kind in ("row", "study")
    }
    assert summary["records"] == len(loaded) == summary["studies"] - left_out["study"]
    assert summary["rows"] == len(rows) and left_out["row"] < len(rows)
    return {record["study_id"]: record for record in loaded}, summary


def grey(image):
    return None if image is None else image.getpixel((0, 0))


def test_rows_of_one_patient_and_offset_are_one_study(tmp_path):
    records, summary = run(tmp_path, {}, {"view": "L"}, {"offset": "3"}, {"patientid": "2"})
    assert set(records) == {"p1_day0", "p1_day3", "p2_day0"} and not summary["excluded"]
    first = records["p1_day0"]
    assert (grey(first["current_frontal"]), grey(first["current_lateral"])) == (0, 1)
    later = records["p1_day3"]
    assert [grey(later[name]) for name in ("current_frontal", "prior_frontal", "prior_lateral")] == [2, 0, 1]
    assert (later["prior_study_id"], later["days_since_prior"]) == ("p1_day0", 3)
    assert (summary["with_prior"], summary["with_lateral"]) == (1, 1)


@pytest.mark.parametrize("offset", ["", "?", "nan", "inf"])
def test_row_without_a_numeric_offset_is_alone_and_never_a_prior(tmp_path, offset):
    records, _ = run(tmp_path, {"offset": offset}, {"offset": offset}, {"offset": "5"})
    assert set(records) == {"p1_0", "p1_1", "p1_day5"}
    assert all(record["prior_study_id"] is None for record in records.values())


def test_rows_without_offset_that_share_a_file_keep_different_ids(tmp_path):
    same = {"offset": "", "filename": "0.png"}
    assert set(run(tmp_path, same, same)[0]) == {"p1_0", "p1_0_2"}


def test_offsets_are_compared_as_numbers(tmp_path):
    records, _ = run(tmp_path, {"offset": "10"}, {"offset": "9"}, {"offset": "-4"}, {"offset": " 9.0 ", "view": "L"})
    assert set(records) == {"p1_day10", "p1_day9", "p1_day-4"}
    assert (records["p1_day10"]["prior_study_id"], records["p1_day10"]["days_since_prior"]) == ("p1_day9", 1)
    assert (records["p1_day9"]["prior_study_id"], records["p1_day9"]["days_since_prior"]) == ("p1_day-4", 13)
    assert grey(records["p1_day9"]["current_lateral"]) == 3


def test_frontal_is_the_first_of_the_best_view_and_lateral_the_first(tmp_path):
    views = ["AP Supine", "AP", "PA", "L", "PA", "L"]
    records, summary = run(tmp_path, *({"view": view, "clinical_notes": f"notes {view}"} for view in views))
    record = records["p1_day0"]
    assert (grey(record["current_frontal"]), grey(record["current_lateral"])) == (2, 3)
    assert record["report"] == "notes PA"
    assert summary["excluded"] == {
        "row: the study has a better or earlier frontal": 3,
        "row: the study has a better or earlier lateral": 1,
    }


def test_other_views_and_studies_without_a_frontal_are_left_out(tmp_path):
    rows = [{}, {"view": "Axial"}, {"offset": "1", "view": ""}, {"offset": "2", "view": "L"}, {"offset": "3"}]
    records, summary = run(tmp_path, *rows)
    assert set(records) == {"p1_day0", "p1_day3"}
    assert records["p1_day3"]["prior_study_id"] == "p1_day0"  # the two studies between have no frontal
    assert summary["excluded"] == {
        "row: another or an unknown view": 2,
        "row: lateral of a study without a frontal": 1,
        "study: no frontal": 2,
    }


def test_study_with_empty_notes_is_no_record_but_can_be_a_prior(tmp_path):
    records, summary = run(tmp_path, {}, {"offset": "1", "clinical_notes": "  "}, {"offset": "2"})
    assert set(records) == {"p1_day0", "p1_day2"}
    assert records["p1_day2"]["prior_study_id"] == "p1_day1" and grey(records["p1_day2"]["prior_frontal"]) == 1
    assert summary["excluded"] == {"study: empty clinical notes": 1}


def test_notes_of_the_lateral_do_not_make_a_report(tmp_path):
    records, _ = run(tmp_path, {"clinical_notes": ""}, {"view": "L"}, {"patientid": "2"})
    assert set(records) == {"p2_day0"}


def test_missing_or_damaged_file_is_counted_and_the_next_best_is_taken(tmp_path):
    build(tmp_path, {})
    (tmp_path / "images" / "damaged.png").write_bytes(b"\x89PNG damaged")
    damaged, missing = {"filename": "damaged.png"}, {"filename": "missing.png"}
    rows = [
        damaged,
        {"view": "AP"},
        {"view": "L"} | missing,
        {"view": "L"},
        {"offset": "1"} | damaged,
        {"offset": "2"},
    ]
    records, summary = run(tmp_path, *rows)
    assert set(records) == {"p1_day0", "p1_day2"}
    assert (grey(records["p1_day0"]["current_frontal"]), grey(records["p1_day0"]["current_lateral"])) == (1, 3)
    assert records["p1_day2"]["prior_study_id"] == "p1_day0"
    assert summary["excluded"] == {
        "row: file cannot be decoded": 2,
        "row: file is missing": 1,
        "study: no frontal that can be read": 1,
    }


def test_row_without_a_patient_is_left_out(tmp_path):
    records, summary = run(tmp_path, {}, {"patientid": " "})
    assert set(records) == {"p1_day0"} and summary["excluded"] == {"row: no patient id": 1}


@pytest.mark.parametrize(
    ("finding", "labels"),
    [("COVID-19, ARDS", ["COVID-19", "ARDS"]), ("todo", []), ("", []), ("todo,, Pneumonia ,", ["Pneumonia"])],
)
def test_labels_are_findings_without_todo(tmp_path, finding, labels):
    assert run(tmp_path, {"finding": finding})[0]["p1_day0"]["labels"] == labels


def test_record_names_its_source_license_and_whole_dates_only(tmp_path):
    url = "https://example.org/case"
    records, _ = run(tmp_path, {"url": url, "date": "January 25, 2020"}, {"offset": "1", "date": "2020"})
    record = records["p1_day0"]
    assert record["source"] == f"COVID-19 Image Data Collection, {url}" and record["license"] == "CC BY"
    assert str(record["study_datetime"]) == "2020-01-25 00:00:00"
    assert records["p1_day1"]["study_datetime"] is None


def test_no_patient_is_in_two_splits(tmp_path):
    rows = [{"patientid": str(patient), "offset": str(day)} for patient in range(30) for day in range(2)]
    prepare_covid_cxr(build(tmp_path, *rows), tmp_path / "out")
    patients = {split: load_study_records(tmp_path / "out", split)["patient_id"][:] for split in SPLIT_NAMES}
    assert sum(map(len, patients.values())) == 60 and all(patients.values())
    assert all(assign_split(patient) == split for split, found in patients.items() for patient in found)


def test_table_with_a_byte_order_mark_and_short_lines_is_read(tmp_path):
    text = "\ufeffpatientid,offset,view,finding,filename,license,clinical_notes\n1,0,PA,A,0.png\n"
    (tmp_path / "metadata.csv").write_text(text, encoding="utf-8")
    assert read_metadata(tmp_path)[0]["patientid"] == "1"
    assert read_metadata(tmp_path)[0]["clinical_notes"] == ""


def test_command_prints_the_counts_and_writes_them(tmp_path, monkeypatch, capsys):
    build(tmp_path, {}, {"view": "Axial"})
    monkeypatch.setattr("sys.argv", ["covid_cxr", "--root", str(tmp_path), "--output", str(tmp_path / "out")])
    monkeypatch.delitem(sys.modules, "processing.covid_cxr")
    runpy.run_module("processing.covid_cxr", run_name="__main__")
    printed = capsys.readouterr().out
    assert "1 records, 0 with a prior, 0 with a lateral" in printed and "row: another or an unknown view: 1" in printed
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["records"] == 1


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda root: None, "folder with a metadata.csv"),
        (lambda root: build(root, {}, columns=[name for name in COLUMNS if name != "view"]), r"lacks ['view']"),
        (lambda root: build(root, {"filename": "missing.png"}), "'row: file is missing': 1"),
        (lambda root: build(root), "No study record could be made"),
        (lambda root: (root / "metadata.csv").write_bytes(b"patientid\n\xff"), "UTF-8"),
    ],
)
def test_bad_input_ends_the_command_with_a_clear_error(tmp_path, capsys, prepare, message):
    prepare(tmp_path)
    with pytest.raises(SystemExit) as error:
        main(["--root", str(tmp_path), "--output", str(tmp_path / "out")])
    assert error.value.code == 1 and message in capsys.readouterr().err


def test_samples_are_30_to_40_licensed_records_in_every_split(tmp_path):
    summary = prepare_covid_cxr(ROOT / "samples", tmp_path)
    assert 30 <= summary["records"] <= 40 and not summary["excluded"]
    assert summary["with_prior"] >= 5 and summary["with_lateral"] >= 3
    assert all(counts["records"] >= 3 for counts in summary["splits"].values())
    files = [path for path in (ROOT / "samples").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 4e6
    attribution = (ROOT / "samples" / "ATTRIBUTION.md").read_text(encoding="utf-8")
    for row in read_metadata(ROOT / "samples"):
        assert row["license"].startswith("CC BY")
        assert f"| `{row['filename']}` | {row['license']} | <{row['url']}>" in attribution
    assert {path.name for path in files if path.parent.name == "images"} == {
        row["filename"] for row in read_metadata(ROOT / "samples")
    }
