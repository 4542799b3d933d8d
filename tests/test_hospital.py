import errno
import json
from datetime import datetime
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pydicom
import pytest
import yaml

from processing.corpora.dicom_headers import read_header
from processing.corpora.hospital_mapping import load_mapping
from processing.corpora.pseudonyms import Pseudonyms, read_salt, remove_identifiers
from processing.hospital import main, plan_hospital
from tests.corpus_trees import grey, write_and_load, write_dicom, write_image, write_table


ROOT = Path(__file__).parents[1]
SALT = b"a salt for the tests only"
NAME = Pseudonyms(SALT)
COLUMNS = ["acc", "mrn", "name", "file", "view", "taken", "text", "codes"]
DEFAULTS = {"acc": "A10001", "mrn": "M20001", "name": "Roe, Richard", "view": "PA", "text": "FINDINGS: Clear lungs."}
MAPPING = {
    "name": "A hospital",
    "license": "internal",
    "table": "images.csv",
    "columns": {
        "study_id": "acc",
        "patient_id": "mrn",
        "image": "file",
        "view": "view",
        "datetime": "taken",
        "report": "text",
        "labels": "codes",
    },
    "remove_from_reports": ["name"],
}
DICOM = {"table": "reports.csv", "dicom": ".", "columns": {"AccessionNumber": "acc", "report": "text"}}
DICOM["columns"]["StudyInstanceUID"] = "uid"


@pytest.fixture(autouse=True)
def separate_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def map_columns(path, **changes):
    path.write_text(yaml.safe_dump(MAPPING | changes, sort_keys=False), encoding="utf-8")
    return load_mapping(path)


def run_table(root, *rows, **options):
    """Records of a table of images by study; the image of row number i is flat grey of i."""
    rows = [DEFAULTS | {"file": f"{index}.png"} | row for index, row in enumerate(rows)]
    write_table(root / "images.csv", COLUMNS, rows)
    for index in range(len(rows)):
        write_image(root / f"{index}.png", index)
    plan = plan_hospital(root, map_columns(root / "map.yaml"), SALT, **options)
    return write_and_load(plan, root / "out", len(rows))


def write_study(path, value, **header):
    """A DICOM file of one grey value."""
    write_dicom(path, np.full((32, 32), value, np.uint8))
    dicom = pydicom.dcmread(path)
    dicom.Modality, dicom.StudyInstanceUID, dicom.PatientID = "DX", "1.2.840.99.1", "M20001"
    dicom.PatientName, dicom.AccessionNumber, dicom.ViewPosition = "ROE^RICHARD", "A10001", "PA"
    dicom.WindowCenter, dicom.WindowWidth = 128, 256
    for name, element in header.items():
        setattr(dicom, name, element)
    dicom.save_as(path)


def run_dicom(root, reports, num_files, **options):
    write_table(root / "reports" / "reports.csv", ["uid", "acc", "text"], reports)
    changes = {"dicom": "dicom", "table": "reports/reports.csv", "remove_from_reports": []}
    mapping = map_columns(root / "map.yaml", **DICOM | changes)
    return write_and_load(plan_hospital(root, mapping, SALT, **options), root / "out", num_files)


def study(*identifiers):
    return NAME("study", "\0".join(identifiers))


def test_rows_of_a_table_become_studies_with_priors_in_days(tmp_path):
    later = {"acc": "A10002", "taken": "2021-03-04 12:00", "codes": "Edema| Effusion |"}
    records, summary = run_table(tmp_path, {"taken": "2021-03-01"}, {"view": "lat"}, later)
    first, second = records[study("M20001", "A10001")], records[study("M20001", "A10002")]
    assert (grey(first["current_frontal"]), grey(first["current_lateral"]), first["labels"]) == (0, 1, [])
    assert (grey(second["prior_frontal"]), second["days_since_prior"]) == (0, 3.5)
    assert second["patient_id"] == NAME("patient", "M20001") and second["study_datetime"] is None
    assert second["labels"] == ["Edema", "Effusion"] and second["report"] == "Clear lungs."
    assert summary["settings"] == {"report": "findings+impression", "dates": "differences only"}


