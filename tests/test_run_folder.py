import json
import re
import shutil

import accelerate
from trained import arguments_of, train

import train_accelerate
from model_cards.card import build_card
from modeling_alta import AltaForPreTraining
from recipes.recipe import read_recipe
from training.run_folder import describe_commit, write_start


def test_a_run_folder_holds_the_resolved_recipe_which_runs_again(alta_run, work):
    assert read_recipe(alta_run / "recipe.yaml") == arguments_of(work, "alta")


def test_a_run_folder_tells_versions_commit_and_records(alta_run):
    run = json.loads((alta_run / "run.json").read_text())
    assert run["versions"]["accelerate"] == accelerate.__version__
    assert re.fullmatch(r"[0-9a-f]+", run["records_fingerprint"])
    assert run["git"] == describe_commit()
    assert (run["studies"], run["studies_per_step"], run["total_steps"]) == (25, 8, 6)


def test_metrics_tell_the_trained_share_and_the_recipe(alta_run):
    metrics = json.loads((alta_run / "metrics.json").read_text())
    full = AltaForPreTraining.from_pretrained(alta_run / "full")
    full.freeze_pretrained()
    trained = sum(p.numel() for p in full.parameters() if p.requires_grad)
    total = sum(p.numel() for p in full.parameters())
    assert metrics["parameters"] == {"total": total, "trainable": trained, "trainable_share": trained / total}
    run = metrics["run"]
    assert (run["recipe"]["stage"], run["steps"], metrics["records"]["records"]) == ("alta", 6, 39)


def test_a_card_is_filled_from_the_metrics_of_a_run_and_tells_no_folder(alta_run, work):
    metrics = json.loads((alta_run / "metrics.json").read_text())
    metrics["validation"] = {"metric": "text_to_image_recall_at_5", "value": 0.5}
    card = str(build_card(metrics))
    for text in ("| global contrastive loss |", "| records fingerprint |", "| metric | text_to_image_recall_at_5 |"):
        assert text in card
    assert str(work) not in card
    assert "| recipe: best metric |" not in card


def test_a_finished_run_that_is_prolonged_is_no_finished_one(mrm_run, work, monkeypatch):
    settings = {"num_epochs": 1, "checkpoint_every": 3, "validate_every": 3}
    run = train(work, "alta", "prolonged", **settings)
    assert (run / "metrics.json").exists() and (run / "best" / "adapter").is_dir()
    found = []

    def write_and_look(started):
        write_start(started)
        found.extend([(run / "metrics.json").exists(), (run / "best" / "adapter").is_dir()])

    monkeypatch.setattr(train_accelerate, "write_start", write_and_look)
    train(work, "alta", "prolonged", **settings | {"num_epochs": 2}, resume="latest")
    assert found == [False, True] and (run / "metrics.json").exists()
    shutil.rmtree(run / "checkpoints")
    train(work, "alta", "prolonged", **settings | {"validate_every": 0})
    assert found[2:] == [False, False]  # nor has a run that starts anew the best of the one before
