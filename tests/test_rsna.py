import datasets
import numpy as np
import pytest

from processing.rsna import main, plan_rsna, read_rsna_list
from tests.corpus_trees import grey, write_and_load, write_dicom, write_table


BOX = {"x": 264, "y": 152, "width": 213, "height": 379}
COLUMNS = ["patientId", "x", "y", "width", "height", "Target"]
IDS = [f"0004cfab-14fd-4e49-80ba-63a80b6bddd{digit}" for digit in range(10)]


@pytest.fixture(autouse=True)
def separate_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def write_image(path, value):
    """The brightest pixel is 255, so that a DICOM without a window keeps its values."""
    pixels = np.full((32, 32), value, np.uint8)
    pixels[-1, -1] = 255
    write_dicom(path, pixels)


def build(root, *targets):
    """Write the training images and their labels; the image number i has the value i, and two boxes if positive."""
    rows = []
    for index, target in enumerate(targets):
        write_image(root / "stage_2_train_images" / f"{IDS[index]}.dcm", index)
        rows += [{"patientId": IDS[index], "Target": target} | (BOX if target else {})] * (1 + (target == 1))
    write_table(root / "stage_2_train_labels.csv", COLUMNS, rows)
    return root


def published(root):
    """A test list as published: the images of a folder of their own, which no table labels."""
    lines = [f"stage_2_test_images/{IDS[number]}.dcm {number % 2} \n" for number in (8, 9)]
    (root / "test_list.txt").write_text("".join(lines), encoding="utf-8")
    for number in (8, 9):
        write_image(root / "stage_2_test_images" / f"{IDS[number]}.dcm", number)
    return root / "test_list.txt"


def test_every_image_of_the_table_is_a_record_with_labels_and_no_report(tmp_path):
    records, summary = write_and_load(plan_rsna(build(tmp_path, 0, 1)), tmp_path / "out", 3)
    assert [records[image]["labels"] for image in IDS[:2]] == [["No Pneumonia"], ["Pneumonia"]]
    assert grey(records[IDS[1]]["current_frontal"]) == 1 and records[IDS[1]]["report"] == ""
    assert summary["excluded"] == {"row: another box of the image": 1}
    assert summary["without_prior"] == {"time is not known": 2}


def test_the_detailed_class_is_a_further_label(tmp_path):
    rows = [
        {"patientId": IDS[0], "class": "No Lung Opacity / Not Normal"},
        {"patientId": IDS[1], "class": "Lung Opacity"},
    ]
    write_table(tmp_path / "stage_2_detailed_class_info.csv", ["patientId", "class"], [*rows, rows[1]])
    labels = [study.labels for study in plan_rsna(build(tmp_path, 0, 1)).studies]
    assert labels == [("No Pneumonia", "No Lung Opacity / Not Normal"), ("Pneumonia", "Lung Opacity")]


def test_the_published_list_is_the_test_split_with_labels_of_its_own(tmp_path):
    plan = plan_rsna(build(tmp_path, 0, 1), {"test": published(tmp_path)})
    records, summary = write_and_load(plan, tmp_path / "out", 2)
    assert {image: (record["split"], record["labels"]) for image, record in records.items()} == {
        IDS[8]: ("test", ["No Pneumonia"]),
        IDS[9]: ("test", ["Pneumonia"]),
    }
    assert grey(records[IDS[9]]["current_frontal"]) == 9 and summary["settings"] == {"lists": ["test"]}


def test_lists_need_no_table_if_they_have_the_labels(tmp_path):
    path = published(tmp_path)
    assert len(plan_rsna(tmp_path, {"test": path}).studies) == 2
    path.write_text(f"{IDS[0]}\n", encoding="utf-8")
    with pytest.raises(FileNotFoundError, match="stage_2_train_labels.csv"):
        plan_rsna(tmp_path, {"test": path})


