import logging
import re
import runpy
import shutil

import pytest
import torch
from conftest import ROOT
from peft import PeftModel
from safetensors.torch import load_file, save_file
from trained import losses_of, settings_of, start_training, train, write_recipe
from transformers import AutoModel

from modeling_alta import AltaForMaskedRecordModeling, AltaForPreTraining, AltaModel, AltaProcessor
from processing.records.study_records import load_study_records
from recipes.recipe import RecipeError


def embeddings(model, records) -> torch.Tensor:
    processor = AltaProcessor.from_pretrained(records.parent / "alta" / "full")
    record = load_study_records(records, "test")[0]
    images = {"current_frontal": record["current_frontal"], "prior_frontal": record["prior_frontal"]}
    with torch.no_grad():
        return model.eval()(**processor(images=images, return_tensors="pt")).image_embeds


def test_mrm_stage_writes_what_starts_alta(mrm_run):
    assert {"model.safetensors", "config.json", "processor_config.json"} <= {
        p.name for p in (mrm_run / "model").iterdir()
    }
    log = losses_of(mrm_run)
    assert [row["step"] for row in log] == [1, 2, 3, 4, 5, 6]
    assert log[-1]["loss"] < log[0]["loss"]


def test_alta_stage_writes_an_adapter_and_a_full_model_that_agree(alta_run, work):
    full = AltaModel.from_pretrained(alta_run / "full")
    over_base = PeftModel.from_pretrained(AltaModel.from_pretrained(alta_run / "base"), alta_run / "adapter")
    torch.testing.assert_close(embeddings(over_base, work / "records"), embeddings(full, work / "records"))
    base = AltaModel.from_pretrained(alta_run / "base")
    assert not torch.allclose(embeddings(full, work / "records"), embeddings(base, work / "records"))


