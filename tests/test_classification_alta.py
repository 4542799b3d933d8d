"""The classifier: its start from other models, its losses, its three ways of tuning, its repositories."""

import json
import os
import re

import pytest
import torch
from hub_server import hub_environment
from peft import LoraConfig, PeftModel, get_peft_model
from repositories import make_adapter, make_base, make_full, make_processor, run_script, write_study
from tiny import make_batch, make_config, randomise
from torch.testing import assert_close
from transformers import AutoModelForImageClassification, pipeline

from modeling_alta import AltaAdapterConfig, AltaForImageClassification, AltaForMaskedRecordModeling
from modeling_alta.classification_alta import multi_label_loss, single_label_loss
from modeling_alta.export_alta import export_adapter, export_full, main


NAMES = ["edema", "effusion", "nodule"]
LABELS = {"id2label": dict(enumerate(NAMES)), "label2id": {name: index for index, name in enumerate(NAMES)}}


def make_classifier(seed: int = 0, **settings) -> AltaForImageClassification:
    torch.manual_seed(seed)
    return AltaForImageClassification(make_config(**({"use_adapters": False} | LABELS | settings))).eval()


def make_mrm() -> AltaForMaskedRecordModeling:
    torch.manual_seed(2)
    return randomise(AltaForMaskedRecordModeling(make_config(use_adapters=False))).eval()


def make_signs(num_studies: int, seed: int) -> dict[str, torch.Tensor]:
    """Noisy frontals; a bright square in one corner, in another, in both or in none is what the two labels say."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(num_studies, 3, 32, 32, generator=generator)
    labels = torch.rand(num_studies, 2, generator=generator) < 0.5
    pixels[labels[:, 0], :, 4:12, 4:12] += 2
    pixels[labels[:, 1], :, 20:28, 16:24] += 2
    return {"pixel_values": pixels, "labels": labels.float()}


def tune(mode: str):
    """A classifier whose tower is prepared in one of the three ways, in training mode."""
    model = make_classifier(id2label={0: "left", 1: "right"}, label2id={"left": 0, "right": 1})
    if mode == "linear_probe":
        model.freeze_tower()
    elif mode == "adapter":
        model = get_peft_model(model, AltaAdapterConfig())
    return model.train()


def train(model, batch, num_steps: int, learning_rate: float) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], learning_rate)
    for step in range(num_steps):
        rows = torch.arange(step * 32, step * 32 + 32) % len(batch["labels"])
        model(**{name: value[rows] for name, value in batch.items()}).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def logits(model, batch=None) -> torch.Tensor:
    batch = batch or make_batch()
    with torch.no_grad():
        return model.eval()(pixel_values=batch["pixel_values"], view_mask=batch.get("view_mask")).logits


def state_of(model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def changed(model, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Repositories of a full model, a base and an alignment adapter over it."""
    folder, processor = tmp_path_factory.mktemp("models"), make_processor()
    export_full(make_full(), processor, folder / "full")
    export_full(make_base(), processor, folder / "base")
    export_adapter(make_adapter(), processor, folder / "adapter", base=folder / "base")
    return folder


# Chance is 0.5, with a standard error of 0.025 over 400 decisions. The probe sees a random tower.
@pytest.mark.parametrize(("mode", "accuracy"), [("linear_probe", 0.7), ("adapter", 0.9), ("full", 0.9)])
def test_each_way_of_tuning_learns_a_visible_sign(mode, accuracy):
    model, unseen = tune(mode), make_signs(200, seed=2)
    train(model, make_signs(512, seed=1), num_steps=120, learning_rate=1e-2)
    is_right = (logits(model, unseen) > 0) == unseen["labels"].bool()
    assert is_right.float().mean() > accuracy


def test_linear_probe_leaves_the_tower_bitwise_untouched():
    model = tune("linear_probe")
    before = state_of(model)
    train(model, make_signs(64, seed=1), num_steps=3, learning_rate=1e-2)
    assert changed(model, before) == {"classifier.weight", "classifier.bias"}
    assert not model.vision_model.training and model.training


def test_adapter_tuning_changes_adapters_norms_tokens_and_classifier_alone():
    model = tune("adapter")
    before = state_of(model)
    train(model, make_signs(64, seed=1), num_steps=3, learning_rate=1e-2)
    names = changed(model, before)
    for kind in ("alta_adapter_up", "study_tokens", "norm1", "vision_model.norm", "classifier"):
        assert any(kind in name for name in names), kind
    assert all("alta_adapter_" in name or "modules_to_save.default" in name for name in names)


