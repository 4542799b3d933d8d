"""The inference form: equal outputs, less work, and what it refuses."""

import pytest
import torch
from peft import get_peft_model
from tiny import make_config, randomise
from torch.testing import assert_close

from benchmarks.flops import count_flops
from modeling_alta import AltaAdapterConfig, AltaModel, fold_adapters
from modeling_alta.fold_alta import VIEWS_AT_ONCE, FoldedClassTokenBlock, FoldedMlp, FoldedSerial


INPUTS = ("input_ids", "attention_mask", "pixel_values", "view_mask")
EMBEDS = ("image_embeds", "text_embeds", "logits_per_image")


def make_model(**settings) -> AltaModel:
    torch.manual_seed(0)
    return randomise(AltaModel(make_config(**settings)).eval())


@torch.no_grad()
def embeds(model, batch):
    output = model(**{name: batch[name] for name in INPUTS})
    return {name: output[name] for name in EMBEDS}


def test_folded_model_gives_the_same_embeddings_and_logits(tiny_batch):
    model = make_model()
    assert_close(embeds(fold_adapters(model), tiny_batch), embeds(model, tiny_batch), rtol=0, atol=1e-5)


def test_folding_leaves_the_model_as_it_was(tiny_batch):
    model = make_model()
    before = embeds(model, tiny_batch)
    embeds(fold_adapters(model), tiny_batch)
    assert_close(embeds(model, tiny_batch), before, rtol=0, atol=0)


def test_folded_model_shares_what_is_not_folded_until_it_is_cast_and_leaves_the_source_alone(tiny_batch):
    model = make_model()
    before, names = (
        embeds(model, tiny_batch),
        ("text_model", "vision_model.patch_embed", "vision_model.blocks.0.norm1"),
    )
    folded = fold_adapters(model)
    for name in names:
        addresses = [[p.data_ptr() for p in m.get_submodule(name).parameters()] for m in (folded, model)]
        assert addresses[0] == addresses[1], name
    folded.to(torch.bfloat16)
    assert {parameter.dtype for parameter in folded.parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert_close(embeds(model, tiny_batch), before, rtol=0, atol=0)


def test_folded_model_keeps_its_residual_stream_in_float32_under_autocast(tiny_batch):
    model, seen = make_model(), {}
    exact = embeds(model, tiny_batch)["image_embeds"]
    for form in (model, fold_adapters(model)):
        block = form.vision_model.blocks[0]
        block.register_forward_hook(lambda block, _, output: seen.update({type(block): output.dtype}))
        with torch.autocast("cpu", torch.bfloat16):
            assert (embeds(form, tiny_batch)["image_embeds"].float() - exact).abs().max() < 0.03
    assert len(seen) == 2 and set(seen.values()) == {torch.float32}


def test_folded_model_in_bfloat16_is_as_near_as_the_model_itself(tiny_batch):
    model = make_model()
    exact = embeds(model, tiny_batch)["image_embeds"]
    model.to(torch.bfloat16)
    half_batch = tiny_batch | {"pixel_values": tiny_batch["pixel_values"].bfloat16()}
    errors = [
        (embeds(m, half_batch)["image_embeds"].float() - exact).abs().max() for m in (fold_adapters(model), model)
    ]
    assert errors[0] < 1.5 * errors[1] + 1e-3


def test_adapters_become_parts_of_the_matrices():
    blocks = fold_adapters(make_model()).vision_model.blocks
    assert isinstance(blocks[0].proj, FoldedSerial) and isinstance(blocks[0].mlp, FoldedMlp)
    assert isinstance(blocks[-1], FoldedClassTokenBlock) and not isinstance(blocks[0], FoldedClassTokenBlock)


def test_last_block_computes_the_class_token_only():
    model, pixels = make_model(), torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        plain, folded = (
            count_flops(lambda form=form: form.get_image_features(pixels)) for form in (model, fold_adapters(model))
        )
    # 16 patches less in query, projection, MLP and adapters (8 wide), and as queries of the attention.
    assert plain - folded == 2 * 16 * (32 * 32 * 2 + 32 * 128 * 2 + 4 * 32 * 8 + 2 * 17 * 32)


def test_more_views_than_go_at_once_give_the_same_as_one_by_one():
    model = fold_adapters(make_model())
    pixels = torch.randn(VIEWS_AT_ONCE + 1, 3, 32, 32)
    one_by_one = torch.cat([model.get_image_features(image) for image in pixels.split(1)])
    assert_close(model.get_image_features(pixels), one_by_one, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        {"use_adapters": False},
        {"adapter_target_modules": r".*blocks\.\d+\.attn\.qkv"},
        {"adapter_target_modules": r".*blocks\.\d+\.mlp\.fc2"},
        {"adapter_target_modules": r".*blocks\.\d+\.mlp", "adapter_parallel_modules": "none"},
    ],
)
def test_adapters_that_do_not_fold_stay_as_they_are(settings, tiny_batch):
    model = make_model(**settings)
    assert_close(embeds(fold_adapters(model), tiny_batch), embeds(model, tiny_batch), rtol=0, atol=1e-5)


def test_model_of_the_training_stage_folds_without_its_decoder(tiny_pretraining_model, tiny_batch):
    folded = fold_adapters(tiny_pretraining_model)
    assert not hasattr(folded, "image_decoder")
    expected = AltaModel.forward(tiny_pretraining_model, **{name: tiny_batch[name] for name in INPUTS})
    assert_close(embeds(folded, tiny_batch)["image_embeds"], expected.image_embeds, rtol=0, atol=1e-5)


def test_class_tokens_are_what_is_left_of_the_views(tiny_batch):
    model, views = make_model(), {name: tiny_batch[name] for name in ("pixel_values", "view_mask")}
    tokens = fold_adapters(model)(**views).vision_model_output.last_hidden_state
    assert_close(tokens, model(**views).vision_model_output.last_hidden_state[:, :, :1], rtol=0, atol=1e-4)
    assert not tokens.requires_grad


def test_peft_layers_must_be_merged_first(tiny_base, tiny_batch):
    adapted = randomise(get_peft_model(tiny_base, AltaAdapterConfig()).eval())
    for model in (adapted, adapted.base_model.model):
        with pytest.raises(ValueError, match="which `merge_and_unload` gives"):
            fold_adapters(model)
    merged = adapted.merge_and_unload()
    assert_close(embeds(fold_adapters(merged), tiny_batch), embeds(merged, tiny_batch), rtol=0, atol=1e-5)


def test_model_in_training_mode_is_refused():
    with pytest.raises(ValueError, match="got training mode"):
        fold_adapters(make_model().train())


def test_folded_model_neither_trains_nor_saves(tmp_path):
    folded = fold_adapters(make_model())
    with pytest.raises(ValueError, match="no training mode"):
        folded.train()
    with pytest.raises(ValueError, match="not saved"):
        folded.save_pretrained(tmp_path)
    assert fold_adapters(folded) is folded and not folded.eval().training
