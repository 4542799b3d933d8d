import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import accelerate.tracking
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from conftest import ROOT, TINY_TEXT, TINY_VISION
from peft import PeftModel

import train_accelerate
from modeling_alta import AltaForPreTraining, AltaModel, AltaProcessor
from processing.covid_cxr import prepare_covid_cxr
from processing.study_records import load_study_records
from processing.text_encoder import main as make_text_encoder
from processing.text_encoder import parse_args
from recipes.recipe import build_arguments


TINY_MODEL = {
    "vision_config": TINY_VISION,
    "decoder_hidden_size": 32,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_patch_size": 16,
}
QUICK = {
    "batch_size": 8,
    "num_epochs": 2,
    "schedule_epochs": 2,
    "warmup_epochs": 1,
    "base_learning_rate": 0.03,
    "log_every": 1,
    "log_with": None,
    "max_gradient_norm": 1.0,
}


@pytest.fixture(autouse=True)
def fresh_accelerator():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """Records of the samples and a text encoder."""
    work = tmp_path_factory.mktemp("work")
    prepare_covid_cxr(ROOT / "samples", work / "records")
    sizes = ["--hidden-size", "32", "--num-attention-heads", "2", "--epochs", "1", "--vocab-size", "300"]
    make_text_encoder(parse_args(["--records", f"{work}/records", "--output", f"{work}/text", *sizes]))
    return work


@pytest.fixture(scope="module")
def mrm_run(work) -> Path:
    train_accelerate.main(arguments(work, "mrm"))
    AcceleratorState._reset_state(reset_partial_state=True)
    return work / "mrm"


@pytest.fixture(scope="module")
def alta_run(work, mrm_run) -> Path:
    train_accelerate.main(arguments(work, "alta"))
    AcceleratorState._reset_state(reset_partial_state=True)
    return work / "alta"


def arguments(work: Path, stage: str, name: str | None = None, **settings):
    start = {"text_encoder": f"{work}/text"}
    if stage == "mrm":
        text_config = {name: value for name, value in TINY_TEXT.items() if name != "max_position_embeddings"}
        start["model"] = TINY_MODEL | {"text_config": text_config}
    elif "base" in settings:
        start = {}
    else:
        start["mrm"] = f"{work}/mrm/model"
    places = {"stage": stage, "records": f"{work}/records", "output_dir": f"{work}/{name or stage}"}
    return build_arguments(places | start | QUICK | settings)


def read_log(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "training_log.jsonl").read_text().splitlines()]


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
    log = read_log(mrm_run)
    assert [row["step"] for row in log] == [1, 2, 3, 4, 5, 6]
    assert log[-1]["loss"] < log[0]["loss"]


def test_alta_stage_writes_an_adapter_and_a_full_model_that_agree(alta_run, work):
    full = AltaModel.from_pretrained(alta_run / "full")
    over_base = PeftModel.from_pretrained(AltaModel.from_pretrained(alta_run / "base"), alta_run / "adapter")
    torch.testing.assert_close(embeddings(over_base, work / "records"), embeddings(full, work / "records"))
    base = AltaModel.from_pretrained(alta_run / "base")
    assert not torch.allclose(embeddings(full, work / "records"), embeddings(base, work / "records"))


def test_the_tower_of_the_mrm_run_stays_frozen_under_the_adapters(alta_run, mrm_run):
    full = AltaForPreTraining.from_pretrained(alta_run / "full").state_dict()
    mrm = train_accelerate.AltaForMaskedRecordModeling.from_pretrained(mrm_run / "model").state_dict()
    for name in ("patch_embed.proj.weight", "blocks.1.attn.qkv.weight", "pos_embed"):
        assert torch.equal(full[f"vision_model.{name}"], mrm[f"vision_model.{name}"])
    assert torch.equal(full["vision_model.blocks.0.mlp.base.fc1.weight"], mrm["vision_model.blocks.0.mlp.fc1.weight"])
    assert not torch.equal(full["vision_model.norm.weight"], mrm["vision_model.norm.weight"])


def test_metrics_file_tells_the_trained_share_and_the_recipe(alta_run):
    metrics = json.loads((alta_run / "metrics.json").read_text())
    full = AltaForPreTraining.from_pretrained(alta_run / "full")
    full.freeze_pretrained()
    trained = sum(p.numel() for p in full.parameters() if p.requires_grad)
    total = sum(p.numel() for p in full.parameters())
    assert metrics["parameters"] == {"total": total, "trainable": trained, "trainable_share": trained / total}
    assert (metrics["run"]["recipe"]["stage"], metrics["run"]["steps"], metrics["records"]["records"]) == (
        "alta",
        6,
        39,
    )


