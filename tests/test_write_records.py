import errno
import json
import os
import shutil
import signal
from collections import Counter
from dataclasses import replace

import datasets
import pytest
from prepared_processes import FORK_SERVER

from benchmarks.memory import PeakMemory
from benchmarks.synthetic import plan_synthetic, write_radiographs
from processing.engine.study_plan import ImageFile
from processing.engine.workers import chunk_patients, run_local
from processing.engine.write_records import corpus_parser, format_summary, run_corpus, write_records
from processing.records.study_features import SPLIT_NAMES
from processing.records.study_records import load_study_records, write_study_records


SHARD_BYTES = 4000
RAW_IMAGE = datasets.Image(decode=False)


@pytest.fixture(autouse=True)
def separate_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture
def plan(tmp_path):
    """300 studies of 100 patients, written as several small shards."""
    return plan_synthetic(tmp_path, write_radiographs(tmp_path, 5, (40, 40)), 300)


class CountedReads:
    """A `read_image` that counts, and does something to the process at one of its reads."""

    count, at, action = 0, None, None

    @classmethod
    def read(cls, path):
        cls.count += 1
        if cls.count == cls.at:
            cls.action()
        return path


@pytest.fixture
def reads():
    CountedReads.count, CountedReads.at = 0, None
    return CountedReads


def interrupt():
    # Not by a signal, which a process started in the background ignores.
    raise KeyboardInterrupt


def write_until_killed(plan, output):
    """In a process of its own, which ends at its 300th image."""
    CountedReads.at, CountedReads.action = 300, lambda: os.kill(os.getpid(), signal.SIGKILL)
    write_records(plan, output, 1, SHARD_BYTES)


def kill_at_poison(path):
    if path.name == "poison.png":
        os._exit(1)
    return path


def be_killed_at_poison(path):
    if path.name == "poison.png":
        os.kill(os.getpid(), signal.SIGKILL)
    return path


def with_reader(plan, read_image):
    return replace(plan, corpus=replace(plan.corpus, read_image=read_image))


def shorten(plan, num_studies):
    return replace(plan, studies=plan.studies[:num_studies], totals={})


def read_bytes(output):
    return {path.relative_to(output): path.read_bytes() for path in output.rglob("*") if path.is_file()}


def test_bytes_do_not_depend_on_the_number_of_workers(plan, tmp_path):
    write_records(plan, tmp_path / "one", 1, SHARD_BYTES)
    write_records(plan, tmp_path / "three", 3, SHARD_BYTES)
    one, three = read_bytes(tmp_path / "one"), read_bytes(tmp_path / "three")
    assert len(one) > 10 and one == three


def test_records_come_in_the_order_of_the_plan_and_patients_do_not_part(plan, tmp_path):
    write_records(plan, tmp_path / "out", 1, SHARD_BYTES)
    for split in SPLIT_NAMES:
        numbers = [int(name[1:]) for name in load_study_records(tmp_path / "out", split)["study_id"]]
        assert numbers == sorted(numbers) and len(numbers) > 9
    for path in (tmp_path / "out" / "data").iterdir():
        patients = Counter(datasets.Dataset.from_parquet(str(path))["patient_id"])
        assert set(patients.values()) == {3}


def test_killed_run_goes_on_after_its_last_shard_with_the_same_bytes(plan, tmp_path, reads):
    plan = with_reader(plan, reads.read)
    write_records(plan, tmp_path / "whole", 1, SHARD_BYTES)
    total, reads.count = reads.count, 0
    process = FORK_SERVER.Process(target=write_until_killed, args=(plan, tmp_path / "out"))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (tmp_path / "out" / "data").exists() and list((tmp_path / "out" / ".unfinished").glob("train-*.json"))
    write_records(plan, tmp_path / "out", 2, SHARD_BYTES)
    assert reads.count == 0 or total - 300 <= reads.count < total - 200
    assert read_bytes(tmp_path / "out") == read_bytes(tmp_path / "whole")


