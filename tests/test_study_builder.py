import errno
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from processing.engine.study_builder import build_patient
from processing.engine.study_plan import Corpus, ImageFile, Study, StudyLeftOut
from tests.test_write_records import write_radiographs


def files(*names):
    return tuple(ImageFile(f"{name}.png") for name in names)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("images")
    write_radiographs(tmp_path, 4, (40, 40))
    (tmp_path / "empty.png").touch()
    (tmp_path / "broken.png").write_bytes((tmp_path / "0.png").read_bytes()[:60])
    Image.fromarray(np.zeros((1, 1), np.uint8)).save(tmp_path / "dot.png")
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    return tmp_path


def build(root, *studies, **corpus):
    """Every study must be a record or counted, and every file kept or counted."""
    made = build_patient(Corpus("test", root, **corpus), studies)
    left_out = {kind: sum(n for why, n in made.excluded.items() if why.startswith(kind)) for kind in ("row", "study")}
    assert len(made.records) + left_out["study"] == len(studies)
    assert made.num_images + left_out["row"] == sum(len(study.frontals + study.laterals) for study in studies)
    return made


def study(study_id, time=None, **fields):
    return Study(study_id, "p", time=time, **({"frontals": files(0), "report": "Text."} | fields))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gone", "row: file is missing"),
        ("empty", "row: file is empty"),
        ("broken", "row: file cannot be decoded"),
        ("bomb", "row: file cannot be decoded"),
        ("dot", "row: image has a side of less than 8 pixels"),
    ],
)
def test_bad_file_is_counted_by_reason_and_the_next_best_is_taken(root, name, reason):
    made = build(root, study("a", frontals=files(name, 1, 2), laterals=files(name)), study("b", frontals=files(name)))
    assert [record["study_id"] for record in made.records] == ["a"] and made.records[0]["current_lateral"] is None
    assert made.excluded[reason] == 3 and made.unreadable == [f"{name}.png"] * 3
    assert made.excluded["row: the study has a better or earlier frontal"] == 1
    assert made.excluded["study: no frontal that can be read"] == 1


def fail_of_disk(path):
    raise OSError(errno.EIO, "Input/output error", str(path))


def fail_because_of_disk(path):
    try:
        fail_of_disk(path)
    except OSError as error:
        raise ValueError(f"{path} is broken") from error


@pytest.mark.parametrize("fail", [fail_of_disk, fail_because_of_disk])
def test_failing_disk_ends_the_run_and_leaves_no_image_and_no_report_out(root, monkeypatch, fail):
    with pytest.raises((OSError, ValueError), match=r"0\.png"):
        build(root, study("a"), read_image=fail)
    with pytest.raises((OSError, ValueError), match=r"a\.txt"):
        build(root, study("a", report_file="a.txt"), read_report=fail)
    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises((OSError, ValueError), match=r"0\.png"):
        build(root, study("a"))


def test_file_that_must_not_be_read_is_counted(root):
    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    made = build(root, study("a"), read_image=refuse)
    assert +made.excluded == {"row: file cannot be decoded": 1, "study: no frontal that can be read": 1}


def test_prior_is_found_in_a_patient_with_200_studies_in_any_order(root):
    order = np.random.default_rng(0).permutation(200).tolist()
    made = build(root, *(study(f"s{day}", day) for day in order))
    priors = {record["study_id"]: record["prior_study_id"] for record in made.records}
    assert priors == {f"s{day}": f"s{day - 1}" if day else None for day in range(200)}
    assert made.without_prior == {"first study of the patient": 1}


def test_studies_at_one_time_are_left_without_prior_and_counted(root):
    made = build(root, study("a", 0), study("b", 1), study("c", 1), study("d", 2))
    assert [record["prior_study_id"] for record in made.records] == [None] * 4
    assert made.without_prior["another study of the patient at the same time"] == 2
    assert made.without_prior["latest earlier time has several studies"] == 1


def test_study_without_report_or_without_frontal_is_no_record_but_only_the_first_is_a_prior(root):
    made = build(root, study("a", 0, report=" "), study("b", 1, frontals=(), laterals=files(1)), study("c", 2))
    assert [(r["study_id"], r["prior_study_id"], r["days_since_prior"]) for r in made.records] == [("c", "a", 2)]
    assert made.excluded["study: empty report"] == 1 and made.excluded["study: no frontal"] == 1
    assert made.excluded["row: lateral of a study without a frontal"] == 1


def test_times_that_only_order_give_no_days(root):
    record = build(root, study("a", 1), study("b", 2), time_unit="order").records[1]
    assert record["prior_study_id"] == "a" and record["days_since_prior"] is None


def test_fields_of_the_chosen_frontal_go_before_those_of_the_study(root):
    named = (ImageFile("gone.png", {"report": "Gone."}), ImageFile("0.png", {"report": "Frontal.", "labels": ["A"]}))
    record = build(root, study("a", frontals=named, license="L", study_datetime=datetime(2020, 1, 2))).records[0]
    assert (record["report"], record["labels"], record["license"]) == ("Frontal.", ["A"], "L")
    assert record["study_datetime"] == datetime(2020, 1, 2)


def read_report(path):
    text = path.read_text(encoding="utf-8")
    if " " not in text:
        raise StudyLeftOut("study: one-word report")
    return {"findings": text, "report": text}


def test_report_file_is_read_in_the_worker_and_left_out_by_reason(root):
    for name, content in {"a": b"Two words", "b": b"Word", "c": b"\xff"}.items():
        (root / f"{name}.txt").write_bytes(content)
    made = build(root, *(study(name, report_file=f"{name}.txt") for name in "abcd"), read_report=read_report)
    assert [(r["report"], r["findings"], r["impression"]) for r in made.records] == [("Two words", "Two words", "")]
    for reason in ("one-word report", "report cannot be read", "report is missing"):
        assert made.excluded[f"study: {reason}"] == 1


def test_unknown_time_unit_is_an_error(root):
    with pytest.raises(ValueError, match=r"`time_unit` must be one of \['day', 'order'\], got 'year'"):
        Corpus("test", root, time_unit="year")
