import pickle

import datasets
import pytest
from test_training_batch import make_record

from modeling_alta.configuration_alta import VIEW_NAMES
from processing.engine.shards import ROWS_PER_GROUP
from processing.records.record_files import records_fingerprint
from processing.records.record_stream import RecordStream
from processing.records.study_features import SPLIT_NAMES
from processing.records.study_records import load_study_records, write_study_records


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Records in several shards: of the training split, one has more than a row group."""
    folder = tmp_path_factory.mktemp("records")
    views = [VIEW_NAMES[:1], VIEW_NAMES, VIEW_NAMES[1:3]]
    records = (make_record(f"s{i}", views[i % 3], patient_id=f"p{i}", labels=["a"] * (i % 3)) for i in range(160))
    write_study_records(records, folder, max_shard_bytes=500_000)
    return folder


def load_undecoded(folder, split):
    records = load_study_records(folder, split)
    for name in VIEW_NAMES:
        records = records.cast_column(name, datasets.Image(decode=False))
    return records


def test_records_are_those_of_datasets(folder):
    for split in SPLIT_NAMES:
        stream, records = RecordStream(folder, split), load_undecoded(folder, split)
        assert stream.__getitems__(range(len(stream))) == list(records)
        assert stream.column_names == records.column_names
    assert len(RecordStream(folder, "train").files) == 2
    assert RecordStream(folder, "train").row_groups[0] == ROWS_PER_GROUP


def test_records_come_in_the_order_asked_for(folder):
    stream, records = RecordStream(folder, "train"), load_undecoded(folder, "train")
    wanted = [70, 2, -1, 70, 1]
    assert stream.__getitems__(wanted) == [records[index] for index in wanted]
    assert stream[5] == records[5]
    with pytest.raises(IndexError):
        stream[len(stream)]


def test_only_the_columns_asked_for_are_read(folder):
    stream = RecordStream(folder, "train").select_columns(["study_id", "prior_frontal"])
    assert stream[1].keys() == {"study_id", "prior_frontal"}
    assert stream.cache[0].column_names == ["study_id", "prior_frontal"]
    with pytest.raises(ValueError, match=r"`columns` must be out of .*, got \['weight'\]"):
        RecordStream(folder, "train", columns=["report", "weight"])


def test_a_row_group_is_read_once_while_it_is_among_the_last(folder, monkeypatch):
    stream, reads = RecordStream(folder, "train", columns=["study_id"], cached_groups=2), []
    read = RecordStream._parquet
    monkeypatch.setattr(RecordStream, "_parquet", lambda *args: reads.append(1) or read(*args))
    starts = [sum(stream.row_groups[:group]) for group in range(3)]
    stream.__getitems__([starts[0], starts[1], starts[0] + 1, starts[1] + 1])
    assert len(reads) == 2
    stream[starts[2]], stream[starts[1]]
    assert len(reads) == 3
    stream[starts[0]]
    assert len(reads) == 4


def test_a_pickled_stream_reads_the_same_and_carries_no_images(folder):
    stream = RecordStream(folder, "train")
    expected, content = stream[3], pickle.dumps(stream)
    assert pickle.loads(content)[3] == expected
    assert len(content) < 100_000


def test_a_split_that_got_no_record_is_empty(tmp_path):
    write_study_records([make_record(patient_id="p1")], tmp_path)
    lengths = {split: len(RecordStream(tmp_path, split)) for split in SPLIT_NAMES}
    assert sorted(lengths.values()) == [0, 0, 1]
    assert "study_id" in RecordStream(tmp_path, min(lengths, key=lengths.get)).column_names


def test_folders_splits_and_files_that_are_not_there_are_errors(folder, tmp_path):
    with pytest.raises(ValueError, match="`path` must be a folder of study records"):
        RecordStream(tmp_path, "train")
    with pytest.raises(ValueError, match="`split` must be one of .*, got 'all'"):
        RecordStream(folder, "all")
    (tmp_path / "data").mkdir()
    whole = next((folder / "data").glob("train-00000-*"))
    (tmp_path / "data" / whole.name).write_bytes(whole.read_bytes()[:-100])
    with pytest.raises(ValueError, match="`path` must hold whole Parquet files, got .*train-00000"):
        RecordStream(tmp_path, "train")


def test_the_fingerprint_tells_records_apart_and_not_where_they_lie(folder, tmp_path):
    copies = {"same": {}, "other": {"report": "No effusion."}}
    for name, changes in copies.items():
        write_study_records((make_record(f"s{i}", patient_id="p1", **changes) for i in range(3)), tmp_path / name)
    (tmp_path / "same").rename(tmp_path / "moved")
    write_study_records((make_record(f"s{i}", patient_id="p1") for i in range(3)), tmp_path / "same")
    split = next(split for split in SPLIT_NAMES if len(RecordStream(tmp_path / "same", split)))
    same, moved, other = (records_fingerprint(tmp_path / name, split) for name in ("same", "moved", "other"))
    assert same == moved != other and len(same) == 16
    assert len({same, *(records_fingerprint(folder, split) for split in SPLIT_NAMES)}) == 4
