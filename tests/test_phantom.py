import hashlib
import json
import re
from collections import defaultdict

import numpy as np
import pytest

from processing.corpora.phantom_findings import SLOTS, change_of, draw_findings, draw_next_findings, visible_findings
from processing.corpora.phantom_images import draw_anatomy, draw_view
from processing.corpora.phantom_reports import CHANGES, NEGATIVES, SIZES, write_sections
from processing.phantom import draw_patient, main, make_records, prepare_phantom
from processing.records.study_features import SPLIT_NAMES
from processing.records.study_records import load_study_records


SIZE = 64
FRONTAL_SLOTS = [slot for slot in SLOTS if not slot.only_lateral]
LATERAL_SLOTS = [slot for slot in SLOTS if slot.only_lateral]


def slot_of(kind, place=""):
    return next(slot for slot in SLOTS if (slot.kind, slot.place) == (kind, place))


def draw(found, view="frontal", seed=3):
    anatomy = draw_anatomy(np.random.default_rng(seed))
    return draw_view(anatomy, found, view, SIZE, np.random.default_rng([seed, 1])).astype(int)


def difference(found, view="frontal"):
    return draw(found, view) - draw({}, view)


def write(found, before=None, has_lateral=True, prior_has_lateral=True, seed=0):
    sections = write_sections(found, before, has_lateral, prior_has_lateral, np.random.default_rng(seed))
    return sections["findings"], sections["impression"]


def digest(records):
    return hashlib.sha256("".join(map(repr, records)).encode()).hexdigest()


def name_of(slot):
    return {"cardiomegaly": "cardiomegaly|enlargement"}.get(slot.kind, slot.kind.replace("nodule", "nodule|nodular"))


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others():
    first, again, other = (digest(make_records(12, seed, SIZE)) for seed in (0, 0, 1))
    assert first == again != other


def test_more_studies_leave_the_first_ones_as_they_are():
    few, many = list(make_records(5, 0, SIZE)), list(make_records(9, 0, SIZE))
    assert digest(few) == digest(many[:5])


@pytest.mark.parametrize("slot", FRONTAL_SLOTS, ids=lambda slot: f"{slot.kind} {slot.place}")
def test_a_finding_of_the_frontal_changes_it_and_more_where_it_is_larger(slot):
    changed = [(abs(difference({slot: size})) > 8).sum() for size in range(1, slot.largest + 1)]
    assert changed[0] >= 8
    assert changed == sorted(set(changed))


@pytest.mark.parametrize("slot", LATERAL_SLOTS, ids=lambda slot: f"{slot.kind} {slot.place}")
def test_what_only_the_lateral_shows_leaves_the_frontal_as_it_is(slot):
    for size in range(1, slot.largest + 1):
        assert not difference({slot: size}).any()
        assert (abs(difference({slot: size}, "lateral")) > 8).sum() >= 8


def test_an_effusion_fills_the_base_of_its_own_side():
    right = difference({slot_of("pleural effusion", "right"): 2})
    left = difference({slot_of("pleural effusion", "left"): 2})
    half = SIZE // 2
    assert right[half:, :half].max() > 40 and abs(right[:, half:]).max() < 8
    assert left[half:, half:].max() > 40 and abs(left[:, :half]).max() < 8
    assert abs(right[: half - 8]).max() < 8


def test_a_pneumothorax_is_dark_at_the_apex_of_its_own_side():
    right = difference({slot_of("pneumothorax", "right"): 2})
    assert right[:40, :32].min() < -20 and abs(right[:, 36:]).max() < 8


def test_a_nodule_is_bright_in_its_zone_alone():
    upper_right = difference({slot_of("nodule", "right upper zone"): 2}) > 20
    rows, columns = upper_right.nonzero()
    assert 0.2 < rows.mean() / SIZE < 0.4 and 0.2 < columns.mean() / SIZE < 0.4