def test_dates_are_kept_only_on_demand(tmp_path):
    records, summary = run_table(tmp_path, {"taken": "2021-03-01"}, keep_dates=True)
    assert [record["study_datetime"] for record in records.values()] == [datetime(2021, 3, 1)]
    assert summary["settings"]["dates"] == "kept"


def test_a_parquet_table_is_read_as_a_csv_is(tmp_path):
    rows = [
        {"acc": 1.0, "mrn": 2, "file": "0.png", "view": "PA", "taken": datetime(2021, 3, 1), "text": "Clear lungs."}
    ]
    rows[0] |= {"codes": None, "name": "Roe"}
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "images.parquet")
    write_image(tmp_path / "0.png", 5)
    plan = plan_hospital(tmp_path, map_columns(tmp_path / "map.yaml", table="images.parquet"), SALT)
    assert [found.study_id for found in plan.studies] == [study("2", "1")] and plan.studies[0].time == 18687
    with pytest.raises(ValueError, match=r"images.parquet must have the columns .* lacks \['gone'\]"):
        changed = map_columns(tmp_path / "map.yaml", table="images.parquet", remove_from_reports=["gone"])
        plan_hospital(tmp_path, changed, SALT)


def test_bad_rows_are_counted_and_nothing_beside_them_is_lost(tmp_path):
    (tmp_path / "empty.png").write_bytes(b"")
    rows = [{"acc": f"A2000{number}", "mrn": f"M3000{number}"} for number in range(8)]
    changes = [{}, {"mrn": ""}, {"view": "??"}, {"file": "gone.png"}, {"file": "empty.png"}, {"text": ""}]
    changes += [{"text": "Normal."}, {"taken": "yesterday"}]
    records, summary = run_table(tmp_path, *(row | change for row, change in zip(rows, changes, strict=True)))
    assert set(records) == {study("M30000", "A20000"), study("M30007", "A20007")}
    assert summary["without_prior"] == {"time is not known": 2}
    assert summary["unreadable"] == [NAME("file", "gone.png"), NAME("file", "empty.png")]
    assert summary["excluded"] == {
        "row: another or an unknown view": 1,
        "row: file is empty": 1,
        "row: file is missing": 1,
        "row: no patient, study or image": 1,
        "study: empty report": 1,
        "study: no frontal": 1,
        "study: no frontal that can be read": 2,
        "study: report of one word": 1,
    }


def test_dicom_files_become_studies_by_their_headers(tmp_path):
    lateral = {"ViewPosition": "", "PatientOrientation": ["A", "F"]}
    later = {"StudyInstanceUID": "1.2.840.99.2", "AccessionNumber": "A10002", "StudyDate": "20210303"}
    write_study(tmp_path / "dicom" / "a" / "1", 10, StudyDate="20210301", StudyTime="1200")
    write_study(tmp_path / "dicom" / "a" / "2", 20, StudyDate="20210301", StudyTime="120500.5", **lateral)
    write_study(tmp_path / "dicom" / "b" / "1.dcm", 30, StudyTime="000001", **later)
    reports = [{"uid": "1.2.840.99.1", "text": "Old text here."}, {"uid": "1.2.840.99.1", "text": "Clear lungs."}]
    reports += [{"acc": "A10002", "text": "No change."}, {"uid": "1.2.3", "text": "Of no study."}]
    records, summary = run_dicom(tmp_path, reports, 3)
    first, second = records[study("1.2.840.99.1")], records[study("1.2.840.99.2")]
    assert first["report"] == "Clear lungs." and first["current_lateral"] is not None
    assert second["report"] == "No change." and second["prior_study_id"] == first["study_id"]
    assert second["days_since_prior"] == pytest.approx(1.5, abs=1e-4)
    counts = {"reports": 4, "reports_without_images": 1, "earlier_reports_of_a_study": 1}
    assert counts.items() <= summary.items()


