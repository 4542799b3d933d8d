import datasets
import pytest

from processing.nih import main, plan_nih
from processing.records.study_records import assign_split
from tests.corpus_trees import grey, write_and_load, write_image, write_table


COLUMNS = ["Image Index", "Finding Labels", "Follow-up #", "Patient ID", "Patient Age", "Patient Sex", "View Position"]
COLUMNS += ["OriginalImage[Width", "Height]", "OriginalImagePixelSpacing[x", "y]"]
DEFAULTS = {"Finding Labels": "No Finding", "View Position": "PA"}
TRAIN, VALIDATION = (
    next(n for n in range(1, 99) if assign_split(str(n)) == split) for split in ("train", "validation")
)


@pytest.fixture(autouse=True)
def separate_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def row(patient, follow_up, **changes):
    name = f"{patient:08d}_{follow_up:03d}.png"
    return DEFAULTS | {"Image Index": name, "Patient ID": patient, "Follow-up #": follow_up} | changes


def build(root, *rows, test=()):
    """Write a corpus; the image of row i is flat grey of i, in folder 1 or 2; patients in `test` are for that."""
    write_table(root / "Data_Entry_2017_v2020.csv", COLUMNS, rows)
    lists = {"train_val_list.txt": [], "test_list.txt": []}
    for index, entry in enumerate(rows):
        write_image(root / f"images_{1 + index % 2:03d}" / "images" / entry["Image Index"], index)
        lists["test_list.txt" if entry["Patient ID"] in test else "train_val_list.txt"].append(entry["Image Index"])
    for name, images in lists.items():
        (root / name).write_text("\n".join(images), encoding="utf-8")
    return root


def run(root, num_rows):
    return write_and_load(plan_nih(root), root / "out", num_rows)


def test_follow_up_numbers_give_the_prior_and_no_days(tmp_path):
    rows = [row(7, 10), row(7, 9, **{"Finding Labels": "Edema|Effusion"}), row(7, 2), row(8, 0)]
    records, summary = run(build(tmp_path, *rows), 4)
    last = records["00000007_010"]
    assert (last["prior_study_id"], last["days_since_prior"], last["report"]) == ("00000007_009", None, "")
    assert (grey(last["current_frontal"]), grey(last["prior_frontal"])) == (0, 1)
    assert records["00000007_009"]["labels"] == ["Edema", "Effusion"] and last["labels"] == ["No Finding"]
    assert records["00000007_002"]["prior_study_id"] is None and summary["settings"] == {
        "table": "Data_Entry_2017_v2020.csv"
    }


def test_splits_are_the_official_ones_and_validation_is_part_of_train_val_by_patient(tmp_path):
    rows = [row(TRAIN, 0), row(VALIDATION, 0), row(VALIDATION, 1), row(900, 0), row(901, 0)]
    records, _ = run(build(tmp_path, *rows, test=(900, 901)), 5)
    splits = [record["split"] for record in sorted(records.values(), key=lambda record: record["study_id"])]
    expected = {TRAIN: ["train"], VALIDATION: ["validation"] * 2}
    assert splits == [name for patient in sorted(expected) for name in expected[patient]] + ["test"] * 2


def test_the_first_release_of_the_table_is_taken_where_there_is_no_other(tmp_path):
    build(tmp_path, row(1, 0))
    (tmp_path / "Data_Entry_2017_v2020.csv").rename(tmp_path / "Data_Entry_2017.csv")
    assert plan_nih(tmp_path).corpus.settings == {"table": "Data_Entry_2017.csv"}


def test_images_may_lie_in_one_folder(tmp_path):
    build(tmp_path, row(1, 0))
    (tmp_path / "images_001" / "images" / "00000001_000.png").rename(tmp_path / "00000001_000.png")
    assert set(run(tmp_path, 1)[0]) == {"00000001_000"}


def test_bad_rows_and_files_are_counted_and_nothing_beside_them_is_lost(tmp_path):
    rows = [row(1, 0), row(2, 0), row(3, 0), row(4, 0), row(5, 0, **{"View Position": ""})]
    rows += [row(6, 0, **{"Patient ID": ""}), row(7, 0, **{"Follow-up #": "?"}), row(7, 1)]
    build(tmp_path, *rows)
    images = {number: next(tmp_path.rglob(f"0000000{number}_000.png")) for number in (2, 3)}
    images[2].unlink()
    images[3].write_bytes(b"")
    listed = (tmp_path / "train_val_list.txt").read_text(encoding="utf-8").replace("00000004_000.png", "")
    (tmp_path / "train_val_list.txt").write_text(listed, encoding="utf-8")
    records, summary = run(tmp_path, 8)
    assert set(records) == {"00000001_000", "00000007_000", "00000007_001"}
    assert summary["without_prior"] == {"first study of the patient": 2, "time is not known": 1}
    assert summary["excluded"] == {
        "row: another or an unknown view": 1,
        "row: file is empty": 1,
        "row: file is missing": 1,
        "row: image is on neither list": 1,
        "row: no image or patient": 1,
        "study: no frontal that can be read": 2,
    }


def test_a_patient_or_an_image_on_both_lists_is_an_error(tmp_path):
    build(tmp_path, row(1, 0), row(1, 1))
    (tmp_path / "train_val_list.txt").write_text("00000001_000.png\n", encoding="utf-8")
    (tmp_path / "test_list.txt").write_text("00000001_001.png\n", encoding="utf-8")
    with pytest.raises(ValueError, match="`split` must be the same for all studies of a patient"):
        run(tmp_path, 2)
    (tmp_path / "test_list.txt").write_text("00000001_000.png\n", encoding="utf-8")
    with pytest.raises(ValueError, match="must have no image in common, got '00000001_000.png' in both"):
        plan_nih(tmp_path)


def test_a_missing_table_or_column_or_list_is_an_error(tmp_path, capsys):
    with pytest.raises(SystemExit, match="1"):
        main(["--root", str(tmp_path), "--output", str(tmp_path / "out")])
    assert "Data_Entry_2017.csv" in capsys.readouterr().err
    write_table(tmp_path / "Data_Entry_2017_v2020.csv", COLUMNS[:3], [])
    (tmp_path / "test_list.txt").write_text("", encoding="utf-8")
    with pytest.raises(FileNotFoundError, match="`root` must be a folder with train_val_list.txt"):
        plan_nih(tmp_path)
    (tmp_path / "train_val_list.txt").write_text("", encoding="utf-8")
    with pytest.raises(ValueError, match=r"must have the columns .* lacks \['Patient ID', 'View Position'\]"):
        plan_nih(tmp_path)
