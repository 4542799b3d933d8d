import json
from datetime import datetime, timedelta

import datasets
import numpy as np
import pytest
from corpus_trees import grey, write_and_load, write_dicom, write_image, write_table

from processing.corpora.chexpert_labels import CHEXPERT_LABELS
from processing.mimic_cxr import main, plan_mimic_cxr


METADATA = (
    "dicom_id subject_id study_id PerformedProcedureStepDescription ViewPosition Rows Columns StudyDate StudyTime "
    "ProcedureCodeSequence_CodeMeaning ViewCodeSequence_CodeMeaning PatientOrientationCodeSequence_CodeMeaning"
).split()
SPLIT = ["dicom_id", "study_id", "subject_id", "split"]
LABELS = ["subject_id", "study_id", *sorted(CHEXPERT_LABELS)]
DEFAULTS = {"subject_id": "10000032", "study_id": "50414267", "ViewPosition": "PA", "StudyDate": "21800506"}
DEFAULTS |= {"StudyTime": "213014.53100000002", "split": "train"}
REPORT = (
    "                 FINAL REPORT\n EXAMINATION:  CHEST (PA AND LAT)\n\n FINDINGS: \n\n No edema.\n\n IMPRESSION: \n"
)
REPORT += " \n Clear lungs since ___.\n"


@pytest.fixture(autouse=True)
def separate_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def folder(row):
    return f"files/p{row['subject_id'][:2]}/p{row['subject_id']}/s{row['study_id']}"


def build(root, *rows, suffix=".csv.gz", version="2.0.0", labels=(), lacks=""):
    """Write a tree; the image of row number i is flat grey of value i and has the dicom_id `i`."""
    rows = [DEFAULTS | {"dicom_id": f"d{index}"} | row for index, row in enumerate(rows)]
    for kind, columns, of_kind in (("metadata", METADATA, rows), ("split", SPLIT, rows), ("chexpert", LABELS, labels)):
        columns = [name for name in columns if name != lacks]
        write_table(root / f"mimic-cxr-{version}-{kind}{suffix}", columns, of_kind)
    for index, row in enumerate(rows):
        write_image(root / folder(row) / f"{row['dicom_id']}.jpg", index)
        (root / f"{folder(row)}.txt").write_text(REPORT)
    return root


def run(root, *rows, **options):
    plan = plan_mimic_cxr(build(root, *rows), **options)
    return write_and_load(plan, root / "out", len(rows))


@pytest.mark.parametrize(("suffix", "version"), [(".csv.gz", "2.0.0"), (".csv", "2.1.0")])
def test_record_has_all_four_views_report_labels_and_time(tmp_path, suffix, version):
    later = {"study_id": "2", "StudyDate": "21800507", "StudyTime": "93014.531"}
    lateral = {"ViewPosition": "LL"}
    labels = [{"study_id": "2", "Edema": "1.0", "No Finding": "0.0", "Fracture": "-1.0", "Pneumonia": ""}]
    rows = [later, later | {"ViewPosition": "LATERAL"}, {}, lateral]
    build(tmp_path, *rows, suffix=suffix, version=version, labels=labels)
    records, summary = write_and_load(plan_mimic_cxr(tmp_path), tmp_path / "out", 4)
    record = records["s2"]
    names = ("current_frontal", "current_lateral", "prior_frontal", "prior_lateral")
    assert [grey(record[name]) for name in names] == [0, 1, 2, 3]
    assert (record["prior_study_id"], record["days_since_prior"]) == ("s50414267", pytest.approx(0.5))
    assert record["study_datetime"] == datetime(2180, 5, 7, 9, 30, 14, 531000)
    assert record["patient_id"] == "p10000032" and record["labels"] == ["Edema"]
    assert (record["findings"], record["impression"]) == ("No edema.", "Clear lungs.")
    assert record["report"] == "No edema. Clear lungs." and record["source"] == "MIMIC-CXR-JPG"
    assert record["license"].startswith("PhysioNet") and records["s50414267"]["labels"] == []
    assert not summary["excluded"] and summary["studies_without_labels"] == 1


