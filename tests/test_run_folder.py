import json
import re

import accelerate
from trained import arguments_of

from model_cards.card import build_card
from modeling_alta import AltaForPreTraining
from recipes.recipe import read_recipe
from training.run_folder import describe_commit


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
