"""The published fixture: its numbers after conversion, and what becomes of every key of a checkpoint."""

import argparse
import json
import pickle
import re
import shutil

import pytest
import torch
from conftest import FIXTURES
from safetensors.torch import load_file, save_file
from tiny import make_config
from torch.testing import assert_close
from transformers import BertConfig, BertForMaskedLM, BertModel

from modeling_alta import AltaConfig, AltaForMaskedRecordModeling, AltaForPreTraining, AltaModel
from modeling_alta.convert_alta import (
    convert_alta,
    convert_mrm,
    load_mae,
    main,
    published_key,
    read_checkpoint,
    rename_key,
)
from processing.batches.augmentation import resize_to_encoder


TINY = FIXTURES / "reference_tiny"
TEXT_ENCODER = TINY / "text_encoder"
HEADS = {"vision_heads": 4, "decoder_heads": 4}
HEAD_OPTIONS = ["--vision-heads", "4", "--decoder-heads", "4"]
LOSSES = ("global_contrastive_loss", "local_contrastive_loss", "image_reconstruction_loss", "masked_report_loss")
VIEWS = ("current_frontal_224", "current_lateral_224", "prior_frontal_224", "prior_lateral_224")


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    return load_file(TINY / "expected.safetensors")


@pytest.fixture(scope="module")
def batch() -> dict[str, torch.Tensor]:
    """The published batch as our model takes it."""
    stored = load_file(TINY / "batch.safetensors")
    target = stored["current_frontal_448"].float().expand(-1, 3, -1, -1)
    stored["current_frontal_224"] = resize_to_encoder(target, 224)
    views = torch.stack([stored[name].float().expand(-1, 3, -1, -1) for name in VIEWS], dim=1)
    names = ("input_ids", "attention_mask", "masked_input_ids", "labels", "view_mask")
    rest = {"pixel_values": views, "target_pixel_values": target, "noise": stored["masking_noise"]}
    return {name: stored[name] for name in names} | rest


@pytest.fixture(scope="module")
def converted() -> tuple[AltaForPreTraining, object]:
    model, report = convert_alta(TINY / "ALTA.pth", TEXT_ENCODER, **HEADS)
    model.eval().freeze_pretrained()
    return model, report


@pytest.fixture(scope="module")
def trained(converted, batch) -> tuple[AltaForPreTraining, object]:
    """One forward and backward pass: the model with its gradients and its output."""
    model = converted[0]
    output = model(**batch)
    output.loss.backward()
    return model, output


@pytest.fixture(scope="module")
def gradients(trained) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in trained[0].named_parameters() if p.grad is not None}


@pytest.fixture(scope="module")
def mrm() -> tuple[AltaForPreTraining, object]:
    return convert_mrm(TINY / "MRM.pth", TEXT_ENCODER, **HEADS)


def gradient_of(gradients: dict[str, torch.Tensor], key: str) -> torch.Tensor:
    """The gradient of a published parameter, of which the scales are elements of our vectors."""
    gradient = gradients[rename_key(key)]
    return gradient[int(key[-1]) - 1 if key[-1].isdigit() else 0] if key.startswith("logit_scale") else gradient


def checkpoint_without(tmp_path, name: str, key: str, replacement: torch.Tensor | None = None):
    """A copy of a fixture's checkpoint in which one key is missing or replaced."""
    state = read_checkpoint(TINY / name)
    del state[key]
    torch.save({"model": state | ({} if replacement is None else {key: replacement})}, tmp_path / name)
    return tmp_path / name


def copy_text_encoder(tmp_path):
    return shutil.copytree(TEXT_ENCODER, tmp_path / "text", copy_function=shutil.copyfile)


def save_bert(bert_class, folder, **sizes) -> dict[str, torch.Tensor]:
    """Write a BERT folder as transformers does, by default of the fixture's sizes, and give its weights."""
    config = json.loads((TEXT_ENCODER / "config.json").read_text())
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    torch.manual_seed(0)
    bert_class(BertConfig(**{name: config[name] for name in names} | sizes)).save_pretrained(folder)
    return read_checkpoint(folder)


