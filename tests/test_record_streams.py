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


# Two lines a dataset: what a stream of it gives, and what reading it by position gives.
READ = """
import sys
from datasets import load_dataset
from huggingface_hub import HfApi
from torch.utils.data import DataLoader
from processing.records.record_files import records_fingerprint
from processing.records.record_stream import RecordStream
from processing.records.study_records import STUDY_FEATURES, load_study_records

SPLITS = ("train", "test")
local = {split: list(load_study_records(sys.argv[1], split)) for split in SPLITS}
HfApi().create_repo("tester/folder", repo_type="dataset")
HfApi().upload_folder(repo_id="tester/folder", repo_type="dataset", folder_path=sys.argv[1])
for split in SPLITS:
    load_study_records(sys.argv[1], split).push_to_hub("tester/pushed", split=split)

for name in ("tester/folder", "tester/pushed"):
    for split in SPLITS:
        stream = load_dataset(name, split=split, streaming=True)
        assert stream.features == STUDY_FEATURES
        assert list(load_study_records(name, split, streaming=True)) == list(stream) == local[split]
    print(name, len(local["train"]), len(local["test"]), local["train"][1]["prior_frontal"].size)

by_position = RecordStream(sys.argv[1], "train")
for name in ("tester/folder", "tester/pushed"):
    stream = RecordStream(name, "train")
    assert stream[2] == by_position[2] and stream[-1] == by_position[-1]
    batches = DataLoader(stream, batch_size=8, num_workers=2, collate_fn=list)
    records = [record for batch in batches for record in batch]
    assert records == by_position.__getitems__(range(len(by_position)))
    print(len(stream.files), stream.scan(["current_frontal.path"], len)[0])
print(records_fingerprint("tester/folder", "train") == records_fingerprint(sys.argv[1], "train"))
for name, split in (("tester/pushed", "validation"), ("tester/absent", "train")):
    try:
        RecordStream(name, split)
    except ValueError as error:
        print(error)
"""


@pytest.fixture(scope="module")
def read(tmp_path_factory) -> list[str]:
    """What a process prints that pushes records to a small Hub and reads them from there."""
    folder = tmp_path_factory.mktemp("pushed")
    plan = plan_synthetic(folder, write_radiographs(folder, 5, (40, 40)), 90)
    write_records(plan, folder / "out", max_shard_bytes=40000)
    with running_hub(folder / "hub") as endpoint:
        environment = hub_environment(endpoint, folder / "home") | {"PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", READ, str(folder / "out")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_records_stream_from_a_hub_as_they_lie_on_disk(read):
    folder, pushed = (line.split(maxsplit=3) for line in read[:2])
    assert (folder[0], pushed[0]) == ("tester/folder", "tester/pushed")
    assert folder[1:] == pushed[1:] and folder[3] == "(40, 40)"
    assert int(folder[1]) > 3 and int(folder[2]) > 3


def test_records_on_a_hub_are_read_by_position_in_workers(read):
    folder, pushed, same, split, absent = read[2:]
    assert (int(folder.split()[0]) > 1, pushed.split()[0], same) == (True, "1", "True")
    assert split == "`split` must be one of ['test', 'train'] of the dataset tester/pushed, got 'validation'."
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
