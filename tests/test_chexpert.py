import json
from pathlib import PurePosixPath

import datasets
import numpy as np
import pytest
from corpus_trees import grey, write_and_load, write_dicom, write_image, write_table

from processing.chexpert import main, plan_chexpert
from processing.corpora.chexpert_labels import CHEXPERT_LABELS


COLUMNS = ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *CHEXPERT_LABELS]
PLUS_COLUMNS = (
    "path_to_image path_to_dcm frontal_lateral ap_pa deid_patient_id patient_report_date_order report "
    "section_narrative section_findings section_impression age sex split"
).split()
PLUS = "df_chexpert_plus_240401.csv"


@pytest.fixture(autouse=True)
def separate_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def row(path="patient00001/study1/view1_frontal.jpg", split="train", **columns):
    """A row for both kinds of table."""
    view = "Frontal" if "frontal" in path else "Lateral"
    defaults = {"Frontal/Lateral": view, "AP/PA": "AP" if view == "Frontal" else "", "split": split}
    study = PurePosixPath(path)
    defaults |= {"Path": f"CheXpert-v1.0-small/{split}/{path}", "path_to_image": f"{split}/{path}"}
    defaults |= {"deid_patient_id": study.parts[0], "patient_report_date_order": study.parts[1].removeprefix("study")}
    defaults |= {"section_findings": "No edema.", "section_impression": "\n1. Clear,\nfree lungs."}
    defaults |= columns
    return defaults | {"frontal_lateral": defaults["Frontal/Lateral"], "ap_pa": defaults["AP/PA"]}


def build(root, *rows, suffix=".csv", tables=("train", "valid"), lacks=""):
    """Write both kinds of table; the image of row number i is flat grey of value i. Returns the table of reports."""
    folder = root / "CheXpert-v1.0-small"
    for split in ("train", "valid"):
        (folder / split).mkdir(parents=True, exist_ok=True)
    for split in tables:
        of_split = [row for row in rows if row["split"] == split]
        write_table(folder / f"{split}{suffix}", [name for name in COLUMNS if name != lacks], of_split)
    for index, found in enumerate(rows):
        if (folder / found["path_to_image"]).suffix:
            write_image(folder / found["path_to_image"], index)
    write_table(root / PLUS, [name for name in PLUS_COLUMNS if name != lacks], rows)
    return root / PLUS


def run(root, *rows, **options):
    """With the reports of CheXpert Plus."""
    plan = plan_chexpert(root, build(root, *rows), **options)
    return write_and_load(plan, root / "out", len(rows))


def test_record_of_chexpert_plus_has_views_report_labels_and_prior(tmp_path):
    later = row("patient00001/study10/view1_frontal.jpg", Edema="1.0", Fracture="-1.0", Pneumonia="0.0")
    lateral = row("patient00001/study10/view2_lateral.jpg", Edema="1.0")
    records, summary = run(tmp_path, later, lateral, row("patient00001/study2/view1_frontal.jpg"), row())
    record = records["patient00001_study10"]
    names = ("current_frontal", "current_lateral", "prior_frontal", "prior_lateral")
    assert [grey(record[name]) for name in names] == [0, 1, 2, None]
    assert record["prior_study_id"] == "patient00001_study2" and record["days_since_prior"] is None
    assert record["findings"] == "No edema." and record["impression"] == "Clear, free lungs."
    assert record["report"] == "No edema. Clear, free lungs." and record["labels"] == ["Edema"]
    assert record["source"] == "CheXpert Plus" and record["study_datetime"] is None
    assert summary["settings"]["report"] == "findings+impression"
    assert summary["settings"]["labels"] == ["train.csv", "valid.csv"] and not summary["excluded"]


def test_order_of_reports_comes_before_the_number_of_the_study(tmp_path):
    first = row("patient1/study1/view1_frontal.jpg", patient_report_date_order="2.0")
    records, _ = run(tmp_path, first, row("patient1/study2/view1_frontal.jpg", patient_report_date_order="1"))
    assert records["patient1_study1"]["prior_study_id"] == "patient1_study2"