def make_mrm_model() -> AltaForMaskedRecordModeling:
    torch.manual_seed(0)
    return AltaForMaskedRecordModeling(make_config(use_adapters=False))


def mae_state(model: AltaForMaskedRecordModeling) -> dict[str, torch.Tensor]:
    """Weights of another vision tower of the same size under the names of MAE."""
    tower = {f"vision_model.{name}": value + 0.5 for name, value in model.vision_model.state_dict().items()}
    state = {published_key(name): value for name, value in tower.items()}
    return {key: value for key, value in state.items() if "missing" not in key and "embedding" not in key}


def test_first_row_of_the_resized_frontal_is_the_published_one(batch, expected):
    assert_close(batch["pixel_values"][:, 0, 0, 0], expected["frontal_224_row0"], rtol=0, atol=1e-5)


def test_training_forward_gives_the_published_embeddings(trained, expected):
    _, output = trained
    vision = output.vision_model_output
    assert_close(vision.last_hidden_state[:, :, 0], expected["cls_embed"], rtol=0, atol=1e-5)
    assert_close(output.image_embeds, expected["image_embeds_train"], rtol=0, atol=1e-5)
    assert_close(output.text_embeds, expected["text_embeds"], rtol=0, atol=1e-5)
    assert torch.equal(vision.mask[:, 0], expected["mask"])
    assert_close(vision.last_hidden_state[:, 0, 1:9], expected["patch_embeds_first"], rtol=0, atol=1e-5)