def test_full_tuning_changes_everything_but_positions_and_missing_token():
    model = tune("full")
    before = state_of(model)
    batch = make_batch() | {"labels": torch.tensor([[1.0, 0.0]] * 4)}
    train(model, {name: batch[name] for name in ("pixel_values", "view_mask", "labels")}, 2, 1e-2)
    assert before.keys() - changed(model, before) == {"vision_model.pos_embed", "vision_model.missing_token"}


def test_tower_can_be_frozen_and_freed_again(folder):
    model = AltaForImageClassification.from_pretrained(folder / "full", **LABELS)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    model.freeze_tower()
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        "classifier.weight",
        "classifier.bias",
    }
    model.unfreeze_tower()
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trained
    assert trained == {name for name, _ in model.named_parameters()} - {
        "vision_model.pos_embed",
        "vision_model.missing_token",
    }


def test_adapters_inside_can_be_tuned_in_place(folder):
    model = AltaForImageClassification.from_pretrained(folder / "full", **LABELS)
    model.freeze_pretrained()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {"classifier.weight", "vision_model.blocks.0.mlp.adapter.up.weight"} <= trained
    assert not any(".base." in name or "patch_embed" in name for name in trained)


def test_kept_features_of_a_frozen_tower_give_the_same_loss():
    model, batch = make_classifier(), make_batch()
    labels = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])
    features = model.get_image_features(batch["pixel_values"], batch["view_mask"])
    output = model(batch["pixel_values"], batch["view_mask"], labels)
    assert torch.equal(model.classify(features, labels).loss, output.loss)
    assert features.shape == (4, 32) and output.logits.shape == (4, 3)


def test_gradient_checkpointing_gives_the_same_gradients():
    batch, gradients = make_signs(8, seed=0), []
    for is_checkpointed in (False, True):
        model = tune("adapter")
        if is_checkpointed:
            model.base_model.model.activation_checkpointing_enable()
            assert all(block.gradient_checkpointing for block in model.base_model.model.vision_model.blocks)
        model(**batch).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0] and gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert_close(gradients[1][name], gradient)


def test_pixels_of_a_missing_view_do_not_change_the_logits():
    model, batch = make_classifier(), make_batch()
    expected = logits(model, batch)
    batch["pixel_values"][~batch["view_mask"]] = 7.0
    assert torch.equal(logits(model, batch), expected)


def test_prior_and_lateral_change_the_logits():
    model, pixels = randomise(make_classifier()), make_batch()["pixel_values"]
    frontal = logits(model, {"pixel_values": pixels[:, 0]})
    assert torch.equal(frontal, logits(model, {"pixel_values": pixels, "view_mask": torch.eye(4).bool()[[0] * 4]}))
    assert (logits(model, {"pixel_values": pixels}) - frontal).abs().max() > 1e-3


def test_unknown_labels_are_left_out_of_the_loss():
    scores = torch.tensor([[0.3, -1.0], [2.0, 0.5]])
    known = torch.nn.functional.binary_cross_entropy_with_logits(scores[:, 0], torch.tensor([1.0, 0.0]))
    assert_close(multi_label_loss(scores, torch.tensor([[1, torch.nan], [0, torch.nan]])), known)
    assert_close(multi_label_loss(scores, torch.tensor([[1, -100], [0, -100]])), known)
    known = torch.nn.functional.cross_entropy(scores[1:], torch.tensor([1]))
    assert_close(single_label_loss(scores, torch.tensor([-100, 1])), known)


@pytest.mark.parametrize(("loss", "shape"), [(multi_label_loss, (4, 3)), (single_label_loss, (4,))])
def test_batch_without_a_known_label_has_no_loss_and_zero_gradients(loss, shape):
    scores = torch.randn(4, 3, requires_grad=True)
    value = loss(scores, torch.full(shape, -100))
    value.backward()
    assert value.item() == 0 and (scores.grad == 0).all()


def test_single_label_classification_is_cross_entropy():
    model, batch = make_classifier(problem_type="single_label_classification"), make_batch()
    labels = torch.tensor([0, 2, 1, 1])
    output = model(batch["pixel_values"], batch["view_mask"], labels)
    assert_close(output.loss, torch.nn.functional.cross_entropy(output.logits, labels))