@pytest.mark.parametrize("time", ["93455.5", "093455.500", "93455.50000000001"])
def test_lost_zeros_of_the_time_do_not_change_the_order(tmp_path, time):
    records, _ = run(tmp_path, {"study_id": "1", "StudyTime": time}, {"study_id": "2", "StudyTime": "120000"})
    assert records["s1"]["study_datetime"] == datetime(2180, 5, 6, 9, 34, 55, 500000)
    assert records["s2"]["prior_study_id"] == "s1" and records["s1"]["prior_study_id"] is None


def test_midnight_has_lost_all_its_zeros(tmp_path):
    records, _ = run(tmp_path, {"StudyTime": "0.0", "StudyDate": "21800506.0"}, {"study_id": "2", "StudyTime": "5"})
    assert records["s2"]["study_datetime"] == datetime(2180, 5, 6, 0, 0, 5)
    assert records["s2"]["days_since_prior"] == pytest.approx(5 / 86400)


def test_studies_of_one_moment_have_no_prior(tmp_path):
    records, summary = run(tmp_path, {"study_id": "1"}, {"study_id": "2"}, {"study_id": "3", "StudyDate": "21810101"})
    assert all(record["prior_study_id"] is None for record in records.values())
    assert summary["without_prior"] == {
        "another study of the patient at the same time": 2,
        "latest earlier time has several studies": 1,
    }


@pytest.mark.parametrize(
    "when",
    [{"StudyDate": ""}, {"StudyDate": "2180-05-06"}, {"StudyDate": "21801306"}, {"StudyTime": ""}]
    + [{"StudyTime": "250000"}, {"StudyTime": "noon"}, {"StudyTime": "-1.5"}, {"StudyTime": "1200000"}],
)
def test_study_of_an_unreadable_time_has_no_prior_and_is_none(tmp_path, when):
    records, summary = run(
        tmp_path, {"study_id": "1"}, {"study_id": "2"} | when, {"study_id": "3", "StudyTime": "22e4"}
    )
    assert len(records) == 3 and all(record["prior_study_id"] is None for record in records.values())
    assert summary["without_prior"] == {"first study of the patient": 1, "time is not known": 2}
    assert summary["rows_without_time"] == 2 and records["s2"]["study_datetime"] is None


def test_time_of_a_study_is_the_earliest_that_its_rows_give(tmp_path):
    records, _ = run(tmp_path, {}, {"StudyTime": "100000", "ViewPosition": "LATERAL"}, {"StudyTime": ""})
    assert records["s50414267"]["study_datetime"] == datetime(2180, 5, 6, 10)


def test_best_view_is_taken_and_other_views_are_counted(tmp_path):
    views = ["AP", "PA", "PA", "LL", "LATERAL", "AP LLD", "XTABLE LATERAL", "LAO", ""]
    records, summary = run(tmp_path, *({"ViewPosition": view} for view in views))
    record = records["s50414267"]
    assert (grey(record["current_frontal"]), grey(record["current_lateral"])) == (1, 3)
    assert summary["excluded"] == {
        "row: another view": 3,
        "row: the study has a better or earlier frontal": 2,
        "row: the study has a better or earlier lateral": 1,
        "row: view is not known": 1,
    }


def test_filled_gaps_are_used_and_counted(tmp_path):
    gaps = [{"ViewCodeSequence_CodeMeaning": "left lateral"}, {"PerformedProcedureStepDescription": "CHEST AP ONLY"}]
    records, summary = run(tmp_path, *(gap | {"ViewPosition": ""} for gap in gaps))
    assert grey(records["s50414267"]["current_frontal"]) == 1 and grey(records["s50414267"]["current_lateral"]) == 0
    assert summary["views_from_ViewCodeSequence_CodeMeaning"] == 1
    assert summary["views_from_PerformedProcedureStepDescription"] == 1