def test_studies_of_one_or_of_no_order_have_no_prior(tmp_path):
    orders = ["1", "2", "2", "", "nan", "x"]
    rows = [row(f"patient1/study{n}/view1_frontal.jpg", patient_report_date_order=o) for n, o in enumerate(orders)]
    rows += [row("patient1/study9/view1_frontal.jpg"), row("patient1/study9/view2_lateral.jpg")]
    rows[-1]["patient_report_date_order"] = "8"
    records, summary = run(tmp_path, *rows)
    assert len(records) == 7 and all(record["prior_study_id"] is None for record in records.values())
    assert summary["without_prior"] == {
        "another study of the patient at the same time": 2,
        "first study of the patient": 1,
        "time is not known": 4,
    }


def test_studies_of_chexpert_alone_are_in_the_order_of_their_numbers(tmp_path):
    rows = [row(f"patient1/study{number}/view1_frontal.jpg") for number in (10, 9, 1)]
    build(tmp_path, *rows, row("patient2/study1/view1_frontal.jpg", split="valid"), suffix=".csv.gz")
    records, summary = write_and_load(plan_chexpert(tmp_path, without_reports=True), tmp_path / "out", 4)
    assert records["patient1_study10"]["prior_study_id"] == "patient1_study9"
    assert records["patient1_study9"]["prior_study_id"] == "patient1_study1"
    assert {record["report"] for record in records.values()} == {""}
    assert records["patient2_study1"]["split"] == "validation" and records["patient1_study1"]["split"] == "train"
    assert summary["settings"]["report"] == "none" and summary["corpus"] == "CheXpert"


def test_test_table_without_view_columns_is_read_by_file_names(tmp_path):
    build(tmp_path, row())
    folder = tmp_path / "CheXpert-v1.0-small"
    rows = [{"Path": f"test/patient9/study1/view{n}_{v}.jpg", "Edema": 1} for n, v in ((1, "lateral"), (2, "frontal"))]
    write_table(folder / "test_labels.csv", ["Path", *CHEXPERT_LABELS], rows)
    for index, found in enumerate(rows):
        write_image(folder / found["Path"], 7 + index)
    records, _ = write_and_load(plan_chexpert(folder, without_reports=True), tmp_path / "out", 3)
    record = records["patient9_study1"]
    assert (grey(record["current_frontal"]), grey(record["current_lateral"])) == (8, 7)
    assert record["split"] == "test" and record["labels"] == ["Edema"]


def test_best_frontal_is_taken_and_others_are_counted(tmp_path):
    frontals = [row(f"patient1/study1/view{n}_frontal.jpg", **{"AP/PA": v}) for n, v in enumerate(["", "AP", "PA"])]
    left = row("patient1/study1/view4_frontal.jpg", **{"AP/PA": "LL"})
    unknown = row("patient1/study1/view5.jpg", **{"Frontal/Lateral": "", "AP/PA": ""})
    pathless = row(path_to_image="somewhere/else.jpg", Path="somewhere/else.jpg")
    records, summary = run(tmp_path, *frontals, left, unknown, pathless, row(deid_patient_id=""))
    assert grey(records["patient1_study1"]["current_frontal"]) == 2
    assert summary["excluded"] == {
        "row: frontal that is neither PA nor AP": 1,
        "row: no patient id": 1,
        "row: path names no study": 1,
        "row: the study has a better or earlier frontal": 2,
        "row: view is not known": 1,
    }


def test_missing_and_empty_images_are_counted_and_the_next_best_is_taken(tmp_path):
    rows = [row(f"patient1/study{study}/view{n}_frontal.jpg") for study, n in ((1, 1), (1, 2), (1, 3), (2, 1))]
    reports = build(tmp_path, *rows)
    images = [tmp_path / "CheXpert-v1.0-small" / row["path_to_image"] for row in rows]
    images[0].unlink()
    images[1].write_bytes(b"")
    images[3].unlink()
    records, summary = write_and_load(plan_chexpert(tmp_path, reports), tmp_path / "out", 4)
    assert grey(records["patient1_study1"]["current_frontal"]) == 2 and len(records) == 1
    assert summary["excluded"] == {
        "row: file is empty": 1,
        "row: file is missing": 2,
        "study: no frontal that can be read": 1,
    }


def test_study_without_a_usable_report_is_no_record_but_can_be_a_prior(tmp_path):
    empty = {"section_findings": "", "section_impression": " "}
    texts = [empty, empty | {"section_impression": "Normal."}, {}]
    rows = [row(f"patient1/study{n}/view1_frontal.jpg", **text) for n, text in enumerate(texts)]
    records, summary = run(tmp_path, *rows)
    assert set(records) == {"patient1_study2"}
    assert records["patient1_study2"]["prior_study_id"] == "patient1_study1"
    assert summary["excluded"] == {"study: empty report": 1, "study: report of one word": 1}