def test_an_empty_row_does_not_take_the_place_of_a_report(tmp_path):
    write_study(tmp_path / "dicom" / "1", 10)
    reports = [{"uid": "1.2.840.99.1", "text": "Clear lungs."}, {"uid": "1.2.840.99.1"}]
    records, summary = run_dicom(tmp_path, reports, 1)
    assert records[study("1.2.840.99.1")]["report"] == "Clear lungs."
    assert (summary["reports"], summary["earlier_reports_of_a_study"]) == (2, 1)


def test_bad_dicom_files_are_counted_and_nothing_beside_them_is_lost(tmp_path):
    changes = [{"Modality": "CT"}, {"BodyPartExamined": "HAND"}, {"BurnedInAnnotation": "YES"}, {"PatientID": ""}]
    changes += [{"ViewPosition": ""}, {"ViewPosition": "LLD"}, {}, {"StudyInstanceUID": "1.2.9", "PatientID": "X1"}]
    changes += [{"StudyInstanceUID": "1.2.9"}, {"StudyInstanceUID": "1.2.8", "AccessionNumber": ""}]
    for number, change in enumerate(changes):
        write_study(tmp_path / "dicom" / f"{number}.dcm", number, **change)
    (tmp_path / "dicom" / "note.txt").write_text("no image", encoding="utf-8")
    (tmp_path / "dicom" / "zero.dcm").write_bytes(b"")
    records, summary = run_dicom(tmp_path, [{"acc": "A10001", "text": "Clear lungs."}], 12)
    assert set(records) == {study("1.2.840.99.1")}
    assert summary["excluded"] == {
        "row: another modality than radiography": 1,
        "row: another part of the body than the chest": 1,
        "row: another view than frontal or lateral": 1,
        "row: file is empty": 1,
        "row: file is no DICOM": 1,
        "row: no StudyInstanceUID or PatientID": 1,
        "row: nothing in the header decides the view": 1,
        "row: study of several patients": 2,
        "row: text is burned into the image": 1,
        "study: no report": 1,
        "study: of several patients": 1,
    }


@pytest.mark.parametrize(
    ("header", "view"),
    [
        ({"ViewPosition": "AP", "PatientOrientation": ["A", "F"]}, "AP"),
        ({"PatientOrientation": ["L", "F"]}, "frontal"),
        ({"PatientOrientation": ["P", "F"]}, "lateral"),
        ({"PatientOrientation": ["LA", "F"], "SeriesDescription": "Thorax lat."}, "lateral"),
        ({"SeriesDescription": "Chest postero-anterior"}, "PA"),
        ({"SeriesDescription": "CHEST PA AND LAT"}, ""),
        ({"SeriesDescription": "CHEST LATERAL DECUBITUS"}, "other"),
        *(
            ({"ViewPosition": position, "SeriesDescription": "CHEST PA"}, "other")
            for position in ("RAO", "LPO", "LAO", "RPO", "SWIMMERS", "Swimmer's", "AP AXIAL", "XTABLE LATERAL")
        ),
        ({"ViewPosition": "LATERAL X-TABLE"}, "other"),
        ({"SeriesDescription": "Chest cross table lat"}, "other"),
        ({"SeriesDescription": "CHEST PORTABLE AP ON TABLE"}, "AP"),
    ],
)
def test_the_view_is_read_from_the_first_element_that_names_one(tmp_path, header, view):
    write_study(tmp_path / "1.dcm", 0, **{"ViewPosition": ""} | header)
    assert read_header(tmp_path / "1.dcm").view == view


