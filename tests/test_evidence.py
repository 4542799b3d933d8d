import json
import os
import shutil
from dataclasses import replace

import pytest
import torch
from conftest import ROOT

from eval.prompts import load_prompts
from evidence import jobs
from evidence import run as run_module
from evidence.arms import ARMS, COVID_ARMS, FAMILIES, LONGER_ARMS, PHANTOM_ARMS, REASON_ARMS
from evidence.jobs import CORPORA, prepare_seed, run_arm
from evidence.measures import RECALLS, measure
from evidence.models import base_model, build_model
from evidence.report import claims, compare, learnt_by_heart, main, render_reasons, render_results, repeats, summarize
from evidence.run import run_experiment, run_sweep
from evidence.settings import QUICK, STANDARD
from evidence.studies import Studies, keep_frontals, load_studies
from evidence.training import _optimizer
from modeling_alta.convert_alta import read_tokenizer
from training.stage import count_parameters


SEED = 0
WORDS = "text_model.embeddings.word_embeddings.weight"


def fake_run(arm, seed, recall, share=0.08):
    figure = {"value": recall, "chance": 0.1}
    names = ("text_to_image_1", "text_to_image_5", "image_to_text_1", "image_to_text_5")
    return {
        "arm": arm,
        "seed": seed,
        "learning_rate": 1e-3,
        "parameters": {"trainable_share": share},
        "training": {"cpu_seconds": 1.0, "steps": 2},
        "figures": {
            **dict.fromkeys(names, figure),
            "candidates": 10,
            "groups": 2,
            "macro_auroc": {"value": 0.5, "chance": 0.5},
            "auroc": {"Nodule": {"value": 0.5, "chance": 0.5}},
        },
    }


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evidence")
    prepare_seed("phantom", SEED, QUICK, folder, None)
    return folder


def build(name, work):
    return build_model(ARMS[name], QUICK, work / f"phantom-{SEED}", SEED)


def test_the_adapter_arm_trains_at_most_a_tenth_of_the_parameters(work):
    model = build_model(ARMS["adapters"], STANDARD, work / f"phantom-{SEED}", SEED)
    assert count_parameters(model)["trainable_share"] <= 0.1


def test_heads_alone_leave_both_towers_frozen_and_full_fine_tuning_trains_them(work):
    heads, full = (
        {name for name, parameter in build(arm, work).named_parameters() if parameter.requires_grad}
        for arm in ("heads", "full")
    )
    assert heads and not any(name.startswith(("vision_model", "text_model")) for name in heads)
    assert {"vision_model.blocks.0.attn.qkv.weight", WORDS} <= full
    assert "vision_model.pos_embed" not in full


def test_the_random_arm_shares_only_the_text_tower_with_the_method(work):
    method, random = (base_model(build(arm, work)).state_dict() for arm in ("heads", "random"))
    name = "vision_model.blocks.0.attn.qkv.weight"
    assert torch.equal(method[WORDS], random[WORDS]) and not torch.equal(method[name], random[name])


def test_an_opened_tower_trains_beside_the_adapters_while_the_other_stays_frozen(work):
    trained = [name for name, parameter in build("open_text", work).named_parameters() if parameter.requires_grad]
    assert any(name.endswith("text_model.embeddings.word_embeddings.weight") for name in trained)
    assert any("alta_adapter_down" in name and "vision_model" in name for name in trained)
    assert not any("vision_model" in name and "qkv" in name for name in trained)


