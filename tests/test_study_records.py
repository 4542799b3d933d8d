import json
from collections import Counter
from datetime import datetime

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from modeling_alta.radiograph_alta import read_radiograph
from processing.records.study_records import (
    SPLIT_NAMES,
    STUDY_FEATURES,
    assign_split,
    encode_image,
    load_study_records,
    write_study_records,
)


# By their SHA-256: "patient-0" is in train, "patient-9" in validation, "patient-8" in test.
PATIENTS = {"train": "patient-0", "validation": "patient-9", "test": "patient-8"}


@pytest.fixture(autouse=True)
def separate_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def make_record(study_id="s", patient_id="patient-0", **changes):
    record = dict.fromkeys(STUDY_FEATURES, None)
    texts = dict.fromkeys(("findings", "impression", "report", "source", "license"), "text")
    image = encode_image(np.full((32, 48), 9, np.uint8))
    record |= texts | {"study_id": study_id, "patient_id": patient_id, "labels": ["A"], "current_frontal": image}
    return record | changes


@pytest.mark.parametrize(("image_format", "start"), [("png", b"\x89PNG"), ("tiff", b"II*\0")])
def test_image_is_encoded_without_loss(image_format, start):
    pixels = np.random.default_rng(0).integers(0, 256, (300, 600), dtype=np.uint8)
    image = encode_image(pixels, image_format=image_format)
    assert image["path"] is None and image["bytes"].startswith(start)
    for decoded in (datasets.Image().decode_example(image), read_radiograph(image)):
        assert decoded.mode == "L" and np.array_equal(np.asarray(decoded), pixels)


def test_image_in_a_format_that_loses_something_is_refused():
    with pytest.raises(ValueError, match=r"`image_format` must be one of \['png', 'tiff'\], got 'jpeg'"):
        encode_image(np.zeros((8, 8), np.uint8), image_format="jpeg")


def test_large_image_is_scaled_down_to_the_short_side_with_antialias():
    stripes = np.zeros((1024, 1536), np.uint8)
    stripes[:, ::2] = 200  # one pixel wide: without antialias they stay black and white
    decoded = datasets.Image().decode_example(encode_image(stripes))
    assert decoded.size == (768, 512)
    assert abs(np.asarray(decoded)[:, 8:-8].astype(float) - 100).max() < 10


@pytest.mark.parametrize("shape", [(1, 1), (7, 400), (400, 7)])
def test_image_below_8_pixels_a_side_is_refused(tmp_path, shape):
    Image.fromarray(np.zeros(shape, np.uint8)).save(tmp_path / "icon.png")
    with pytest.raises(ValueError, match=rf"at least 8 pixels a side, got {shape[1]} x {shape[0]}"):
        encode_image(tmp_path / "icon.png")
    assert encode_image(np.zeros((8, 400), np.uint8))


def test_image_of_20000_pixels_a_side_is_refused(tmp_path):
    Image.new("1", (20000, 20000)).save(tmp_path / "bomb.tif", compression="group4")
    with pytest.raises(ValueError, match=r"bomb\.tif.*pixels"):
        encode_image(tmp_path / "bomb.tif")


def test_splits_are_stable_and_80_10_10():
    assert {split: assign_split(patient) for split, patient in PATIENTS.items()} == {name: name for name in PATIENTS}
    counts = Counter(assign_split(f"patient-{index}") for index in range(5000))
    assert {name: round(counts[name] / 5000, 1) for name in SPLIT_NAMES} == {
        "train": 0.8,
        "validation": 0.1,
        "test": 0.1,
    }


def test_plain_load_dataset_gives_the_splits_and_features(tmp_path):
    when = datetime(2020, 1, 25)
    records = [make_record(patient_id=patient, study_datetime=when) for patient in PATIENTS.values()]
    write_study_records(records, tmp_path)
    loaded = datasets.load_dataset(str(tmp_path))
    assert set(loaded) == set(SPLIT_NAMES)
    for split, patient in PATIENTS.items():
        assert loaded[split].features == STUDY_FEATURES
        record = loaded[split][0]
        assert record["patient_id"] == patient and record["study_datetime"] == when and record["labels"] == ["A"]
        assert record["current_frontal"].size == (48, 32) and record["prior_frontal"] is None