def test_choice_of_sections_and_of_uncertain_labels_is_kept(tmp_path):
    records, summary = run(tmp_path, row(Edema="-1.0"), report="impression", uncertain_as="ones")
    assert records["patient00001_study1"]["report"] == "Clear, free lungs."
    assert records["patient00001_study1"]["labels"] == ["Edema"]
    assert summary["settings"]["report"] == "impression" and summary["settings"]["uncertain_as"] == "ones"


@pytest.mark.parametrize("images", ["png", "dicom"])
def test_png_and_dicom_images_of_chexpert_plus_are_found_by_suffix(tmp_path, capsys, images):
    build(tmp_path / "tables", row())
    folder = tmp_path / "images" / images.upper() / "train" / "patient00001" / "study1"
    if images == "png":
        write_image(folder / "view1_frontal.png", 5)
    else:
        write_dicom(folder / "view1_frontal.dcm", np.arange(1024).reshape(32, 32) % 256)
    arguments = ["--root", str(tmp_path / "images"), "--reports", str(tmp_path / "tables"), "--num-proc", "1"]
    main([*arguments, "--images", images, "--output", str(tmp_path / "out")])
    assert "1 rows, 1 studies\n1 records" in capsys.readouterr().out
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["settings"]["images"] == images and summary["settings"]["labels"] == []
    assert summary["studies_without_labels"] == 1


def test_patient_with_200_studies_is_paired_in_order(tmp_path):
    rows = [row(f"patient1/study{n * 37 % 200}/view1_frontal.jpg") for n in range(200)]
    records, summary = run(tmp_path, *rows)
    assert len(records) == 200 and summary["with_prior"] == 199
    assert all(records[f"patient1_study{n}"]["prior_study_id"] == f"patient1_study{n - 1}" for n in range(1, 200))


@pytest.mark.parametrize("lacks", ["Path", "AP/PA", "Pleural Other", "section_findings", "patient_report_date_order"])
def test_missing_column_ends_the_command(tmp_path, capsys, lacks):
    reports = build(tmp_path, row(), lacks=lacks)
    kind = ["--reports", str(reports)] if lacks in PLUS_COLUMNS else ["--without-reports"]
    with pytest.raises(SystemExit) as error:
        main(["--root", str(tmp_path), "--output", str(tmp_path / "out"), *kind])
    assert error.value.code == 1 and f"lacks ['{lacks}']" in capsys.readouterr().err


def test_missing_table_or_folder_is_named(tmp_path):
    build(tmp_path, row(), tables=["train"])
    with pytest.raises(FileNotFoundError, match=r"the tables of \['valid'\]"):
        plan_chexpert(tmp_path, without_reports=True)
    with pytest.raises(FileNotFoundError, match=r"the table df_chexpert_plus_\*\.csv"):
        plan_chexpert(tmp_path, reports=tmp_path / "CheXpert-v1.0-small")
    with pytest.raises(FileNotFoundError, match=r"one folder with train/ or valid/, got .* with \[\]"):
        plan_chexpert(tmp_path / "CheXpert-v1.0-small" / "train", without_reports=True)
    (tmp_path / "PNG" / "train").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"with \['CheXpert-v1\.0-small', 'PNG'\]"):
        plan_chexpert(tmp_path, without_reports=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "CheXpert has labels and no reports; got neither"),
        ({"reports": PLUS, "without_reports": True}, "got both"),
        ({"reports": f"{PLUS}.gz"}, "not gzipped"),
        ({"without_reports": True, "images": "tiff"}, "`images` must be one of"),
        ({"without_reports": True, "report": "all"}, "`report` must be one of"),
    ],
)
def test_command_that_cannot_be_meant_is_an_error(tmp_path, options, message):
    build(tmp_path, row())
    with pytest.raises(ValueError, match=message):
        plan_chexpert(tmp_path, **options)


def test_patient_in_two_splits_is_an_error(tmp_path):
    build(tmp_path, row(), row("patient00001/study2/view1_frontal.jpg", split="valid"))
    with pytest.raises(ValueError, match="same for all studies of a patient"):
        plan_chexpert(tmp_path, without_reports=True).by_split()
