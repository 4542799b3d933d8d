"""Records that are pushed to a Hub, read from it as a stream, and made by a local Ray."""

import subprocess
import sys

import pytest

from benchmarks.synthetic import plan_synthetic, write_radiographs
from processing.engine.write_records import write_records
from tests.conftest import ROOT
from tests.hub_server import hub_environment, running_hub


@pytest.fixture
def plan(tmp_path):
    return plan_synthetic(tmp_path, write_radiographs(tmp_path, 5, (40, 40)), 90)


STREAM = """
import sys
from datasets import load_dataset
from huggingface_hub import HfApi
from processing.records.study_records import STUDY_FEATURES, load_study_records
HfApi().create_repo("tester/folder", repo_type="dataset")
HfApi().upload_folder(repo_id="tester/folder", repo_type="dataset", folder_path=sys.argv[1])
for split in ("train", "test"):
    load_study_records(sys.argv[1], split).push_to_hub("tester/pushed", split=split)
for name in ("tester/folder", "tester/pushed"):
    for split in ("train", "test"):
        stream = load_dataset(name, split=split, streaming=True)
        assert stream.features == STUDY_FEATURES
        local = list(load_study_records(sys.argv[1], split))
        assert list(load_study_records(name, split, streaming=True)) == list(stream) == local
        print(name, split, len(local), local[1]["prior_frontal"].size)
"""


def test_records_stream_from_a_hub_as_they_lie_on_disk(plan, tmp_path):
    write_records(plan, tmp_path / "out", max_shard_bytes=4000)
    with running_hub(tmp_path / "hub") as endpoint:
        environment = hub_environment(endpoint, tmp_path / "home") | {"PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", STREAM, str(tmp_path / "out")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 4 and lines[0].startswith("tester/folder train") and lines[0].endswith("(40, 40)")
    assert [int(line.split()[2]) > 3 for line in lines] == [True] * 4


READ_BY_POSITION = """
import sys
from huggingface_hub import HfApi
from torch.utils.data import DataLoader
from processing.records.record_files import records_fingerprint
from processing.records.record_stream import RecordStream
from processing.records.study_records import load_study_records
HfApi().create_repo("tester/folder", repo_type="dataset")
HfApi().upload_folder(repo_id="tester/folder", repo_type="dataset", folder_path=sys.argv[1])
load_study_records(sys.argv[1], "train").push_to_hub("tester/pushed", split="train")
local = RecordStream(sys.argv[1], "train")
for name in ("tester/folder", "tester/pushed"):
    stream = RecordStream(name, "train")
    assert stream[2] == local[2] and stream[-1] == local[-1]
    batches = DataLoader(stream, batch_size=8, num_workers=2, collate_fn=list)
    assert [record for batch in batches for record in batch] == local.__getitems__(range(len(local)))
    print(len(stream.files), stream.scan(["current_frontal.path"], len)[0])
print(records_fingerprint("tester/folder", "train") == records_fingerprint(sys.argv[1], "train"))
try:
    RecordStream("tester/pushed", "test")
except ValueError as error:
    print(error)
try:
    RecordStream("tester/absent", "train")
except ValueError as error:
    print(error)
"""


def test_records_on_a_hub_are_read_by_position_in_workers(plan, tmp_path):
    write_records(plan, tmp_path / "out", max_shard_bytes=40000)
    with running_hub(tmp_path / "hub") as endpoint:
        environment = hub_environment(endpoint, tmp_path / "home") | {"PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", READ_BY_POSITION, str(tmp_path / "out")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    folder, pushed, same, split, absent = done.stdout.splitlines()
    assert (int(folder.split()[0]) > 1, pushed.split()[0], same) == (True, "1", "True")
    assert split == "`split` must be one of ['train'] of the dataset tester/pushed, got 'test'."
    assert absent.startswith("`path` must be a dataset on the Hub, got tester/absent")


def test_ray_writes_the_same_bytes(plan, tmp_path):
    ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")
    write_records(plan, tmp_path / "local", max_shard_bytes=4000)
    try:
        write_records(plan, tmp_path / "ray", max_shard_bytes=4000, backend="ray")
    finally:
        ray.shutdown()
    for path in (tmp_path / "local").rglob("*.*"):
        assert (tmp_path / "ray" / path.relative_to(tmp_path / "local")).read_bytes() == path.read_bytes()
    assert len(list((tmp_path / "ray" / "data").iterdir())) > 3


def test_ray_that_is_not_installed_is_an_error_that_says_what_to_install(plan, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'modeling-alta\[ray\]'"):
        write_records(plan, tmp_path / "out", backend="ray")