def test_a_trained_adapter_loads_by_auto_model_with_a_report_of_foreign_weights_alone(
    alta_run, tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    folder = shutil.copytree(alta_run / "adapter", tmp_path / "adapter")
    weights = load_file(folder / "adapter_model.safetensors")
    assert any("image_decoder" in name for name in weights)
    assert type(AutoModel.from_pretrained(folder)) is AltaModel
    assert "UNEXPECTED" not in caplog.text
    save_file(weights | {"base_model.model.foreign.weight": torch.zeros(1)}, folder / "adapter_model.safetensors")
    AutoModel.from_pretrained(folder)
    assert "foreign" in caplog.text and "image_decoder" not in caplog.text


def test_the_tower_of_the_mrm_run_stays_frozen_under_the_adapters(alta_run, mrm_run):
    full = AltaForPreTraining.from_pretrained(alta_run / "full").state_dict()
    mrm = AltaForMaskedRecordModeling.from_pretrained(mrm_run / "model").state_dict()
    for name in ("patch_embed.proj.weight", "blocks.1.attn.qkv.weight", "pos_embed"):
        assert torch.equal(full[f"vision_model.{name}"], mrm[f"vision_model.{name}"])
    assert torch.equal(full["vision_model.blocks.0.mlp.base.fc1.weight"], mrm["vision_model.blocks.0.mlp.fc1.weight"])
    assert not torch.equal(full["vision_model.norm.weight"], mrm["vision_model.norm.weight"])


def test_a_new_adapter_trains_over_a_full_model(alta_run, work):
    run = train(work, "adapt", "over_full", base=f"{alta_run}/full", num_epochs=1)
    model = AltaModel.from_pretrained(alta_run / "full")
    expected = embeddings(model, work / "records")
    model.load_adapter(run / "adapter", adapter_name="hospital")
    assert not torch.allclose(embeddings(model, work / "records"), expected)
    model.disable_adapters()
    assert torch.equal(embeddings(model, work / "records"), expected)
    assert not (run / "full").exists()


def test_an_adapter_for_another_hospital_starts_from_the_trained_one_and_switches_with_it(alta_run, work):
    base_bytes = (alta_run / "base" / "model.safetensors").read_bytes()
    start = {"base": f"{alta_run}/base", "adapter": f"{alta_run}/adapter"}
    run = train(work, "adapt", "hospital", num_epochs=1, **start)
    still = train(work, "adapt", "still", num_epochs=1, base_learning_rate=0.0, **start)
    assert (alta_run / "base" / "model.safetensors").read_bytes() == base_bytes
    model = PeftModel.from_pretrained(AltaModel.from_pretrained(alta_run / "base"), alta_run / "adapter")
    trained = embeddings(model, work / "records")
    for name, folder in (("hospital", run), ("still", still)):
        model.load_adapter(folder / "adapter", adapter_name=name)
    model.set_adapter("hospital")
    assert not torch.allclose(embeddings(model, work / "records"), trained)
    model.set_adapter("still")
    assert torch.equal(embeddings(model, work / "records"), trained)
    model.set_adapter("default")
    assert torch.equal(embeddings(model, work / "records"), trained)


@pytest.mark.parametrize(
    "peft",
    [
        {"peft_type": "LORA", "target_modules": ["qkv", "query"], "modules_to_save": ["image_projection"]},
        {"peft_type": "LORA", "use_dora": True, "target_modules": ["qkv"], "modules_to_save": ["image_projection"]},
        {"peft_type": "IA3", "target_modules": ["qkv", "fc1"], "feedforward_modules": ["fc1"]},
        {"peft_type": "LN_TUNING", "target_modules": ["norm1", "norm2", "LayerNorm"]},
    ],
    ids=["LoRA", "DoRA", "IA3", "LayerNorms"],
)
def test_any_peft_method_trains_by_recipe_and_merges_into_a_full_model(mrm_run, work, peft, request):
    run = train(work, "alta", request.node.callspec.id, peft=peft, num_epochs=1)
    full = AltaModel.from_pretrained(run / "full")
    assert not full.config.use_adapters
    over_base = PeftModel.from_pretrained(AltaModel.from_pretrained(run / "base"), run / "adapter")
    batch = {"pixel_values": torch.randn(2, 3, 32, 32)}
    with torch.no_grad():
        torch.testing.assert_close(over_base.eval()(**batch).image_embeds, full.eval()(**batch).image_embeds)


@pytest.mark.parametrize("missing_views", ["token", "skip"])
def test_bfloat16_trains_to_nearly_the_same_losses(mrm_run, work, missing_views):
    settings = {"model": {"missing_views": missing_views}, "num_epochs": 1}
    full, half = (
        losses_of(train(work, "alta", precision, mixed_precision=precision, **settings))
        for precision in ("no", "bf16")
    )
    assert [row["loss"] for row in half] == pytest.approx([row["loss"] for row in full], rel=0.02)
    assert half != full


def test_bfloat16_leaves_the_frozen_weights_of_the_exported_model_as_they_were(mrm_run, work):
    peft = {"peft_type": "LORA", "target_modules": ["qkv", "query"], "modules_to_save": ["image_projection"]}
    for name, settings in (("adapters_bf16", {}), ("lora_bf16", {"peft": peft})):
        run = train(work, "alta", name, mixed_precision="bf16", num_epochs=1, validate_every=2, **settings)
        full, base = (load_file(run / folder / "model.safetensors") for folder in ("full", "base"))
        assert all(value.dtype == torch.float32 for value in full.values())
        name = "text_model.encoder.layer.0.attention.self.key.weight"
        assert torch.equal(full[name], base[name])


def test_gradient_checkpointing_trains_to_the_same_losses(mrm_run, work):
    kept, recomputed = (
        losses_of(train(work, "alta", f"recomputed_{on}", gradient_checkpointing=on, num_epochs=1))
        for on in (False, True)
    )
    assert [row["loss"] for row in recomputed] == pytest.approx([row["loss"] for row in kept], rel=1e-5)


def test_streamed_records_train(mrm_run, work):
    run = train(work, "alta", "streamed", streaming=True)
    assert [row["step"] for row in losses_of(run)] == [1, 2, 3, 4, 5, 6]
    train(work, "mrm", "streamed_mrm", streaming=True, num_epochs=1)


def test_more_studies_a_step_than_there_are_is_an_error(mrm_run, work):
    with pytest.raises(ValueError, match="`batch_size` 64 on 1 processes .* takes 64 studies a step; train has 25"):
        train(work, "alta", "large", batch_size=64)


def test_a_base_of_which_the_alignment_would_draw_weights_by_chance_is_an_error(mrm_run, work):
    with pytest.raises(
        ValueError, match="`base` must hold every weight of AltaForPreTraining, got .*/mrm/model' without"
    ):
        train(work, "alta", "over_mrm", base=f"{mrm_run}/model")


@pytest.mark.parametrize(
    ("base", "adapter", "message"),
    [
        ("adapter", None, "`base` must be a full model or a base, got .*, which is an adapter"),
        ("full", "adapter", "`adapter` must be one over .*full', got .*adapter"),
        ("nowhere", "adapter", "`base` must be the folder or Hub id of a model, got .*nowhere"),
    ],
)
def test_folders_that_do_not_fit_each_other_are_an_error_that_names_them(alta_run, work, base, adapter, message):
    settings = {"base": f"{alta_run}/{base}", "adapter": adapter and f"{alta_run}/{adapter}"}
    with pytest.raises(RecipeError, match=message):
        train(work, "adapt", "unfit", **settings)


def test_what_a_recipe_names_and_is_not_there_is_a_line_and_no_traceback(mrm_run, work, tmp_path):
    recipe = write_recipe(tmp_path / "recipe.yaml", settings_of(work, "alta") | {"records": f"{tmp_path}/nowhere"})
    process = start_training(recipe)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 2 and "Traceback" not in output
    assert re.search(r"error: `path` must be .*nowhere", output)


def test_help_names_the_recipe(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["train_accelerate.py", "--help"])
    with pytest.raises(SystemExit, match="^0$"):
        runpy.run_path(str(ROOT / "train_accelerate.py"), run_name="__main__")
    assert "recipe: a YAML file of recipes/" in capsys.readouterr().out
