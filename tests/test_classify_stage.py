import pytest
import torch
from safetensors.torch import load_file
from trained import losses_of, train
from transformers import AutoModelForImageClassification

from processing.batches.label_batch import count_labels
from processing.records.study_records import load_study_records
from training.watching import VALIDATION_LOG, read_log


@pytest.mark.parametrize("tuning", ["full", "adapter", "linear_probe"])
def test_a_classifier_trains_over_an_mrm_tower_and_loads_as_one(mrm_run, work, tuning):
    run = train(work, "classify", f"classify_{tuning}", base=f"{mrm_run}/model", tuning=tuning, validate_every=3)
    assert [row["step"] for row in losses_of(run)] == list(range(1, len(losses_of(run)) + 1))
    model = AutoModelForImageClassification.from_pretrained(run / "full")
    names = list(count_labels(load_study_records(work / "records", "train")))
    assert [model.config.id2label[index] for index in range(model.config.num_labels)] == names
    assert "macro_auroc" in read_log(run / VALIDATION_LOG)[-1]
    tower = "vision_model.blocks.0.attn.qkv.weight"
    is_kept = torch.equal(model.state_dict()[tower], load_file(mrm_run / "model" / "model.safetensors")[tower])
    assert is_kept == (tuning != "full")
    if tuning == "adapter":
        over_base = AutoModelForImageClassification.from_pretrained(run / "adapter")
        batch = {"pixel_values": torch.randn(2, 3, 32, 32)}
        with torch.no_grad():
            torch.testing.assert_close(over_base.eval()(**batch).logits, model.eval()(**batch).logits)


def test_labels_of_the_recipe_are_told_apart_in_their_order(mrm_run, work):
    names = list(count_labels(load_study_records(work / "records", "train")))[:2][::-1]
    run = train(work, "classify", "two_labels", base=f"{mrm_run}/model", labels=names, num_epochs=1)
    config = AutoModelForImageClassification.from_pretrained(run / "full").config
    assert [config.id2label[index] for index in range(config.num_labels)] == names


def test_labels_that_no_study_has_are_an_error_that_names_those_there_are(mrm_run, work):
    message = r"`labels` must hold one of those of the split 'train', \[.+\], got \['oedema'\]"
    with pytest.raises(ValueError, match=message):
        train(work, "classify", "unknown_label", base=f"{mrm_run}/model", labels=["oedema"])


def test_a_label_that_no_study_has_beside_one_that_is_there_is_a_warning(mrm_run, work):
    present = next(iter(count_labels(load_study_records(work / "records", "train"))))
    with pytest.warns(UserWarning, match=r"No study of the split 'train' has the `labels` \['oedema'\]"):
        train(work, "classify", "one_unknown", base=f"{mrm_run}/model", labels=[present, "oedema"], num_epochs=1)


def test_a_classifier_over_a_full_model_keeps_its_adapters_inside(alta_run, work):
    run = train(work, "classify", "classifier_over_full", base=f"{alta_run}/full", tuning="linear_probe", num_epochs=1)
    probe = load_file(run / "full" / "model.safetensors")
    full = load_file(alta_run / "full" / "model.safetensors")
    adapters = [name for name in full if name.startswith("vision_model.") and ".adapter." in name]
    assert adapters and all(torch.equal(probe[name], full[name]) for name in adapters)