def test_official_split_is_kept(tmp_path):
    splits = {"11": "train", "12": "validate", "13": "test"}
    rows = [{"subject_id": patient, "study_id": patient, "split": split} for patient, split in splits.items()]
    records, _ = run(tmp_path, *rows)
    assert {name: record["split"] for name, record in records.items()} == {
        "s11": "train",
        "s12": "validation",
        "s13": "test",
    }


def test_rows_without_a_split_or_an_id_are_counted(tmp_path):
    build(tmp_path, {}, {"subject_id": "11", "study_id": "2"}, {"dicom_id": ""})
    rows = [{"subject_id": "10000032", "split": "train"}]
    write_table(tmp_path / "mimic-cxr-2.0.0-split.csv.gz", SPLIT, rows)
    _, summary = write_and_load(plan_mimic_cxr(tmp_path), tmp_path / "out", 3)
    assert summary["excluded"] == {
        "row: no subject_id, study_id or dicom_id": 1,
        "row: patient is not in the split table": 1,
    }


def test_missing_and_empty_images_are_counted_and_the_next_best_is_taken(tmp_path):
    build(tmp_path, {}, {}, {"ViewPosition": "AP"}, {"study_id": "2"}, {"study_id": "3"})
    first = tmp_path / folder(DEFAULTS)
    (first / "d0.jpg").unlink()
    (first / "d1.jpg").write_bytes(b"")
    (tmp_path / folder(DEFAULTS | {"study_id": "2"}) / "d3.jpg").unlink()
    records, summary = write_and_load(plan_mimic_cxr(tmp_path), tmp_path / "out", 5)
    assert set(records) == {"s50414267", "s3"} and grey(records["s50414267"]["current_frontal"]) == 2
    assert summary["excluded"] == {
        "row: file is empty": 1,
        "row: file is missing": 2,
        "study: no frontal that can be read": 1,
    }


def test_study_without_a_usable_report_is_no_record_but_can_be_a_prior(tmp_path):
    times = {"1": "1", "2": "2", "3": "3", "4": "4", "5": "5"}
    build(tmp_path, *({"study_id": study, "StudyTime": time} for study, time in times.items()))
    reports = {study: tmp_path / f"{folder(DEFAULTS | {'study_id': study})}.txt" for study in times}
    reports["1"].unlink()
    reports["2"].write_bytes(b"FINDINGS: \xff\xfe")
    reports["3"].write_text("FINDINGS: ___.\n")
    reports["4"].write_text("IMPRESSION: Normal.\n")
    records, summary = write_and_load(plan_mimic_cxr(tmp_path), tmp_path / "out", 5)
    assert set(records) == {"s5"} and records["s5"]["prior_study_id"] == "s4"
    assert summary["excluded"] == {
        "study: report cannot be read": 1,
        "study: report is missing": 1,
        "study: report of de-identification marks only": 1,
        "study: report of one word": 1,
    }


def test_choices_are_written_into_the_summary(tmp_path):
    records, summary = run(tmp_path, {}, report="impression", labels="none")
    assert records["s50414267"]["report"] == "Clear lungs." and records["s50414267"]["findings"] == "No edema."
    chosen = {"images": "jpg", "report": "impression", "labels": "none", "uncertain_as": "zeros"}
    assert summary["settings"] == chosen and "studies_without_labels" not in summary


def test_uncertain_labels_count_as_asked(tmp_path):
    build(tmp_path, {}, labels=[{"study_id": "50414267", "Edema": "-1.0", "Fracture": "1"}])
    labels = {how: plan_mimic_cxr(tmp_path, uncertain_as=how).studies[0].labels for how in ("zeros", "ones")}
    assert labels == {"zeros": ("Fracture",), "ones": ("Edema", "Fracture")}