def test_decoder_gives_the_published_patches(trained, expected):
    model, output = trained
    vision = output.vision_model_output
    predicted = model.image_decoder(vision.last_hidden_state[:, 0], vision.ids_restore[:, 0])
    assert_close(predicted[:, :4], expected["pred_first_patches"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_each_loss_is_the_published_one(trained, expected, name):
    assert_close(trained[1][name], expected[name], rtol=1e-5, atol=0)


def test_listed_gradients_are_the_published_ones(gradients):
    for key, value in load_file(TINY / "expected_grads.safetensors").items():
        difference = gradient_of(gradients, key) - value
        assert difference.norm() <= 1e-4 * value.norm(), key


def test_all_gradient_norms_are_the_published_ones(gradients):
    norms = json.loads((TINY / "expected_grad_norms.json").read_text())
    given = {key: gradient_of(gradients, key).norm().item() for key in norms}
    assert len(norms) == 99 and given == pytest.approx(norms, rel=1e-3)


def test_trained_parameters_are_the_published_ones(trained, gradients):
    published = json.loads((TINY / "trainable.json").read_text())
    names = {name for name, p in trained[0].named_parameters() if p.requires_grad}
    assert names == {rename_key(key) for key in published["trainable"]}
    assert names - gradients.keys() == {rename_key(key) for key in published["without_grad"]}


def test_inference_gives_the_published_embeddings(converted, batch, expected):
    model, _ = converted
    frontal = batch["pixel_values"][:, 0]
    with torch.no_grad():
        output = model.eval().get_image_features(frontal)
        text_embeds = model.get_text_features(batch["input_ids"], batch["attention_mask"])
    assert_close(output, expected["image_embeds_single_view"], rtol=0, atol=1e-5)
    assert_close(text_embeds, expected["text_embeds_inference"], rtol=0, atol=1e-5)


def test_every_key_of_the_published_weights_is_used_or_named_in_the_report(converted):
    model, report = converted
    keys = set(read_checkpoint(TINY / "ALTA.pth"))
    assert keys == report.used.keys() | report.unused.keys() and not report.used.keys() & report.unused.keys()
    assert set(report.used.values()) == model.state_dict().keys() and report.fresh == []
    assert f"used {len(report.used)} keys" in str(report)
    assert all(f"not used: {key} (" in str(report) for key in report.unused)
    assert report.unused.keys() == {f"bert_encoder.cls.predictions.decoder.{name}" for name in ("weight", "bias")}


def test_every_key_of_an_mrm_checkpoint_and_its_text_encoder_is_used_or_named_in_the_report(mrm):
    model, report = mrm
    keys = read_checkpoint(TINY / "MRM.pth").keys() | read_checkpoint(TEXT_ENCODER).keys()
    assert keys == report.used.keys() | report.unused.keys()
    assert all(f"not used: {key} (" in str(report) for key in report.unused)
    assert all(f"newly initialised: {name}" in str(report) for name in report.fresh)
    copied = {name for name in model.state_dict() if name.startswith("text_local_projection.")}
    assert set(report.used.values()) | set(report.fresh) | copied == model.state_dict().keys()


def test_an_unknown_key_is_named_and_left_out(tmp_path):
    state = read_checkpoint(TINY / "ALTA.pth") | {"queue": torch.zeros(3)}
    torch.save(state, tmp_path / "ALTA.pth")
    _, report = convert_alta(tmp_path / "ALTA.pth", TEXT_ENCODER, **HEADS)
    assert "not used: queue (no such part in ALTA)" in str(report)


def test_mrm_base_holds_the_frozen_weights_and_no_adapters(mrm):
    model, _ = mrm
    state, weights = read_checkpoint(TINY / "MRM.pth"), model.state_dict()
    assert not model.config.use_adapters and not any("adapter" in name for name in weights)
    assert torch.equal(weights["vision_model.blocks.1.mlp.fc2.weight"], state["blocks.1.mlp.fc2.weight"])
    assert torch.equal(weights["image_decoder.mask_token.token"], state["mask_token"])
    text = read_checkpoint(TEXT_ENCODER)["bert.encoder.layer.1.output.dense.weight"]
    assert torch.equal(weights["text_model.encoder.layer.1.output.dense.weight"], text)


def test_local_text_head_starts_as_a_copy_of_the_global_one(mrm):
    model, _ = mrm
    text_head = read_checkpoint(TEXT_ENCODER)["cls_projection_head.dense_to_output.weight"]
    assert torch.equal(model.text_projection.dense_to_output.weight, text_head)
    for name, value in model.text_projection.state_dict().items():
        copy = model.text_local_projection.state_dict()[name]
        assert torch.equal(copy, value) and copy.data_ptr() != value.data_ptr()


def test_sizes_are_read_off_the_checkpoint(converted):
    config = converted[0].config
    vision, text = config.vision_config, config.text_config
    assert (vision.image_size, vision.patch_size, vision.hidden_size, vision.num_hidden_layers) == (224, 16, 64, 2)
    assert (vision.mlp_ratio, vision.qkv_bias, config.adapter_bottleneck_ratio) == (4.0, True, 0.25)
    assert (config.decoder_hidden_size, config.decoder_patch_size, config.projection_dim) == (64, 32, 128)
    assert (text.vocab_size, text.hidden_size, text.num_hidden_layers, text.intermediate_size) == (512, 64, 2, 128)


def test_report_length_is_at_most_the_positions_of_the_text_encoder(tmp_path):
    save_bert(BertModel, tmp_path, max_position_embeddings=40)
    assert convert_mrm(TINY / "MRM.pth", tmp_path, **HEADS)[0].config.max_report_length == 40


# One of each: a size is read off the first nine of them, and the last four have rules of their own.
KEYS = (
    "cls_token",
    "pos_embed",
    "patch_embed.proj.weight",
    "blocks.0.mlp.fc1.weight",
    "blocks.0.mlp_adapter.D_fc1.weight",
    "decoder_embed.weight",
    "decoder_pred.weight",
    "blocks.0.attn.qkv.bias",
    "norm.weight",
    "projection_head.LayerNorm.weight",
    "bert_encoder.bert.embeddings.word_embeddings.weight",
    "bert_encoder.bert.encoder.layer.1.attn_adapter.D_fc2.bias",
    "bert_encoder.cls.predictions.transform.LayerNorm.bias",
    "bert_encoder.cls.predictions.bias",
    "missing_token",
    "logit_scale",
    "logit_scale_local2",
)


@pytest.mark.parametrize("key", KEYS)
def test_a_missing_key_is_an_error_that_names_it(tmp_path, key):
    path = checkpoint_without(tmp_path, "ALTA.pth", key)
    with pytest.raises(ValueError, match=rf"{re.escape(key)}( \([\w.]+ here\))? is missing\.$"):
        convert_alta(path, TEXT_ENCODER, **HEADS)


@pytest.mark.parametrize("key", KEYS)
def test_a_misshapen_key_is_an_error_that_names_it_and_its_shape(tmp_path, key):
    value = read_checkpoint(TINY / "ALTA.pth")[key]
    longer = torch.cat([value, value]) if value.ndim else torch.zeros(2)
    path = checkpoint_without(tmp_path, "ALTA.pth", key, longer)
    with pytest.raises(ValueError) as error:
        convert_alta(path, TEXT_ENCODER, **HEADS)
    message = str(error.value)
    assert f"{key} " in message and str(tuple(longer.shape)) in message
    assert str(tuple(value.shape)) in message or key in ("patch_embed.proj.weight", "decoder_pred.weight")


@pytest.mark.parametrize("key", ["bert.embeddings.word_embeddings.weight", "cls_projection_head.LayerNorm.bias"])
def test_a_missing_key_of_the_text_encoder_is_an_error_that_names_it(tmp_path, key):
    folder, state = copy_text_encoder(tmp_path), read_checkpoint(TEXT_ENCODER)
    del state[key]
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=f"{key} .*is missing"):
        convert_mrm(TINY / "MRM.pth", folder, **HEADS)


def test_a_text_encoder_without_any_weight_of_bert_is_an_error(tmp_path):
    folder = copy_text_encoder(tmp_path)
    torch.save({"conv.weight": torch.zeros(1)}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="bert.embeddings.word_embeddings.weight .*is missing"):
        convert_mrm(TINY / "MRM.pth", folder, **HEADS)


def test_a_text_encoder_of_another_size_is_an_error_that_names_its_keys(tmp_path):
    save_bert(BertModel, tmp_path, hidden_size=32)
    shape = r"text_model.embeddings.word_embeddings.weight here\) must have shape \(512, 32\), got \(512, 64\)"
    with pytest.raises(ValueError, match=shape):
        convert_alta(TINY / "ALTA.pth", tmp_path, **HEADS)


@pytest.mark.parametrize(("heads", "name"), [((5, 4), "num_attention_heads"), ((4, 6), "decoder_num_attention_heads")])
def test_heads_that_do_not_divide_the_hidden_size_are_an_error(heads, name):
    with pytest.raises(ValueError, match=f"`{name}` {max(heads)}, got 64"):
        convert_alta(TINY / "ALTA.pth", TEXT_ENCODER, *heads)


@pytest.mark.parametrize("name", ["ALTA.pth", "model.safetensors"])
def test_a_file_that_is_no_checkpoint_is_an_error_with_its_path(tmp_path, name):
    (tmp_path / name).write_bytes(b"no checkpoint at all")
    with pytest.raises(ValueError, match=f"checkpoint of plain tensors, got .*{name}"):
        read_checkpoint(tmp_path / name)


def test_a_checkpoint_of_other_things_than_tensors_is_an_error(tmp_path):
    torch.save({"model": {"weight": torch.zeros(1), "name": "vit"}}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="must hold a dict of tensors, or one under 'model', got .*x.pth"):
        read_checkpoint(tmp_path / "x.pth")


def test_a_path_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.pth, which does not exist"):
        read_checkpoint(tmp_path / "nothing.pth")


class WritesAFile:
    """What a malicious pickle looks like: unpickling it calls a function of its choice."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_a_malicious_pickle_is_refused_and_not_executed(tmp_path, save):
    save({"model": {"weight": torch.zeros(1)}, "args": WritesAFile(tmp_path / "proof")}, tmp_path / "ALTA.pth")
    with pytest.raises(ValueError, match="must be a checkpoint of plain tensors"):
        read_checkpoint(tmp_path / "ALTA.pth")
    assert not (tmp_path / "proof").exists()


def test_training_arguments_beside_the_weights_are_read_as_plain_data(tmp_path):
    torch.save({"model": {"a": torch.ones(1)}, "args": argparse.Namespace(lr=1.0)}, tmp_path / "x.pth")
    assert torch.equal(read_checkpoint(tmp_path / "x.pth")["a"], torch.ones(1))


@pytest.mark.parametrize("bert_class", [BertForMaskedLM, BertModel])
def test_a_plain_bert_folder_is_a_text_encoder(tmp_path, bert_class):
    saved = save_bert(bert_class, tmp_path)
    model, report = convert_mrm(TINY / "MRM.pth", tmp_path, **HEADS)
    assert saved.keys() <= report.used.keys() | report.unused.keys()
    for key, value in saved.items():
        assert key in report.unused or torch.equal(model.state_dict()[report.used[key]], value)
    assert ("report_head.dense.weight" in report.fresh) == (bert_class is BertModel)
    assert "text_projection.dense_to_output.weight" in report.fresh
    assert_close(model.text_local_projection.state_dict(), model.text_projection.state_dict(), rtol=0, atol=0)


def test_layer_norms_of_the_first_bert_checkpoints_are_understood(tmp_path):
    state = save_bert(BertForMaskedLM, tmp_path)
    for new, old in (("weight", "gamma"), ("bias", "beta")):
        state = {key.replace(f"LayerNorm.{new}", f"LayerNorm.{old}"): value for key, value in state.items()}
    save_file(state, tmp_path / "model.safetensors")
    _, report = convert_mrm(TINY / "MRM.pth", tmp_path, **HEADS)
    assert report.used["bert.embeddings.LayerNorm.gamma"] == "text_model.embeddings.LayerNorm.weight"
    assert report.used["bert.embeddings.LayerNorm.beta"] == "text_model.embeddings.LayerNorm.bias"


def test_the_folder_of_an_mrm_run_starts_the_training(tmp_path):
    stage = make_mrm_model()
    stage.save_pretrained(tmp_path)
    model, report = convert_mrm(tmp_path, TEXT_ENCODER)
    assert read_checkpoint(tmp_path).keys() <= report.used.keys() | report.unused.keys()
    assert {key.split(".")[0] for key in report.unused if key in stage.state_dict()} == {
        "report_decoder",
        "report_head",
        "image_to_report",
    }
    for part in ("vision_model", "image_decoder"):
        assert_close(getattr(model, part).state_dict(), getattr(stage, part).state_dict(), rtol=0, atol=0)
    assert model.config.vision_config.num_attention_heads == model.config.decoder_num_attention_heads == 2


def test_settings_of_the_model_reach_its_config():
    model, _ = convert_mrm(TINY / "MRM.pth", TEXT_ENCODER, **HEADS, missing_views="skip", mask_ratio=0.5)
    assert (model.config.missing_views, model.config.mask_ratio) == ("skip", 0.5)


@pytest.mark.parametrize("layout", ["timm", "meta"])
def test_mae_weights_of_both_layouts_start_the_vision_tower(tmp_path, layout):
    model = make_mrm_model()
    decoder, state = model.image_decoder.predict.weight.clone(), mae_state(model)
    other = {"decoder_pred.weight": torch.zeros(192, 8), "mask_token": torch.zeros(1, 1, 8)}
    if layout == "timm":
        save_file(state | {"head.weight": torch.zeros(2, 32)}, tmp_path / "mae.safetensors")
    else:
        torch.save({"model": state | other}, tmp_path / "mae.pth")
    report = load_mae(model, next(tmp_path.iterdir()))
    for key, value in state.items():
        assert torch.equal(model.state_dict()[report.used[key]], value)
    assert "pos_embed" in state and "blocks.1.mlp.fc2.weight" in state and "cls_token" in state
    assert report.unused.keys() == ({"head.weight"} if layout == "timm" else other.keys())
    assert torch.equal(model.image_decoder.predict.weight, decoder)


@pytest.mark.parametrize("key", ["blocks.1.mlp.fc2.weight", "pos_embed", "cls_token"])
def test_a_missing_key_of_mae_weights_is_an_error_that_names_it(tmp_path, key):
    model = make_mrm_model()
    state = mae_state(model)
    del state[key]
    save_file(state, tmp_path / "mae.safetensors")
    with pytest.raises(ValueError, match=rf"mae.safetensors does not fit: {key} \(.* here\) is missing"):
        load_mae(model, tmp_path / "mae.safetensors")


@pytest.mark.parametrize("stage", ["alta", "mrm"])
def test_command_writes_a_folder_that_loads_without_missing_or_unexpected_keys(tmp_path, capsys, stage):
    checkpoint = str(TINY / f"{stage.upper()}.pth")
    main([f"--{stage}", checkpoint, "--text-encoder", str(TEXT_ENCODER), "--output", str(tmp_path), *HEAD_OPTIONS])
    printed = capsys.readouterr().out
    assert f"wrote {tmp_path}" in printed and "not used: " in printed
    for model_class in (AltaForPreTraining, AltaModel):
        model, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(info.values()), info
        assert model.config.use_adapters == (stage == "alta")


def test_command_writes_the_weights_that_the_function_gives(tmp_path, converted):
    arguments = ["--text-encoder", str(TEXT_ENCODER), "--output", str(tmp_path), *HEAD_OPTIONS]
    main(["--alta", str(TINY / "ALTA.pth"), *arguments])
    loaded = AltaForPreTraining.from_pretrained(tmp_path)
    assert_close(loaded.state_dict(), converted[0].state_dict(), rtol=0, atol=0)
    assert AltaConfig.from_pretrained(tmp_path).text_config.vocab_size == 512


def run_and_read_error(capsys, *arguments) -> str:
    with pytest.raises(SystemExit) as exit_:
        main([str(argument) for argument in arguments])
    assert exit_.value.code == 2
    return capsys.readouterr().err


def test_command_gives_a_readable_error_for_what_does_not_fit(tmp_path, capsys):
    rest = ("--text-encoder", TEXT_ENCODER, "--output", tmp_path / "out", *HEAD_OPTIONS)
    alta = checkpoint_without(tmp_path, "ALTA.pth", "norm.bias")
    assert "norm.bias (vision_model.norm.bias here) is missing" in run_and_read_error(capsys, "--alta", alta, *rest)
    assert "nothing.pth, which does not" in run_and_read_error(capsys, "--mrm", tmp_path / "nothing.pth", *rest)
    assert "decoder_num_attention_heads` 6" in run_and_read_error(capsys, "--alta", TINY / "ALTA.pth", *rest[:4])
    assert "one of the arguments --alta --mrm is required" in run_and_read_error(capsys, *rest)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "message"), [("config.json", "config.json"), ("vocab.txt", "vocab.txt or tokenizer")]
)
def test_command_gives_a_readable_error_for_an_incomplete_text_encoder(tmp_path, capsys, name, message):
    folder = copy_text_encoder(tmp_path)
    (folder / name).unlink()
    rest = ("--text-encoder", folder, "--output", tmp_path / "out", *HEAD_OPTIONS)
    assert message in run_and_read_error(capsys, "--alta", TINY / "ALTA.pth", *rest)


def test_command_refuses_a_vocabulary_larger_than_the_word_embeddings(tmp_path, capsys):
    folder = copy_text_encoder(tmp_path)
    with (folder / "vocab.txt").open("a") as vocab:
        vocab.write("\none-more\n")
    rest = ("--text-encoder", folder, "--output", tmp_path / "out", *HEAD_OPTIONS)
    assert "at most 512 tokens, got 513" in run_and_read_error(capsys, "--alta", TINY / "ALTA.pth", *rest)