def test_run_whose_disk_failed_goes_on_with_the_same_bytes(plan, tmp_path, reads):
    def fail():
        raise OSError(errno.EIO, "Input/output error")

    write_records(plan, tmp_path / "whole", 1, SHARD_BYTES)
    reads.at, reads.action = 300, fail
    with pytest.raises(OSError, match="Input/output error"):
        write_records(with_reader(plan, reads.read), tmp_path / "out", 1, SHARD_BYTES)
    write_records(with_reader(plan, reads.read), tmp_path / "out", 1, SHARD_BYTES)
    assert reads.count < 600 and read_bytes(tmp_path / "out") == read_bytes(tmp_path / "whole")


def test_run_that_is_killed_while_it_puts_files_in_place_finishes(plan, tmp_path, monkeypatch):
    write_records(plan, tmp_path / "whole", 1, SHARD_BYTES)
    write_records(shorten(plan, 30), tmp_path / "out", 1, 500)
    moves, move = [], os.replace

    def move_some(source, target):
        moves.append(str(target).endswith(".parquet"))
        if sum(moves) == 4:
            raise KeyboardInterrupt
        move(source, target)

    monkeypatch.setattr(os, "replace", move_some)
    with pytest.raises(KeyboardInterrupt):
        write_records(plan, tmp_path / "out", 1, SHARD_BYTES)
    write_records(plan, tmp_path / "out", 1, SHARD_BYTES)
    assert read_bytes(tmp_path / "out") == read_bytes(tmp_path / "whole")


@pytest.fixture
def rmtree_that_is_killed(monkeypatch):
    """Stands for `shutil.rmtree` until a kill: the first shard is gone, and the process after it."""

    def remove_some(folder, *arguments, **options):
        for path in sorted(folder.glob("t*-00000.*")):
            path.unlink()
        if folder.exists():
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", remove_some)
        yield patch


def test_run_that_is_killed_while_it_discards_its_work_does_not_cost_the_finished_records(
    plan, tmp_path, rmtree_that_is_killed
):
    with pytest.raises(KeyboardInterrupt):
        write_records(plan, tmp_path / "out", 1, SHARD_BYTES)
    rmtree_that_is_killed.undo()
    write_records(plan, tmp_path / "out", 1, SHARD_BYTES)
    write_records(plan, tmp_path / "whole", 1, SHARD_BYTES)
    assert read_bytes(tmp_path / "out") == read_bytes(tmp_path / "whole")


def test_work_of_another_plan_that_was_discarded_in_part_is_not_taken_over(
    plan, tmp_path, reads, rmtree_that_is_killed
):
    reads.at, reads.action = 300, interrupt
    with pytest.raises(KeyboardInterrupt):
        write_records(with_reader(plan, reads.read), tmp_path / "out", 1, SHARD_BYTES)
    with pytest.raises(KeyboardInterrupt):
        write_records(shorten(plan, 30), tmp_path / "out", 1, SHARD_BYTES)
    rmtree_that_is_killed.undo()
    reads.at, reads.count = None, 0
    summary = write_records(with_reader(plan, reads.read), tmp_path / "out", 1, SHARD_BYTES)
    assert summary["images"] == reads.count