def test_cardiomegaly_widens_the_heart_on_both_views():
    found = {slot_of("cardiomegaly"): 2}
    for view in ("frontal", "lateral"):
        changed = difference(found, view)
        assert changed.max() > 40 and changed[: SIZE // 3].max() < 8


def test_patients_are_built_differently():
    assert abs(draw({}, seed=3) - draw({}, seed=4)).mean() > 2


@pytest.mark.parametrize("seed", range(40))
def test_the_report_says_what_is_there_and_nothing_else(seed):
    found = draw_findings(np.random.default_rng(seed))
    text = " ".join(write(found, seed=seed)).lower()
    for negative in NEGATIVES.values():
        text = text.replace(negative.lower(), "")
    for slot in SLOTS:
        is_said = re.search(name_of(slot), text) is not None
        assert is_said == any(other.kind == slot.kind for other in found)
        if slot in found and slot.kind in SIZES:
            assert SIZES[slot.kind][found[slot] - 1] in text


def test_without_a_lateral_the_report_is_silent_about_what_it_alone_shows():
    found = {slot_of("nodule", "behind the heart"): 2}
    assert "behind the heart" in write(found)[0] and "lateral" in write(found)[0].lower()
    assert "nodul" not in " ".join(write(found, has_lateral=False)).lower().replace("no pulmonary nodule", "")
    assert visible_findings(found, has_lateral=False) == {}


@pytest.mark.parametrize(
    "before, now, change", [(0, 2, "new"), (2, 0, "resolved"), (1, 2, "larger"), (2, 1, "smaller")]
)
def test_the_wording_of_a_change_is_that_of_the_prior(before, now, change):
    slot = slot_of("pleural effusion", "left")
    sizes = [{slot: size} if size else {} for size in (before, now)]
    findings, _ = write(sizes[1], before=sizes[0])
    said = {name for name, words in CHANGES.items() if any(text in findings for text in words)}
    assert said == {change} == {change_of(before, now)}


def test_nothing_is_compared_without_a_prior_or_with_a_lateral_that_the_prior_lacks():
    found = {slot_of("nodule", "behind the heart"): 1}
    words = [text for texts in CHANGES.values() for text in texts]
    for findings, _ in (write(found), write(found, before={}, prior_has_lateral=False)):
        assert not any(text in findings for text in words)
    assert any(text in write(found, before={})[0] for text in words)


def test_findings_go_on_from_the_prior():
    rng = np.random.default_rng(0)
    before = {slot_of("cardiomegaly"): 1}
    sizes = [draw_next_findings(before, rng).get(slot_of("cardiomegaly"), 0) for _ in range(200)]
    assert {0, 1, 2} == set(sizes) and sizes.count(2) > 30


def test_records_load_split_by_patient_with_priors_that_are_records(tmp_path):
    summary = prepare_phantom(tmp_path, 150, seed=2, size=32)
    splits = {name: load_study_records(tmp_path, name) for name in SPLIT_NAMES}
    patients = defaultdict(set)
    for name, records in splits.items():
        ids = dict(zip(records["study_id"], records["current_frontal"], strict=True))
        for record in records:
            patients[record["patient_id"]].add(name)
            assert record["labels"] and record["report"]
            if record["prior_study_id"]:
                assert record["prior_frontal"] == ids[record["prior_study_id"]] and record["days_since_prior"] > 0
    assert sum(map(len, splits.values())) == summary["records"] == 150
    assert all(len(names) == 1 for names in patients.values())


def test_studies_of_a_patient_share_the_anatomy_and_differ_in_findings():
    patients = [draw_patient(0, index) for index in range(30)]
    several = [studies for studies in patients if len(studies) > 1]
    assert several and all(len({study.anatomy for study in studies}) == 1 for studies in several)
    assert any(studies[0].found != studies[1].found for studies in several)


def test_command_writes_records_and_refuses_no_studies(tmp_path, capsys):
    main(["--output", str(tmp_path), "--num-studies", "20", "--seed", "1", "--size", "32"])
    assert "20 studies" in capsys.readouterr().out
    assert json.loads((tmp_path / "summary.json").read_text())["seed"] == 1
    with pytest.raises(SystemExit):
        main(["--output", str(tmp_path), "--num-studies", "0"])
    assert "`num_studies` must be at least 1, got 0" in capsys.readouterr().err