def test_split_without_records_does_not_stop_the_others(tmp_path):
    write_study_records([make_record()], tmp_path)
    assert {name: len(split) for name, split in datasets.load_dataset(str(tmp_path)).items()} == {"train": 1}
    empty = load_study_records(tmp_path, "test")
    assert len(empty) == 0 and empty.features == STUDY_FEATURES
    assert list(load_study_records(tmp_path, "test", streaming=True)) == []


def test_summary_counts_records_and_what_was_left_out(tmp_path):
    excluded = Counter()

    def records():
        yield make_record("a", current_lateral=encode_image(np.zeros((32, 32), np.uint8)))
        yield make_record("b", PATIENTS["test"], prior_study_id="a", days_since_prior=1.0)
        excluded["row: late"] += 2

    summary = write_study_records(records(), tmp_path, excluded, rows=7)
    assert summary == json.loads((tmp_path / "summary.json").read_text())
    assert summary == {
        "rows": 7,
        "records": 2,
        "with_prior": 1,
        "with_lateral": 1,
        "excluded": {"row: late": 2},
        "splits": {
            "train": {"records": 1, "with_prior": 0, "with_lateral": 1},
            "validation": {"records": 0, "with_prior": 0, "with_lateral": 0},
            "test": {"records": 1, "with_prior": 1, "with_lateral": 0},
        },
    }


def test_large_split_is_written_as_several_files(tmp_path):
    write_study_records((make_record(str(index)) for index in range(5)), tmp_path, max_shard_bytes=1)
    names = sorted(path.name for path in (tmp_path / "data").glob("train*"))
    assert names == [f"train-{index:05d}-of-00005.parquet" for index in range(5)]
    assert load_study_records(tmp_path, "train")["study_id"][:] == ["0", "1", "2", "3", "4"]


def test_records_are_written_in_groups_and_not_held(tmp_path):
    write_study_records((make_record(str(index)) for index in range(150)), tmp_path)
    metadata = pq.read_metadata(tmp_path / "data" / "train-00000-of-00001.parquet")
    assert [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)] == [64, 64, 22]


def test_second_run_replaces_the_files_of_the_first(tmp_path):
    write_study_records((make_record(str(index)) for index in range(3)), tmp_path, max_shard_bytes=1)
    write_study_records([make_record("new")], tmp_path)
    assert load_study_records(tmp_path, "train")["study_id"][:] == ["new"]
    assert len(list((tmp_path / "data").iterdir())) == 1


def test_run_that_fails_leaves_the_earlier_records_alone(tmp_path):
    write_study_records([make_record("old")], tmp_path)
    with pytest.raises(ValueError, match=r"must have the keys.*missing or unknown: \['report'\]"):
        write_study_records([make_record(), {k: v for k, v in make_record().items() if k != "report"}], tmp_path)
    with pytest.raises(ValueError, match="No study record could be made; left out: {'row: bad': 2}"):
        write_study_records([], tmp_path, Counter({"row: bad": 2}))
    assert load_study_records(tmp_path, "train")["study_id"][:] == ["old"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "summary.json"]


def test_streaming_reads_the_same_records(tmp_path):
    write_study_records([make_record("a"), make_record("b")], tmp_path)
    streamed = load_study_records(tmp_path, "train", streaming=True)
    assert [record["study_id"] for record in streamed] == ["a", "b"]
    assert isinstance(next(iter(streamed))["current_frontal"], Image.Image)


def test_folder_without_records_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path, tmp_path / "absent", "runs/absent"):  # the last could also be a Hub id
        with pytest.raises(ValueError, match="`path` must be a folder of study records.*with none"):
            load_study_records(path, "train")


def test_unknown_split_is_an_error_that_lists_the_splits(tmp_path):
    write_study_records([make_record()], tmp_path)
    with pytest.raises(ValueError, match=r"`split` must be one of \['train', 'validation', 'test'\], got 'dev'"):
        load_study_records(tmp_path, "dev")


def test_table_that_holds_no_study_records_is_an_error(tmp_path):
    (tmp_path / "data").mkdir()
    datasets.Dataset.from_dict({"study_id": ["a"]}).to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    with pytest.raises(ValueError, match=r"lacks the columns \['patient_id', "):
        load_study_records(tmp_path, "train")