OTHER_PART = "row: another part of the body than the chest"
UNNAMED_PART = "row: nothing in the header says that it shows the chest"


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        ({}, None),
        ({"SeriesDescription": "Portable AP, semi-erect"}, None),
        ({"SeriesDescription": "Tórax em PA"}, None),
        ({"SeriesDescription": "ABDOMEN AP"}, UNNAMED_PART),
        ({"SeriesDescription": "RIBS AP"}, UNNAMED_PART),
        ({"SeriesDescription": "Thoracic spine AP"}, UNNAMED_PART),
        ({"SeriesDescription": "W. Bucky AP", "BodyPartExamined": "CHEST"}, None),
        ({"SeriesDescription": "Chest AP", "BodyPartExamined": "RIB"}, OTHER_PART),
        ({"BodyPartExamined": "THORACIC SPINE"}, OTHER_PART),
        ({"region": "Chest", "SeriesDescription": "Bucky AP"}, None),
        ({"region": "Abdomen"}, OTHER_PART),
    ],
)
def test_the_part_of_the_body_is_read_from_the_first_element_that_names_one(tmp_path, header, problem):
    region = pydicom.Dataset()
    region.CodeMeaning = header.pop("region", "")
    write_study(tmp_path / "1.dcm", 0, **{"BodyPartExamined": "", "AnatomicRegionSequence": [region]} | header)
    assert read_header(tmp_path / "1.dcm").problem == problem


def test_failing_disk_ends_the_reading_of_headers(tmp_path, monkeypatch):
    write_study(tmp_path / "1.dcm", 0)

    def fail(*arguments, **options):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(pydicom, "dcmread", fail)
    with pytest.raises(OSError, match="Input/output error"):
        read_header(tmp_path / "1.dcm")


def test_a_day_without_a_time_of_day_orders_no_two_studies(tmp_path):
    for number, time in enumerate(("", "120000")):
        header = {"StudyInstanceUID": f"1.2.{number}", "StudyDate": "20210301", "StudyTime": time}
        write_study(tmp_path / "dicom" / f"{number}.dcm", number, **header)
    reports = [{"uid": f"1.2.{number}", "text": "Clear lungs."} for number in range(2)]
    assert run_dicom(tmp_path, reports, 2)[1]["without_prior"] == {"another study of the patient at the same time": 2}


def test_no_identifier_is_in_any_byte_of_what_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ALTA_SALT", SALT.decode())
    secrets = ["M20001", "ROE", "RICHARD", "A10001", "1.2.840.99.1", "20210301", "2021-03-01", "M20001-broken.dcm"]
    write_study(tmp_path / "M20001" / "A10001.dcm", 9, StudyDate="20210301", StudyTime="120000")
    write_study(tmp_path / "M20001" / "M20001-broken.dcm", 9, PixelData=b"", StudyDate="20210301")
    text = "Patient ROE, Richard (M20001), accession A10001. FINDINGS: Mr. Richard Roe, M20001, has clear lungs."
    write_table(tmp_path / "reports.csv", ["uid", "acc", "text"], [{"acc": "A10001", "text": text}])
    map_columns(tmp_path / "map.yaml", **DICOM, remove_from_reports=[])
    paths = ["--root", str(tmp_path), "--mapping", str(tmp_path / "map.yaml"), "--output", str(tmp_path / "out")]
    main([*paths, "--num-proc", "1"])
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    tables = [str(pq.read_table(path).to_pylist()).encode() for path in files if path.suffix == ".parquet"]
    content = b"\n".join([path.read_bytes() + path.name.encode() for path in files] + tables).lower()
    assert len(tables) == 1 and b"clear lungs" in content and NAME("patient", "M20001").encode() in content
    printed = capsys.readouterr().out.lower()
    for secret in (*secrets, SALT.decode(), str(tmp_path)):
        assert secret.lower().encode() not in content and secret.lower() not in printed, secret