def test_dicom_images_reports_and_tables_may_lie_apart(tmp_path, capsys):
    places = {name: tmp_path / name for name in ("images", "reports", "tables")}
    build(places["tables"], {})
    (places["reports"] / folder(DEFAULTS)).parent.mkdir(parents=True)
    (places["tables"] / f"{folder(DEFAULTS)}.txt").rename(places["reports"] / f"{folder(DEFAULTS)}.txt")
    pixels = np.arange(1024).reshape(32, 32) % 256
    write_dicom(places["images"] / folder(DEFAULTS) / "d0.dcm", pixels)
    apart = ["--reports", str(places["reports"]), "--tables", str(places["tables"]), "--images", "dicom"]
    main(["--root", str(places["images"]), "--output", str(tmp_path / "out"), "--num-proc", "1", *apart])
    assert "1 rows, 1 studies\n1 records" in capsys.readouterr().out
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["images"] == 1 and summary["settings"]["images"] == "dicom"


def test_patient_with_200_studies_is_paired_in_order(tmp_path):
    days = [n * 37 % 200 for n in range(200)]
    dates = [(datetime(2180, 1, 1) + timedelta(day)).strftime("%Y%m%d") for day in days]
    rows = [{"study_id": str(day), "StudyDate": date} for day, date in zip(days, dates, strict=True)]
    records, summary = run(tmp_path, *rows)
    assert len(records) == 200 and summary["with_prior"] == 199
    assert all(records[f"s{day}"]["prior_study_id"] == f"s{day - 1}" for day in range(1, 200))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("mimic-cxr-2.0.0-metadata.csv.gz", "the table mimic-cxr-2.*-metadata.csv"),
        ("mimic-cxr-2.0.0-split.csv.gz", "the table mimic-cxr-2.*-split.csv"),
        ("mimic-cxr-2.0.0-chexpert.csv.gz", "the table mimic-cxr-2.*-chexpert.csv"),
        ("StudyTime", "lacks ['StudyTime']"),
        ("split", "lacks ['split']"),
        ("Pleural Other", "lacks ['Pleural Other']"),
    ],
)
def test_missing_table_or_column_ends_the_command(tmp_path, capsys, damage, message):
    build(tmp_path, {}, lacks=damage)
    (tmp_path / damage).unlink(missing_ok=True)
    with pytest.raises(SystemExit) as error:
        main(["--root", str(tmp_path), "--output", str(tmp_path / "out")])
    assert error.value.code == 1 and message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "labels", "options", "message"),
    [
        ([{"split": "dev"}], [], {}, "must have splits of .* got 'dev'"),
        ([{}, {"split": "test"}], [], {}, "each patient in one split, got '10000032' in two"),
        ([{}, {"subject_id": "2"}], [], {}, "unique ids, got 's50414267' twice"),
        ([{}], [{"study_id": "1", "Edema": "yes"}], {}, "labels of 1, 0, -1 or none, got 'yes' for 'Edema'"),
        ([{}], [{"study_id": "1"}], {"uncertain_as": "twos"}, "`uncertain_as` must be one of"),
        ([{}], [], {"images": "png"}, "`images` must be one of"),
        ([{}], [], {"labels": "chexbert"}, "`labels` must be one of"),
        ([{}], [], {"report": "all"}, "`report` must be one of"),
    ],
)
def test_table_that_contradicts_itself_or_unknown_choice_is_an_error(tmp_path, rows, labels, options, message):
    build(tmp_path, *rows, labels=labels)
    with pytest.raises(ValueError, match=message):
        plan_mimic_cxr(tmp_path, **options).by_split()


def test_folder_without_reports_is_an_error(tmp_path):
    build(tmp_path, {})
    with pytest.raises(FileNotFoundError, match="`reports` must be a folder with files/p10"):
        plan_mimic_cxr(tmp_path, reports=tmp_path / "files")