def test_a_new_adapter_trains_over_a_full_model(alta_run, work):
    train_accelerate.main(arguments(work, "alta", "adapt", base=f"{alta_run}/full", num_epochs=1))
    model = AltaModel.from_pretrained(alta_run / "full")
    expected = embeddings(model, work / "records")
    model.load_adapter(work / "adapt" / "adapter", adapter_name="hospital")
    assert not torch.allclose(embeddings(model, work / "records"), expected)
    model.disable_adapters()
    assert torch.equal(embeddings(model, work / "records"), expected)
    assert not (work / "adapt" / "full").exists()


def test_lora_trains_by_recipe_and_merges_into_a_full_model(mrm_run, work):
    peft = {"peft_type": "LORA", "target_modules": ["qkv", "query"], "modules_to_save": ["image_projection"]}
    train_accelerate.main(arguments(work, "alta", "lora", peft=peft, num_epochs=1))
    full = AltaModel.from_pretrained(work / "lora" / "full")
    assert not full.config.use_adapters
    over_base = PeftModel.from_pretrained(AltaModel.from_pretrained(work / "lora" / "base"), work / "lora" / "adapter")
    batch = {"pixel_values": torch.randn(2, 3, 32, 32)}
    torch.testing.assert_close(over_base.eval()(**batch).image_embeds, full.eval()(**batch).image_embeds)


@pytest.mark.parametrize("missing_views", ["token", "skip"])
def test_bfloat16_trains_to_nearly_the_same_losses(mrm_run, work, missing_views):
    settings = {"model": {"missing_views": missing_views}, "num_epochs": 1}
    for precision in ("no", "bf16"):
        train_accelerate.main(arguments(work, "alta", precision, mixed_precision=precision, **settings))
        AcceleratorState._reset_state(reset_partial_state=True)
    full, half = read_log(work / "no"), read_log(work / "bf16")
    assert [row["loss"] for row in half] == pytest.approx([row["loss"] for row in full], rel=0.02)
    assert half != full


def test_gradient_checkpointing_trains_to_the_same_losses(mrm_run, work):
    for name, on in (("kept", False), ("recomputed", True)):
        train_accelerate.main(arguments(work, "alta", name, gradient_checkpointing=on, num_epochs=1))
        AcceleratorState._reset_state(reset_partial_state=True)
    expected = [row["loss"] for row in read_log(work / "kept")]
    assert [row["loss"] for row in read_log(work / "recomputed")] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_resumed_run_has_the_losses_of_one_never_stopped(mrm_run, work, accumulation):
    settings = {"gradient_accumulation_steps": accumulation, "batch_size": 5, "checkpoint_every": 2}
    name = f"resumed_{accumulation}"
    train_accelerate.main(arguments(work, "alta", name, keep_checkpoints=9, **settings))
    expected = read_log(work / name)
    checkpoint = work / name / "checkpoints" / "step_00000002"
    AcceleratorState._reset_state(reset_partial_state=True)
    train_accelerate.main(arguments(work, "alta", name, resume=f"{checkpoint}", **settings))
    assert read_log(work / name) == expected


def test_a_run_resumed_between_two_lines_of_the_log_writes_them_at_the_same_steps(mrm_run, work):
    settings = {"checkpoint_every": 2, "keep_checkpoints": 9, "log_every": 3}
    train_accelerate.main(arguments(work, "alta", "between", **settings))
    expected = read_log(work / "between")
    AcceleratorState._reset_state(reset_partial_state=True)
    checkpoint = f"{work}/between/checkpoints/step_00000002"
    train_accelerate.main(arguments(work, "alta", "between", resume=checkpoint, **settings))
    assert [row["step"] for row in read_log(work / "between")] == [3, 6]
    assert read_log(work / "between")[-1] == expected[-1]


def test_only_the_last_checkpoints_stay_and_latest_resumes_from_them(mrm_run, work):
    train_accelerate.main(arguments(work, "alta", "kept", checkpoint_every=1, keep_checkpoints=2))
    kept = sorted(path.name for path in (work / "kept" / "checkpoints").iterdir())
    assert kept == ["step_00000005", "step_00000006"]
    expected = read_log(work / "kept")
    AcceleratorState._reset_state(reset_partial_state=True)
    train_accelerate.main(arguments(work, "alta", "kept", resume="latest"))
    assert read_log(work / "kept") == expected


