"""The small Hub of the tests, asked by huggingface_hub and datasets in processes of their own."""

import subprocess
import sys

import pytest

from tests.hub_server import hub_environment, running_hub


@pytest.fixture
def run_on_hub(tmp_path):
    """Run a script in a fresh process that knows the small Hub only, and return what it printed."""
    with running_hub(tmp_path / "hub") as endpoint:
        environment = hub_environment(endpoint, tmp_path / "home")

        def run(script: str, *arguments: str) -> list[str]:
            command = [sys.executable, "-c", script, *map(str, arguments)]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
            assert done.returncode == 0, done.stderr
            return done.stdout.splitlines()

        yield run


PUSH_AND_PULL = """
import sys
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
api, folder = HfApi(), sys.argv[1]
api.create_repo("tester/model", exist_ok=True)
api.create_repo("tester/model", exist_ok=True)
api.upload_folder(repo_id="tester/model", folder_path=folder)
print(api.model_info("tester/model").pipeline_tag, *api.list_repo_files("tester/model"))
print(open(snapshot_download("tester/model") + "/code/model.py").read())
print(open(hf_hub_download("tester/model", "weights.safetensors"), "rb").read())
"""


def test_pushed_folder_comes_back_byte_for_byte(run_on_hub, tmp_path):
    folder = tmp_path / "folder"
    (folder / "code").mkdir(parents=True)
    (folder / "README.md").write_text("---\npipeline_tag: zero-shot-image-classification\n---\n")
    (folder / "code" / "model.py").write_text("x = 1")
    (folder / "weights.safetensors").write_bytes(bytes([0, 255, 10]))
    assert run_on_hub(PUSH_AND_PULL, folder) == [
        "zero-shot-image-classification README.md code/model.py weights.safetensors",
        "x = 1",
        str(bytes([0, 255, 10])),
    ]


PUSH_TWICE = """
import pathlib, sys
from huggingface_hub import HfApi, hf_hub_download
api, folder = HfApi(), pathlib.Path(sys.argv[1])
api.create_repo("tester/model")
for text in ("old", "new"):
    (folder / "a.txt").write_text(text)
    print(api.upload_folder(repo_id="tester/model", folder_path=folder).oid == api.model_info("tester/model").sha)
    print(open(hf_hub_download("tester/model", "a.txt")).read())
api.delete_file("a.txt", "tester/model")
print(api.list_repo_files("tester/model"))
"""


def test_second_push_replaces_the_file_and_the_commit(run_on_hub, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    assert run_on_hub(PUSH_TWICE, folder) == ["True", "old", "True", "new", "[]"]


LOAD_DATASET = """
from datasets import Dataset, load_dataset
Dataset.from_dict({"study_id": ["a", "b"]}).push_to_hub("tester/records", split="train")
Dataset.from_dict({"study_id": ["c"]}).push_to_hub("tester/records", split="test")
records = load_dataset("tester/records")
print({split: list(rows["study_id"]) for split, rows in records.items()})
print([row["study_id"] for row in load_dataset("tester/records", split="train", streaming=True)])
"""


def test_pushed_dataset_loads_whole_and_streamed(run_on_hub):
    assert run_on_hub(LOAD_DATASET) == ["{'train': ['a', 'b'], 'test': ['c']}", "['a', 'b']"]


UNKNOWN = """
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
HfApi().create_repo("tester/model")
def error(function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except Exception as error:
        print(*(kind.__name__ for kind in type(error).__mro__ if kind.__name__.endswith("NotFoundError")))
error(snapshot_download, "tester/none")
error(hf_hub_download, "tester/none", "config.json")
error(hf_hub_download, "tester/model", "config.json")
error(hf_hub_download, "tester/model", "config.json", revision="v9")
"""


def test_unknown_repository_file_and_revision_have_their_own_errors(run_on_hub):
    answers = run_on_hub(UNKNOWN)
    assert [answer.split()[0] for answer in answers] == [
        "RepositoryNotFoundError",
        "RepositoryNotFoundError",
        "RemoteEntryNotFoundError",
        "RevisionNotFoundError",
    ]
    assert "EntryNotFoundError" in answers[2].split()


def test_environment_drops_proxies_and_offline_mode(tmp_path):
    base = {"PATH": "/bin", "HF_HUB_OFFLINE": "1", "https_proxy": "http://proxy", "HF_DATASETS_OFFLINE": "1"}
    environment = hub_environment("http://127.0.0.1:1", tmp_path, base)
    assert environment["PATH"] == "/bin" and environment["HF_ENDPOINT"] == "http://127.0.0.1:1"
    assert not {"HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "https_proxy"} & set(environment)