def leave_finished_shards(plan, output, monkeypatch):
    """A run that ends before its first shard is put in place."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("processing.engine.unfinished.find_shards", lambda folder: interrupt())
        write_records(plan, output, 1, SHARD_BYTES)
    return output / ".unfinished"


def test_segments_after_a_gap_are_written_again(plan, tmp_path, monkeypatch):
    write_records(plan, tmp_path / "whole", 1, SHARD_BYTES)
    (leave_finished_shards(plan, tmp_path / "out", monkeypatch) / "train-00001.json").unlink()
    write_records(plan, tmp_path / "out", 1, SHARD_BYTES)
    assert read_bytes(tmp_path / "out") == read_bytes(tmp_path / "whole")


def test_run_that_lacks_a_shard_is_an_error_and_leaves_the_finished_records(plan, tmp_path, monkeypatch):
    write_records(shorten(plan, 30), tmp_path / "out")
    before = read_bytes(tmp_path / "out")
    (leave_finished_shards(plan, tmp_path / "out", monkeypatch) / "train-00001.parquet").unlink()
    with pytest.raises(ValueError, match=r"every shard of the run, but .*lacks \['train-00001.parquet'\]; remove it"):
        write_records(plan, tmp_path / "out", 1, SHARD_BYTES)
    after = read_bytes(tmp_path / "out")
    assert {name: after[name] for name in before} == before


def test_second_run_on_a_folder_is_an_error_and_the_first_one_goes_on(plan, tmp_path, reads):
    def run_again():
        for write in (write_records, write_study_records):
            with pytest.raises(ValueError, match="`output` must be a folder that no other run writes to, got .*out"):
                write(plan, tmp_path / "out")

    reads.at, reads.action = 300, run_again
    write_records(with_reader(plan, reads.read), tmp_path / "out", 1, SHARD_BYTES)
    write_records(plan, tmp_path / "whole", 1, SHARD_BYTES)
    assert reads.count == 450 and read_bytes(tmp_path / "out") == read_bytes(tmp_path / "whole")


def test_shards_of_another_plan_are_not_taken_over(plan, tmp_path, reads):
    plan, reads.at = with_reader(plan, reads.read), 300
    reads.action = interrupt
    with pytest.raises(KeyboardInterrupt):
        write_records(plan, tmp_path / "out", 1, SHARD_BYTES)
    other = replace(plan, studies=[replace(study, report="Other.") for study in plan.studies])
    write_records(other, tmp_path / "out", 1, SHARD_BYTES)
    reports = [load_study_records(tmp_path / "out", split)["report"][:] for split in SPLIT_NAMES]
    assert sum(reports, []) == ["Other."] * 300


def test_earlier_records_stay_until_a_new_run_is_complete(plan, tmp_path, reads):
    write_records(plan, tmp_path / "out")
    before, reads.at = read_bytes(tmp_path / "out"), 50
    reads.action = interrupt
    with pytest.raises(KeyboardInterrupt):
        write_records(with_reader(plan, reads.read), tmp_path / "out")
    after = read_bytes(tmp_path / "out")
    assert {name: after[name] for name in before} == before
    summary = write_records(shorten(plan, 6), tmp_path / "out")
    assert summary["records"] == 6 and not (tmp_path / "out" / ".unfinished").exists()


@pytest.fixture
def poisoned(plan):
    """Chunks of 30 patients, one of whom has a file of the name that readers may die of."""
    studies = [*plan.studies]
    studies[4] = replace(studies[4], frontals=(ImageFile("poison.png"),))
    return list(chunk_patients(studies[start : start + 3] for start in range(0, 90, 3)))


def test_workers_that_the_system_kills_end_the_run_and_lose_no_patient(plan, poisoned):
    corpus = replace(plan.corpus, read_image=be_killed_at_poison)
    with pytest.raises(ChildProcessError, match=r"killed workers.* smaller `num_proc`.* \['s3', 's4', 's5'\]"):
        list(run_local(corpus, poisoned, 2))


def test_file_that_kills_its_reader_loses_its_patient_only(plan, poisoned):
    corpus = replace(plan.corpus, read_image=kill_at_poison)
    made = [patient for chunk in run_local(corpus, poisoned, 2) for patient in chunk]
    assert [len(patient.records) for patient in made] == [3, 0] + [3] * 28
    why = "a file of the patient kills the process that reads it"
    assert made[1].excluded == {f"study: {why}": 3, f"row: {why}": 5}


def test_reader_that_cannot_be_sent_to_workers_is_an_error(plan):
    corpus = replace(plan.corpus, read_image=lambda path: path)
    with pytest.raises(ValueError, match="`corpus` must be picklable"):
        next(run_local(corpus, [[plan.studies[:3]]], 2))


def test_memory_does_not_grow_with_the_records(tmp_path):
    names = write_radiographs(tmp_path, 200, (110, 110))
    plan = plan_synthetic(tmp_path, names, 1800)
    write_records(shorten(plan, 300), tmp_path / "out")  # what is loaded once is no growth
    with PeakMemory(interval=0.05, anonymous=True) as memory:
        start = memory.peak
        write_records(plan, tmp_path / "out", 1, 10_000_000)
    size = sum(path.stat().st_size for path in (tmp_path / "out").rglob("*.parquet"))
    assert size > 28e6 and memory.peak - start < 0.6 * size


def test_official_split_goes_before_the_hash(plan, tmp_path):
    studies = [replace(study, split="validation") for study in plan.studies[:30]]
    summary = write_records(replace(plan, studies=studies, totals={}), tmp_path / "out")
    assert {name: counts["records"] for name, counts in summary["splits"].items()} == {
        "train": 0,
        "validation": 30,
        "test": 0,
    }


def test_summary_says_what_was_read_and_adds_up(plan, tmp_path):
    plan = replace(plan, excluded=Counter({"row: no patient": 2, "study: no patient": 1}), totals={"rows": 452})
    plan = replace(plan, corpus=replace(plan.corpus, settings={"report": "impression"}))
    summary = write_records(plan, tmp_path / "out")
    assert summary == json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["corpus"] == "synthetic" and summary["settings"] == {"report": "impression"}
    assert summary["studies"] == 301 == summary["records"] + 1
    assert summary["rows"] == summary["images"] + summary["excluded"]["row: no patient"]
    assert summary["records"] == summary["with_prior"] + sum(summary["without_prior"].values())
    assert "  first study of the patient: 100" in format_summary(summary)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([{"laterals": (ImageFile("0.png"),)}], "got 1 rows, 2 images and 0 rows left out"),
        ([{}, {"frontals": ()}], "unique ids, got 's0' twice"),
        ([{"split": "dev"}], "`split` must be one of .* got 'dev'"),
        (
            [{"split": "test"}, {"study_id": "s1", "split": "train", "frontals": ()}],
            "same for all studies of a patient",
        ),
        ([{"time": float("inf")}], "`times` must be finite"),
        (
            [{"frontals": (ImageFile("gone.png"),)}],
            "No study record could be made; left out: {'row: file is m",
        ),
    ],
)
def test_plan_that_breaks_its_rules_is_an_error(plan, tmp_path, changes, message):
    studies = [replace(plan.studies[0], **change) for change in changes]
    with pytest.raises(ValueError, match=message):
        write_records(replace(plan, studies=studies, totals={"rows": 1}), tmp_path / "out")


@pytest.mark.parametrize("setting", [{"num_proc": 0}, {"max_shard_bytes": 0}, {"backend": "spark"}])
def test_setting_out_of_range_is_an_error_that_names_it(plan, tmp_path, setting):
    with pytest.raises(ValueError, match=f"`{next(iter(setting))}` must be"):
        write_records(plan, tmp_path / "out", **setting)


def test_command_of_a_corpus_passes_its_options_on(plan, tmp_path, capsys):
    parser = corpus_parser("synthetic", "made up")
    parser.add_argument("--number", type=int)
    command = ["--root", str(tmp_path), "--output", str(tmp_path / "out"), "--max-shard-bytes", "900", "--number", "9"]
    run_corpus(parser, lambda options: shorten(plan, options.number), command)
    assert "9 records, 6 with a prior" in capsys.readouterr().out
    assert len(list((tmp_path / "out" / "data").iterdir())) > 1


def test_command_of_a_corpus_writes_images_in_the_format_that_was_asked_for(plan, tmp_path):
    reader = with_reader(plan, CountedReads.read)
    for image_format, start in (("png", b"\x89PNG"), ("tiff", b"II*\0")):
        command = ["--root", str(tmp_path), "--output", str(tmp_path / "out"), "--image-format", image_format]
        run_corpus(corpus_parser("synthetic", "made up"), lambda options: shorten(reader, 9), command)
        records = load_study_records(tmp_path / "out", "train").cast_column("current_frontal", RAW_IMAGE)
        assert all(image["bytes"].startswith(start) for image in records["current_frontal"])
        summary = json.loads((tmp_path / "out" / "summary.json").read_text())
        assert summary["images_as"] == {"format": image_format.upper(), "short_side": 512}


def test_a_run_does_not_go_on_after_shards_of_another_format(plan, tmp_path, reads):
    reads.at, reads.action = 150, interrupt
    with pytest.raises(KeyboardInterrupt):
        write_records(with_reader(plan, reads.read), tmp_path / "out", 1, SHARD_BYTES)
    done = reads.count
    tiff = replace(plan, corpus=replace(plan.corpus, image_format="tiff"))
    summary = write_records(with_reader(tiff, reads.read), tmp_path / "out", 1, SHARD_BYTES)
    assert summary["images"] == reads.count - done