@pytest.mark.parametrize(
    ("loss", "labels", "message"),
    [
        (multi_label_loss, torch.tensor([0, 1]), r"`labels` must have shape \(2, 3\).*got \(2,\).*single_label"),
        (multi_label_loss, torch.full((2, 3), -1), "`labels` must be 0 to 1, NaN or -100, got -1 to -1"),
        (single_label_loss, torch.zeros(2, 3), r"`labels` must have shape \(2,\).*got \(2, 3\)"),
        (single_label_loss, torch.tensor([0, 3]), "`labels` must be indices below 3, NaN or -100, got 0 to 3"),
    ],
)
def test_bad_labels_are_named(loss, labels, message):
    with pytest.raises(ValueError, match=message):
        loss(torch.zeros(2, 3), labels)


def test_bad_problem_type_and_views_are_named():
    with pytest.raises(ValueError, match="`problem_type` must be one of .*, got 'regression'"):
        make_classifier(problem_type="regression")
    with pytest.raises(ValueError, match=r"`pixel_values` must have shape \(batch, 4, 3, 32, 32\)"):
        make_classifier()(torch.zeros(1, 3, 16, 16))


@pytest.mark.parametrize("make_source", [make_full, make_base, make_mrm])
def test_start_from_another_model_takes_its_tower_and_reports_only_the_classifier_as_new(
    make_source, tmp_path, caplog
):
    source = make_source()
    source.save_pretrained(tmp_path)
    model = AltaForImageClassification.from_pretrained(tmp_path, **LABELS)
    reported = dict(re.findall(r"^(\S+) +\| ([A-Z]+) ", caplog.text, re.MULTILINE))
    assert reported == {"classifier.weight": "MISSING", "classifier.bias": "MISSING"}
    for name, value in source.vision_model.state_dict().items():
        assert torch.equal(model.vision_model.state_dict()[name], value), name
    assert (model.config.num_labels, model.config.id2label) == (3, LABELS["id2label"])


def test_alignment_adapter_merges_into_a_classifier(folder):
    base = AltaForImageClassification.from_pretrained(folder / "base", **LABELS)
    classifier = base.classifier
    model = PeftModel.from_pretrained(base, folder / "adapter").merge_and_unload()
    batch, aligned = make_batch(), make_adapter().merge_and_unload()
    with torch.no_grad():
        expected = aligned.vision_model(batch["pixel_values"], batch["view_mask"]).pooler_output
        assert torch.equal(model.get_image_features(batch["pixel_values"], batch["view_mask"]), expected)
    assert model.classifier is classifier and model.config.use_adapters


def test_alignment_adapter_can_be_trained_on_with_a_new_classifier(folder):
    base = AltaForImageClassification.from_pretrained(folder / "base", **LABELS)
    model = PeftModel.from_pretrained(base, folder / "adapter", is_trainable=True)
    base.classifier.requires_grad_(True)
    before = state_of(model)
    train(model, make_signs(32, 0) | {"labels": torch.ones(32, 3)}, 2, 1e-2)
    names = changed(model, before)
    assert "base_model.model.classifier.weight" in names and any("alta_adapter_down" in name for name in names)


def test_saved_classifier_gives_the_same_logits_and_labels(folder, tmp_path):
    model = randomise(AltaForImageClassification.from_pretrained(folder / "full", **LABELS))
    model.save_pretrained(tmp_path)
    loaded, info = AltaForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert torch.equal(logits(loaded), logits(model))
    assert (loaded.config.id2label, loaded.config.label2id) == (LABELS["id2label"], LABELS["label2id"])
    assert loaded.config.problem_type == "multi_label_classification"


def make_tuned_adapter(base) -> PeftModel:
    """A classifier adapter over the base's tower, everything it trains moved from its start."""
    model = AltaForImageClassification.from_pretrained(base, **LABELS)
    return randomise(get_peft_model(model, AltaAdapterConfig()))


def test_saved_classifier_adapter_gives_the_same_logits(folder, tmp_path):
    tuned = make_tuned_adapter(folder / "base")
    tuned.save_pretrained(tmp_path)
    base = AltaForImageClassification.from_pretrained(folder / "base", **LABELS)
    assert torch.equal(logits(PeftModel.from_pretrained(base, tmp_path)), logits(tuned))
    by_name = AutoModelForImageClassification.from_pretrained(tmp_path, **LABELS)
    assert torch.equal(logits(by_name), logits(tuned))
    assert torch.equal(logits(tuned.merge_and_unload()), logits(by_name))