def test_an_opened_tower_trains_at_a_rate_of_its_own(work):
    model = build("open_text", work)
    groups = _optimizer(model, 1e-2, 1e-3).param_groups
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    of_name = {name: rates[id(parameter)] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {rate for name, rate in of_name.items() if "alta_adapter" in name or "modules_to_save" in name} == {1e-2}
    assert of_name[next(name for name in of_name if name.endswith("word_embeddings.weight"))] == 1e-3


def test_slow_heads_leave_the_adapters_rate_to_the_towers_alone(work):
    model = build("slow_heads", work)
    groups = _optimizer(model, 1e-2, 1e-3, slow_heads=True).param_groups
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    fast = {name for name, parameter in model.named_parameters() if rates.get(id(parameter)) == 1e-2}
    slow = {name for name, parameter in model.named_parameters() if rates.get(id(parameter)) == 1e-3}
    assert fast and all(".vision_model." in name or ".text_model." in name for name in fast)
    assert any(".image_projection." in name for name in slow) and any(".logit_scale." in name for name in slow)
    assert not any(".vision_model." in name or ".text_model." in name for name in slow)


def test_wide_adapters_are_as_wide_as_the_tower(work):
    widths = {name: p.shape[0] for name, p in build("wide", work).named_parameters() if "adapter_down" in name}
    assert QUICK.model["vision_config"]["hidden_size"] in widths.values()


def test_an_arm_of_few_studies_trains_on_the_first_alone(work, monkeypatch):
    seen = []
    monkeypatch.setitem(ARMS, "few_full", replace(ARMS["few_full"], num_studies=5))
    monkeypatch.setattr(jobs, "sample_batches", lambda studies, *rest: seen.append(studies) or iter(()))
    with pytest.raises(StopIteration):
        run_arm("phantom", SEED, "few_full", QUICK, work, 1e-3)
    assert len(seen[0].samples) == 5


def test_recalls_are_means_over_groups_of_candidates(work):
    folder = work / f"phantom-{SEED}"
    studies = load_studies(folder / "records", ("test",), QUICK, 16)
    arguments = base_model(build("heads", work)).eval(), read_tokenizer(folder / "text_encoder")
    prompts = load_prompts(CORPORA["phantom"][0])
    whole, *halves = (measure(*arguments, part, prompts, 8) for part in (studies, studies[:8], studies[8:]))
    assert (whole["candidates"], whole["groups"], halves[0]["groups"]) == (8, 2, 1)
    for recall in RECALLS:
        assert whole[recall]["value"] == pytest.approx(sum(half[recall]["value"] for half in halves) / 2)


def test_an_arm_is_measured_on_unseen_studies_and_repeats_with_its_seed(work):
    runs = [run_arm("phantom", SEED, "adapters", QUICK, work, 1e-3) for _ in range(2)]
    assert runs[0]["figures"] == runs[1]["figures"]
    assert runs[0]["figures"]["candidates"] == QUICK.num_candidates
    assert runs[0]["training"]["steps"] == QUICK.steps


def test_the_frontal_arm_sees_no_other_view():
    sample = {"view_mask": torch.tensor([True, True, True, False])}
    without = {"view_mask": torch.tensor([False, True, False, False])}
    kept = keep_frontals(Studies([sample, without], [["a"], ["b"]]))
    assert [sample["view_mask"].tolist() for sample in kept.samples] == [[True, False, False, False]]
    assert kept.labels == [["a"]]


def test_experiment_and_sweep_run_every_job_and_the_report_has_their_figures(tmp_path):
    results = run_experiment("phantom", ("adapters", "full", "frontal"), QUICK, tmp_path, workers=1)
    assert [(run["seed"], run["arm"]) for run in results["runs"]] == [
        (seed, arm) for seed in QUICK.seeds for arm in ("adapters", "full", "frontal")
    ]
    sweep = run_sweep(QUICK, tmp_path, workers=1)
    assert {family: len(rates) for family, rates in sweep["rates"].items()} == {
        family: len(rates) for family, rates in QUICK.sweep.items()
    }
    reasons = run_experiment(
        "phantom", ("adapters", "full"), QUICK, tmp_path, workers=1, on_validation=True, reuse=True
    )
    assert {run["seed"] for run in reasons["runs"]} == set(QUICK.validation_seeds)
    for name, content in (("phantom", results), ("sweep", sweep), ("reasons", reasons), ("reasons_longer", reasons)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    main(["--results", str(tmp_path), "--output", str(tmp_path / "RESULTS.md")])
    page = (tmp_path / "RESULTS.md").read_text()
    assert all(ARMS[arm].title in page for arm in ("adapters", "full", "frontal"))
    assert "chance" in page and page == render_results(tmp_path)
    reasons_page = (tmp_path / "reasons.md").read_text()
    assert reasons_page.count(f"| {ARMS['full'].title} |") == 3 and "pretrained for longer" in reasons_page


def test_report_without_any_result_says_what_it_needs(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["--results", str(tmp_path)])
    assert "`--results` must hold phantom.json" in capsys.readouterr().err


def test_report_names_the_arms_that_a_part_of_the_experiment_lacks(tmp_path, capsys):
    (tmp_path / "reasons.json").write_text(json.dumps({"runs": [fake_run("adapters", 0, 0.2)]}))
    with pytest.raises(SystemExit):
        main(["--results", str(tmp_path)])
    assert "`reasons.json` must hold the arms ['full']" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("purpose", "name"),
    [([], "phantom"), (["--reasons"], "reasons"), (["--reasons", "--pretraining", "2"], "reasons_longer")],
)
@pytest.mark.parametrize(("part", "is_kept"), [([], True), (["--arms", "full"], False), (["--seeds", "1"], False)])
def test_a_part_of_the_experiment_does_not_replace_the_figures_that_the_repository_keeps(
    purpose, name, part, is_kept, monkeypatch
):
    written = []
    monkeypatch.setattr(os, "environ", dict(os.environ))  # the command sets some for its workers
    monkeypatch.setattr(run_module, "run_experiment", lambda *arguments: {"runs": [], "seconds": 0.0})
    monkeypatch.setattr(run_module, "write_json", lambda results, path: written.append(path))
    run_module.main([*purpose, *part])
    assert written == [(run_module.RESULTS if is_kept else run_module.WORK) / f"{name}.json"]


def test_the_pages_of_the_repository_have_the_figures_that_it_keeps():
    assert (ROOT / "RESULTS.md").read_text() == render_results(ROOT / "evidence")
    assert (ROOT / "evidence" / "reasons.md").read_text() == render_reasons(ROOT / "evidence")


def test_an_arm_trains_at_its_own_rate_and_with_slow_heads_where_it_says_so(work, monkeypatch):
    given = []
    monkeypatch.setattr(jobs, "train", lambda *arguments: given.append(arguments[-1]) or {}["trained"])
    for arm in ("adapters", "slow_heads"):
        with pytest.raises(KeyError, match="trained"):
            run_arm("phantom", SEED, arm, QUICK, work, 1e-3)
    assert given == [False, True]
    assert [run_module.learning_rate_of(ARMS[arm], STANDARD) for arm in ("adapters", "wide")] == [1e-2, 3e-3]


def test_a_prepared_seed_is_taken_again_only_when_asked_and_of_the_same_settings(work, monkeypatch, tmp_path):
    copy, made = shutil.copytree(work, tmp_path / "copy"), []
    monkeypatch.setattr(jobs, "prepare_phantom", lambda *arguments: made.append(arguments) or {}["made again"])
    assert prepare_seed("phantom", SEED, QUICK, copy, None, reuse=True)["mrm"]["steps"] == QUICK.mrm_steps
    assert not made
    with pytest.raises(KeyError, match="made again"):
        prepare_seed("phantom", SEED, replace(QUICK, mrm_steps=3), copy, None, reuse=True)
    with pytest.raises(KeyError, match="made again"):
        prepare_seed("phantom", SEED, QUICK, copy, None)
    assert not (copy / f"phantom-{SEED}" / "prepared.json").exists()


def test_longer_pretraining_lengthens_both_towers_and_nothing_else():
    longer = STANDARD.with_longer_pretraining(3)
    assert longer.mrm_steps == 3 * STANDARD.mrm_steps
    assert longer.text_encoder["epochs"] == 3 * STANDARD.text_encoder["epochs"]
    assert replace(longer, mrm_steps=STANDARD.mrm_steps, text_encoder=STANDARD.text_encoder) == STANDARD


def test_comparisons_are_of_the_same_seeds_and_claims_follow_from_them():
    recalls = {"adapters": (0.3, 0.4), "full": (0.35, 0.39), "frontal": (0.2, 0.36)}
    results = {"runs": [fake_run(arm, seed, values[seed]) for arm, values in recalls.items() for seed in (0, 1)]}
    # -5 and +1 points: mean -2, deviation 4.24
    found = compare(results, "adapters", "full", "text_to_image_1")
    assert found["mean"] == pytest.approx(-2) and found["std"] == pytest.approx(4.2426, abs=1e-3)
    assert found["interval"] == pytest.approx((-2 - 12.706 * 3, -2 + 12.706 * 3), abs=0.01)  # t of one degree, 0.975
    said = claims(results)
    assert said["share_holds"] and said["against"]["frontal"]["found"]["image_to_text_1"]["mean"] == pytest.approx(7)
    assert {claim["verdict"] for claim in said["against"].values()} == {"not decided: too few seeds"}


@pytest.mark.parametrize(
    ("others", "verdict"),
    [
        ((0.24, 0.25, 0.24), "holds"),  # ahead by 6, 5.5 and 6.5 points: 4.6 to 7.4
        ((0.24, 0.34, 0.14), "not decided"),  # by 6, -3.5 and 16.5
        ((0.30, 0.305, 0.31), "does not hold"),  # by 0, 0 and -0.5
    ],
)
def test_a_claim_is_decided_by_the_interval_and_not_by_the_mean_alone(others, verdict):
    method = (0.30, 0.305, 0.305)
    runs = [fake_run("adapters", seed, value) for seed, value in enumerate(method)]
    runs += [fake_run("clip", seed, value) for seed, value in enumerate(others)]
    assert claims({"runs": runs})["against"]["clip"]["verdict"] == verdict


def test_arms_that_two_experiments_ran_are_told_beside_each_other():
    sweep = {"seeds": [100, 101], "rates": {"adapters": {"0.01": [0.3, 0.4], "0.003": [0.1, 0.1]}}}
    runs = [
        fake_run("adapters", 100, 0.35) | {"learning_rate": 0.01},
        fake_run("wide", 100, 0.2) | {"learning_rate": 0.003},
    ]
    found = repeats(sweep, {"runs": runs})
    assert list(found) == ["adapters"] and found["adapters"]["rate"] == "0.01"
    assert found["adapters"]["sweep"] == pytest.approx([30]) and found["adapters"]["reasons"] == pytest.approx([35])


def test_what_was_learnt_by_heart_is_the_lead_of_seen_studies_in_points():
    runs = [fake_run("full", 0, 0.3), fake_run("full", 1, 0.3)]
    for run, seen in zip(runs, (0.4, 0.6), strict=True):
        run["seen"] = dict.fromkeys(run["figures"], {"value": seen})
    assert learnt_by_heart({"runs": runs})["full"]["text_to_image_5"] == pytest.approx((20.0, 14.1421), abs=1e-3)


def test_summary_is_in_points():
    prepared = {"0": {"seconds": 1.0, "records": {"splits": {"train": {"records": 5}}}}}
    runs = [fake_run("adapters", seed, recall) for seed, recall in ((0, 0.2), (1, 0.4))]
    summary = summarize({"runs": runs, "seconds": 60.0, "workers": 2, "prepared": prepared, "settings": {}})
    assert summary["arms"]["adapters"]["text_to_image_1"] == pytest.approx((30.0, 14.1421), abs=1e-3)
    assert summary["chance"]["text_to_image_1"] == pytest.approx(10.0) and summary["minutes"] == 1


def test_every_family_of_arms_has_a_rate_and_a_sweep():
    families = {arm.family for arm in ARMS.values()}
    assert families == set(FAMILIES) == set(STANDARD.learning_rates) == set(STANDARD.sweep)
    assert set(PHANTOM_ARMS) | set(COVID_ARMS) | set(REASON_ARMS) == set(ARMS) and set(LONGER_ARMS) <= set(ARMS)
    assert all(STANDARD.learning_rates[family] in rates for family, rates in STANDARD.sweep.items())


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--corpus", "covid_cxr"], "`--covid-root` must be the folder"),
        (["--corpus", "covid_cxr", "--reasons"], "`--sweep` and `--reasons` take `--corpus phantom` alone"),
        (["--sweep", "--reasons"], "not allowed with"),
        (["--sweep", "--arms", "full"], "`--sweep` tries arms of its own, got `--arms` full"),
        (["--pretraining", "3"], "`--pretraining` goes with `--reasons` alone, got 3"),
    ],
)
def test_command_names_what_is_missing_or_does_not_go_together(arguments, error, capsys):
    with pytest.raises(SystemExit) as stop:
        run_module.main(arguments)
    assert stop.value.code == 2 and error in capsys.readouterr().err