def test_resume_from_a_folder_that_is_not_there_is_an_error(mrm_run, work):
    with pytest.raises(FileNotFoundError, match="`resume` must be 'latest' or a checkpoint folder, got nowhere"):
        train_accelerate.main(arguments(work, "alta", "nothing", resume="nowhere"))


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_studies(mrm_run, work, monkeypatch):
    monkeypatch.setattr(
        AltaForPreTraining, "_image_loss", lambda *args: torch.tensor(float("nan"), requires_grad=True)
    )
    with pytest.raises(FloatingPointError, match=r"The loss is not finite. Studies of the batch: \['p\d+_"):
        train_accelerate.main(arguments(work, "alta", "broken"))


@pytest.mark.parametrize("tracker", ["tensorboard", "wandb"])
def test_a_missing_tracker_package_is_an_error_not_a_warning(work, monkeypatch, tracker):
    monkeypatch.setattr(accelerate.tracking, "_available_trackers", [])
    with pytest.raises(ImportError, match=f"pip install {tracker}"):
        train_accelerate.build_accelerator(arguments(work, "mrm", log_with=tracker))


def test_tensorboard_gets_every_loss(mrm_run, work):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train_accelerate.main(arguments(work, "alta", "tracked", log_with="tensorboard", num_epochs=1))
    events = EventAccumulator(str(work / "tracked" / "tracking")).Reload()
    values = [event.value for event in events.Scalars("local_contrastive_loss")]
    assert values == pytest.approx([row["local_contrastive_loss"] for row in read_log(work / "tracked")])


def test_more_studies_a_batch_than_there_are_is_an_error(mrm_run, work):
    with pytest.raises(ValueError, match="`batch_size` must be at most the 25 studies of train, got 64"):
        train_accelerate.main(arguments(work, "alta", "large", batch_size=64))


def test_weight_decay_is_on_matrices_only():
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    model.token = torch.nn.Parameter(torch.zeros(1, 1, 2))
    args = SimpleNamespace(
        batch_size=16, gradient_accumulation_steps=2, base_learning_rate=1e-3, weight_decay=0.05, betas=[0.9, 0.95]
    )
    optimizer = train_accelerate.build_optimizer(args, model, num_processes=4)
    decayed, plain = optimizer.param_groups
    assert [p.shape for p in decayed["params"]] == [(2, 3)]
    assert (len(plain["params"]), plain["weight_decay"], decayed["weight_decay"]) == (4, 0.0, 0.05)
    assert decayed["lr"] == pytest.approx(1e-3 * 16 * 4 * 2 / 256)


def test_learning_rate_warms_up_and_falls_to_zero_at_the_end_of_the_schedule():
    args = SimpleNamespace(gradient_accumulation_steps=2, warmup_epochs=1, schedule_epochs=3)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = train_accelerate.build_scheduler(args, SimpleNamespace(optimizer=optimizer), batches_per_epoch=7)
    rates = []
    for _ in range(12):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    # 7 batches make 4 steps an epoch: warm-up over 4, half of the cosine at 4 + 8 / 2, zero at 12.
    assert rates[:5] == [0, 0.25, 0.5, 0.75, 1]
    assert rates[8] == pytest.approx(0.5)
    assert scheduler.get_last_lr()[0] == pytest.approx(0)


def test_finite_loss_passes():
    train_accelerate.check_finite(Accelerator(cpu=True), torch.tensor(1.0), ["a"])


def test_two_processes_train_a_stage_and_write_it_once(mrm_run, work, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    lines = QUICK | {"stage": "alta", "records": f"{work}/records", "output_dir": f"{work}/two", "batch_size": 4}
    lines |= {"mrm": f"{work}/mrm/model", "text_encoder": f"{work}/text", "num_epochs": 1}
    recipe.write_text("".join(f"{name}: {json.dumps(value)}\n" for name, value in lines.items()))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launcher, "train_accelerate.py", "--config", str(recipe)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    metrics = json.loads((work / "two" / "metrics.json").read_text())
    assert (metrics["run"]["processes"], metrics["run"]["steps"], len(read_log(work / "two"))) == (2, 3, 3)