def test_identifiers_are_removed_from_a_text_and_words_are_left():
    text = "Long, Mary (12 mm; 4711): long lines. mary long"
    assert remove_identifiers(text, ["Long^Mary", "4711", "12"]) == "___, ___ (12 mm; ___): long lines. mary long"
    assert remove_identifiers(text, []) == text


@pytest.mark.parametrize(
    ("identifier", "text", "expected"),
    [
        ("123456", "MRN 00123456, 123456 and 1234567", "MRN ___, ___ and 1234567"),
        ("00123456", "MRN 123456, 0123456", "MRN ___, ___"),
        ("12", "12 mm, 012, MRN 0012 and 00000012", "12 mm, 012, MRN ___ and ___"),
        ("0012", "12 mm, 0012", "12 mm, ___"),
        ("M012", "M12, M012, 0M012", "M12, ___, 0M012"),
    ],
)
def test_a_number_is_removed_with_and_without_leading_zeros(identifier, text, expected):
    assert remove_identifiers(text, [identifier]) == expected


def test_another_salt_gives_other_names_and_a_missing_or_short_one_is_an_error(tmp_path, monkeypatch):
    assert NAME("patient", "1") != Pseudonyms(SALT + b"!")("patient", "1") != NAME("study", "1")
    (tmp_path / "salt").write_bytes(SALT + b"\n")
    assert read_salt(tmp_path / "salt") == SALT
    monkeypatch.setenv("ALTA_SALT", "short")
    with pytest.raises(ValueError, match="at least 16 bytes, in the environment variable ALTA_SALT .* got 5 bytes"):
        read_salt()
    monkeypatch.delenv("ALTA_SALT")
    with pytest.raises(ValueError, match="got 0 bytes"):
        read_salt()


def test_the_command_ends_with_a_message_if_there_is_no_salt(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("ALTA_SALT", raising=False)
    map_columns(tmp_path / "map.yaml")
    with pytest.raises(SystemExit, match="1"):
        main(["--root", str(tmp_path), "--output", str(tmp_path / "o"), "--mapping", str(tmp_path / "map.yaml")])
    assert "error: The salt must have at least 16 bytes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"columns": {"study_id": "a"}},
            r"`columns` must name \['study_id', .* lacks \['patient_id', 'image', 'view'\]",
        ),
        ({"columns": MAPPING["columns"] | {"age": "a"}}, r"`columns` must have names of .* got \['age'\]"),
        ({"dicom": "."}, r"`columns` must have names of \['AccessionNumber', .* got \['datetime'"),
        ({"dicom": ".", "columns": {"report": "a"}}, r"must name one of \['StudyInstanceUID', 'AccessionNumber'\]"),
        ({"table": 3}, r"`table` must be a str of texts, got 3"),
        ({"tables": "a"}, r"its keys must be of \['table', .* got \['columns'"),
    ],
)
def test_a_mapping_that_does_not_fit_is_an_error_that_names_the_file(tmp_path, changes, message):
    with pytest.raises(ValueError, match=rf"map.yaml must be a mapping of columns in YAML: .*{message}"):
        map_columns(tmp_path / "map.yaml", **changes)


def test_a_table_or_column_or_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="images.csv"):
        plan_hospital(tmp_path, map_columns(tmp_path / "map.yaml"), SALT)
    write_table(tmp_path / "images.csv", COLUMNS[:4], [])
    with pytest.raises(ValueError, match=r"images.csv must have the columns .* lacks \['view', 'taken', 'text'"):
        plan_hospital(tmp_path, map_columns(tmp_path / "map.yaml"), SALT)
    mapping = map_columns(tmp_path / "map.yaml", **DICOM | {"dicom": "gone"}, remove_from_reports=[])
    with pytest.raises(FileNotFoundError, match="`dicom` must be a folder of DICOM files, got .*gone"):
        plan_hospital(tmp_path, mapping, SALT)


def test_the_example_mapping_is_valid():
    assert json.dumps(load_mapping(ROOT / "processing" / "hospital_example.yaml").columns)