def test_classifier_adapter_names_what_it_saves_and_leaves_the_given_config_alone():
    config = AltaAdapterConfig()
    model = get_peft_model(make_classifier(), config)
    assert model.peft_config["default"].modules_to_save == [
        "study_tokens",
        "norm1",
        "norm2",
        "vision_model.norm",
        "classifier",
    ]
    assert config.modules_to_save == AltaAdapterConfig().modules_to_save
    assert "classifier" not in make_adapter().peft_config["default"].modules_to_save


def test_lora_can_tune_a_classifier():
    model = get_peft_model(make_classifier(), LoraConfig(target_modules=["qkv"], modules_to_save=["classifier"]))
    before = state_of(model)
    train(model.train(), make_signs(32, 0) | {"labels": torch.ones(32, 3)}, 2, 1e-2)
    assert any("lora_B" in name for name in changed(model, before))


@pytest.fixture(scope="module")
def exported(folder):
    """Repositories of a full classifier, and of an adapter over a classifier with no adapters inside."""
    processor = make_processor()
    export_full(make_tuned_adapter(folder / "base").merge_and_unload(), processor, folder / "classifier")
    export_full(make_classifier(), processor, folder / "untuned")
    adapter = randomise(get_peft_model(make_classifier(), AltaAdapterConfig()))
    export_adapter(adapter, processor, folder / "tuned", base=folder / "untuned")
    write_study(folder)
    return folder


def test_exported_classifier_loads_by_its_auto_class_alone(exported):
    config = json.loads((exported / "classifier" / "config.json").read_text())
    assert set(config["auto_map"]) == {"AutoConfig", "AutoModelForImageClassification"}
    assert config["custom_pipelines"] == {}
    assert "pipeline_tag: image-classification" in (exported / "classifier" / "README.md").read_text()
    assert "pipeline_tag: image-classification" in (exported / "tuned" / "README.md").read_text()
    config = json.loads((exported / "full" / "config.json").read_text())
    assert config["auto_map"]["AutoModelForImageClassification"].startswith("classification_alta.")


def test_stock_pipeline_gives_the_sigmoid_of_each_label(exported):
    frontal = str(exported / "current_frontal.png")
    given = pipeline("image-classification", model=str(exported / "classifier"))(frontal)
    model = AltaForImageClassification.from_pretrained(exported / "classifier")
    scores = logits(model, make_processor()(images=frontal, return_tensors="pt"))[0].sigmoid().tolist()
    assert {item["label"]: pytest.approx(item["score"], abs=1e-5) for item in given} == dict(
        zip(NAMES, scores, strict=True)
    )


def test_exported_classifiers_load_in_a_new_process_without_the_package(exported, tmp_path):
    environment = hub_environment("http://127.0.0.1:9", tmp_path, {"PATH": os.environ["PATH"]})
    arguments = [exported, exported / "classifier", exported / "tuned"]
    answers = run_script("load_classifiers.py", exported, environment | {"HF_HUB_OFFLINE": "1"}, arguments)
    answers = json.loads(answers[-1])
    study = {name: str(exported / f"{name}.png") for name in ("current_frontal", "prior_frontal")}
    inputs = make_processor()(images=study, return_tensors="pt")
    for name in ("classifier", "tuned"):
        model = AutoModelForImageClassification.from_pretrained(exported / name)
        assert answers[name]["origin"] == "transformers_modules:AltaForImageClassification"
        assert_close(torch.tensor(answers[name]["logits"]), logits(model, inputs), rtol=1e-5, atol=1e-6)
        assert answers[name]["labels"] == NAMES


def test_command_merges_a_classifier_adapter_and_keeps_it_a_classifier(exported, tmp_path):
    folders = ["--model", str(exported / "untuned"), "--adapter", str(exported / "tuned")]
    main([*folders, "--output", str(tmp_path)])
    model = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert torch.equal(logits(model), logits(AutoModelForImageClassification.from_pretrained(exported / "tuned")))


def test_classifier_has_only_the_vision_tower():
    names = {name.partition(".")[0] for name, _ in make_classifier(use_adapters=True).named_parameters()}
    assert names == {"vision_model", "classifier"}