def test_a_list_of_ids_takes_path_and_label_from_the_table(tmp_path):
    (tmp_path / "list.csv").write_text(f"patientId,Target\n{IDS[1]}\n{IDS[0]},0\n\n", encoding="utf-8")
    path = f"stage_2_train_images/{IDS[1]}.dcm"
    assert read_rsna_list(tmp_path / "list.csv")[0] == (IDS[1], path, "")
    plan = plan_rsna(build(tmp_path, 0, 1, 1), {"validation": tmp_path / "list.csv"})
    assert [(found.study_id, found.split, found.labels[0]) for found in plan.studies] == [
        (IDS[1], "validation", "Pneumonia"),
        (IDS[0], "validation", "No Pneumonia"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{IDS[0]} 1\n", r"must have the labels of stage_2_train_labels.csv, got others for 1 images"),
        (f"{IDS[0]} yes\n", r"list.txt must have lines of an image and its label, 0 or 1, got .* yes', line 1"),
        (f"a/{IDS[0]}.dcm 0\nb/{IDS[0]}.dcm 0\n", r"must have one path and label for each image, got two for"),
        (f"{IDS[5]} 1\n", r"must have each image on one list, got .* on two"),
    ],
)
def test_a_list_that_contradicts_is_an_error(tmp_path, text, message):
    (tmp_path / "list.txt").write_text(text, encoding="utf-8")
    (tmp_path / "train.txt").write_text(f"{IDS[5]} 1\n", encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        plan_rsna(build(tmp_path, 0, 1), {"train": tmp_path / "train.txt", "test": tmp_path / "list.txt"})


def test_bad_rows_and_files_are_counted_and_nothing_beside_them_is_lost(tmp_path):
    build(tmp_path, 0, 0, 0, 1)
    rows = [{"patientId": IDS[number], "Target": 0} for number in (0, 1, 2, 3, 4)] + [{"Target": 1}]
    write_table(tmp_path / "stage_2_train_labels.csv", COLUMNS, [*rows, {"patientId": IDS[3], "Target": 1}])
    (tmp_path / "stage_2_train_images" / f"{IDS[1]}.dcm").write_bytes(b"")
    (tmp_path / "stage_2_train_images" / f"{IDS[2]}.dcm").write_bytes(b"no DICOM at all")
    records, summary = write_and_load(plan_rsna(tmp_path), tmp_path / "out", 7)
    assert set(records) == {IDS[0]}
    assert summary["excluded"] == {
        "row: another box of the image": 1,
        "row: file cannot be decoded": 1,
        "row: file is empty": 1,
        "row: file is missing": 1,
        "row: no patientId": 1,
        "study: no frontal that can be read": 3,
        "study: no label": 1,
    }


def test_an_image_on_a_list_without_any_label_is_counted(tmp_path):
    path = published(tmp_path)
    path.write_text(path.read_text(encoding="utf-8") + f"{IDS[0]}\n{IDS[7]}\n{IDS[7]}\n", encoding="utf-8")
    summary = write_and_load(plan_rsna(build(tmp_path, 1), {"test": path}), tmp_path / "out", 5)[1]
    expected = {
        "row: another line of the image": 1,
        "row: file is missing": 1,
        "study: no frontal that can be read": 1,
    }
    assert summary["excluded"] == expected and summary["records"] == 3


def test_a_missing_table_or_column_or_list_ends_the_command_with_a_message(tmp_path, capsys):
    arguments = ["--root", str(tmp_path), "--output", str(tmp_path / "out")]
    for options, message in (([], "stage_2_train_labels.csv"), (["--test-list", "gone.txt"], "gone.txt")):
        with pytest.raises(SystemExit, match="1"):
            main([*arguments, *options])
        assert message in capsys.readouterr().err
    write_table(tmp_path / "stage_2_train_labels.csv", ["patientId"], [])
    with pytest.raises(ValueError, match=r"stage_2_train_labels.csv must have .* lacks \['Target'\]"):
        plan_rsna(tmp_path)
    with pytest.raises(ValueError, match=r"`lists` must have keys of \['train', .* got 'dev'"):
        plan_rsna(tmp_path, {"dev": published(tmp_path)})
