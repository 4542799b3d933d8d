import warnings

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from peft import get_peft_model
from tiny import make_batch, make_config
from transformers import Trainer, TrainingArguments, default_data_collator

from modeling_alta import AltaAdapterConfig, AltaConfig, AltaForMaskedRecordModeling, AltaForPreTraining, AltaModel
from modeling_alta.adapters_alta import cast_frozen_matrices
from modeling_alta.modeling_alta import contrastive_losses
from modeling_alta.vision_alta import (
    mask_patches,
    patchify,
    removed_patches,
    sincos_position_embedding,
    take_tokens,
)


LOSSES = ("global_contrastive_loss", "local_contrastive_loss", "image_reconstruction_loss", "masked_report_loss")


def test_full_size_parameters_are_those_of_the_paper():
    with torch.device("meta"):
        model = AltaForPreTraining(AltaConfig())
    model.freeze_pretrained()
    assert sum(parameter.numel() for parameter in model.parameters()) == 242_177_854
    assert sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) == 18_333_502


def test_trainable_parameters_by_group_are_those_of_the_paper():
    with torch.device("meta"):
        model = AltaForPreTraining(AltaConfig())
    model.freeze_pretrained()
    trained = {name: parameter.numel() for name, parameter in model.named_parameters() if parameter.requires_grad}

    def count(prefix, part=""):
        return sum(size for name, size in trained.items() if name.startswith(prefix) and part in name)

    assert count("vision_model.", ".adapter.") == count("text_model.", ".adapter.") == 7_100_928
    assert (count("image_decoder.predict"), count("image_decoder.embed")) == (2_362_368, 590_592)
    assert count("report_head.") == 622_650
    assert count("", "_projection.") == 460_800


def test_studies_and_texts_get_unit_embeddings_and_logits(tiny_base, tiny_batch):
    output = tiny_base(
        input_ids=tiny_batch["input_ids"][:3],
        attention_mask=tiny_batch["attention_mask"][:3],
        pixel_values=tiny_batch["pixel_values"],
        view_mask=tiny_batch["view_mask"],
    )
    torch.testing.assert_close(output.image_embeds.norm(dim=-1), torch.ones(4))
    torch.testing.assert_close(output.text_embeds.norm(dim=-1), torch.ones(3))
    cosines = output.image_embeds @ output.text_embeds.T
    torch.testing.assert_close(output.logits_per_image, cosines / 0.07)
    torch.testing.assert_close(output.logits_per_text, output.logits_per_image.T)


def test_either_modality_may_be_left_out(tiny_base, tiny_batch):
    assert tiny_base(pixel_values=tiny_batch["pixel_values"]).text_embeds is None
    assert tiny_base(input_ids=tiny_batch["input_ids"]).image_embeds is None
    with pytest.raises(ValueError, match="`input_ids` or `pixel_values` must be given"):
        tiny_base()


def test_padding_does_not_change_a_text(tiny_base):
    ids = torch.randint(5, 60, (1, 9))
    padded = torch.nn.functional.pad(ids, (0, 6))
    mask = torch.nn.functional.pad(torch.ones_like(ids), (0, 6))
    torch.testing.assert_close(tiny_base.get_text_features(padded, mask), tiny_base.get_text_features(ids))


@pytest.mark.parametrize("value", [1e9, float("nan")])
@pytest.mark.parametrize("missing_views", ["token", "skip"])
def test_pixels_of_an_absent_view_do_not_change_an_output(tiny_pretraining_model, tiny_batch, missing_views, value):
    model = tiny_pretraining_model
    model.config.missing_views = missing_views
    expected = model(**tiny_batch)
    tiny_batch["pixel_values"][~tiny_batch["view_mask"]] = value
    got = model(**tiny_batch)
    got.loss.backward()
    for name in (*LOSSES, "image_embeds"):
        torch.testing.assert_close(got[name], expected[name], rtol=0, atol=0)
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_embedding_is_the_mean_over_present_views(tiny_base, tiny_batch):
    pixels = tiny_batch["pixel_values"][:1]
    both = tiny_base(pixel_values=pixels, view_mask=torch.tensor([[True, False, True, False]]))
    tokens = both.vision_model_output.last_hidden_state[0, :, 0]
    torch.testing.assert_close(both.vision_model_output.pooler_output[0], (tokens[0] + tokens[2]) / 2)


def test_one_frontal_without_a_view_axis_is_a_study_of_one_view(tiny_base, tiny_batch):
    pixels = tiny_batch["pixel_values"]
    mask = torch.tensor([[True, False, False, False]]).expand(4, -1)
    alone = tiny_base.get_image_features(pixels[:, 0])
    torch.testing.assert_close(alone, tiny_base.get_image_features(pixels, mask))


def test_a_study_gives_the_same_embedding_in_any_batch(tiny_base, tiny_batch):
    pixels, mask = tiny_batch["pixel_values"], tiny_batch["view_mask"]
    together = tiny_base.get_image_features(pixels, mask)
    for i in range(len(pixels)):
        torch.testing.assert_close(tiny_base.get_image_features(pixels[i : i + 1], mask[i : i + 1])[0], together[i])


def test_views_and_times_are_told_apart(tiny_pretraining_model, tiny_batch):
    pixels = tiny_batch["pixel_values"][:1, :1].expand(-1, 4, -1, -1, -1)
    mask = torch.ones(1, 4, dtype=torch.bool)
    tokens = tiny_pretraining_model.vision_model(pixels, mask).last_hidden_state[0, :, 0]
    assert torch.pdist(tokens).min() > 1e-4


@pytest.mark.parametrize(
    ("pixels", "mask", "message"),
    [
        ((2, 4, 3, 30, 32), None, r"`pixel_values` must have shape \(batch, 4, 3, 32, 32\).*got \(2, 4, 3, 30, 32\)"),
        ((2, 3, 3, 32, 32), None, r"got \(2, 3, 3, 32, 32\)"),
        ((2, 2, 32, 32), None, r"got \(2, 1, 2, 32, 32\)"),
        ((2, 4, 3, 32, 32), [[True] * 3] * 2, r"`view_mask` must have shape \(2, 4\), got \(2, 3\)"),
        (
            (2, 4, 3, 32, 32),
            [[True] * 4, [False, False, True, True]],
            r"current view in every study, got none in \[1\]",
        ),
    ],
)
def test_wrong_views_are_an_error_that_says_what_came(tiny_base, pixels, mask, message):
    with pytest.raises(ValueError, match=message):
        tiny_base(pixel_values=torch.zeros(pixels), view_mask=None if mask is None else torch.tensor(mask))


def test_a_text_beyond_the_positions_is_an_error(tiny_base):
    with pytest.raises(ValueError, match=r"at most 40 tokens, got \(1, 41\)"):
        tiny_base(input_ids=torch.ones(1, 41, dtype=torch.long))


def test_wrong_target_is_an_error_that_says_what_came(tiny_pretraining_model, tiny_batch):
    tiny_batch["target_pixel_values"] = torch.zeros(4, 3, 32, 32)
    with pytest.raises(ValueError, match=r"must have shape \(4, 3, 64, 64\), got \(4, 3, 32, 32\)"):
        tiny_pretraining_model(**tiny_batch)


def test_return_loss_is_the_global_contrastive_loss(tiny_base, tiny_batch):
    output = tiny_base(
        input_ids=tiny_batch["input_ids"],
        pixel_values=tiny_batch["pixel_values"],
        view_mask=tiny_batch["view_mask"],
        return_loss=True,
    )
    target = torch.arange(4)
    rows = torch.nn.functional.cross_entropy(output.logits_per_text, target)
    columns = torch.nn.functional.cross_entropy(output.logits_per_image, target)
    torch.testing.assert_close(output.loss, (rows + columns) / 2)


@pytest.mark.parametrize("missing_views", ["token", "skip"])
def test_loss_is_the_weighted_sum_of_the_four(tiny_batch, missing_views):
    torch.manual_seed(0)
    weights = {"global_contrastive_weight": 2.0, "masked_report_weight": 0.5}
    output = AltaForPreTraining(make_config(missing_views=missing_views, **weights)).eval()(**tiny_batch)
    expected = 2 * output[LOSSES[0]] + output[LOSSES[1]] + output[LOSSES[2]] + 0.5 * output[LOSSES[3]]
    torch.testing.assert_close(output.loss, expected)


def test_missing_token_counts_in_the_mean_only_where_it_is_chosen(tiny_pretraining_model, tiny_batch):
    model = tiny_pretraining_model
    model.config.missing_views = "token"
    assert model(**tiny_batch).vision_model_output.computed_views.all()
    model.config.missing_views = "skip"
    output = model(**tiny_batch).vision_model_output
    assert torch.equal(output.computed_views, tiny_batch["view_mask"])
    assert (output.last_hidden_state[~tiny_batch["view_mask"]] == 0).all()


@pytest.mark.parametrize(("num_studies", "num_tokens"), [(1, 4), (3, 32), (7, 9)])
def test_batches_of_any_size_and_length_train(tiny_pretraining_model, num_studies, num_tokens):
    output = tiny_pretraining_model(**make_batch(num_studies, num_tokens, seed=num_studies))
    output.loss.backward()
    assert output.loss.isfinite()


def test_a_batch_without_any_current_frontal_trains(tiny_pretraining_model, tiny_batch):
    tiny_batch["view_mask"] = torch.tensor([[False, True, False, False]]).expand(4, -1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        output = tiny_pretraining_model(**tiny_batch)
    output.loss.backward()
    assert output.image_reconstruction_loss == 0
    assert tiny_pretraining_model.image_decoder.predict.weight.grad is not None


def count_saved_elements(model, batch) -> tuple[int, dict[str, torch.Tensor]]:
    """Elements that a forward and backward pass keeps for its gradients, and these."""
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: sizes.append(tensor.numel()) or tensor, lambda t: t):
        loss = model(**batch).loss
    model.zero_grad()
    loss.backward()
    return sum(sizes), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("part", ["vision_model.blocks", "image_decoder.blocks", "text_model.encoder.layer"])
def test_gradient_checkpointing_of_each_tower_keeps_less_and_changes_nothing(tiny_pretraining_model, tiny_batch, part):
    model = tiny_pretraining_model
    whole, expected = count_saved_elements(model, tiny_batch)
    model.activation_checkpointing_enable()
    for name, module in model.named_modules():
        # Layers checkpoint in training only, and here without dropout.
        module.training = ".".join(name.split(".")[:-1]) == part
    less, gradients = count_saved_elements(model, tiny_batch)
    assert less < whole
    torch.testing.assert_close(gradients, expected)


def test_gradient_checkpointing_runs_the_adapters_again(tiny_base, tiny_batch):
    model = get_peft_model(tiny_base, AltaAdapterConfig())
    model.activation_checkpointing_enable()
    model.train()
    calls = []
    layer = model.base_model.model.vision_model.blocks[0].mlp.alta_adapter_down["default"]
    layer.register_forward_hook(lambda *_: calls.append(1))
    model(pixel_values=tiny_batch["pixel_values"]).image_embeds.sum().backward()
    assert len(calls) == 2


def test_frozen_matrices_in_bfloat16_change_nothing_under_autocast(tiny_pretraining_model, tiny_batch):
    results = []
    for is_cast in (False, True):
        if is_cast:
            cast_frozen_matrices(tiny_pretraining_model, torch.bfloat16)
        tiny_pretraining_model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = tiny_pretraining_model(**tiny_batch).loss
        loss.backward()
        gradients = {n: p.grad.clone() for n, p in tiny_pretraining_model.named_parameters() if p.grad is not None}
        results.append((loss.detach(), gradients))
    torch.testing.assert_close(*results, rtol=0, atol=0)
    assert tiny_pretraining_model.vision_model.blocks[0].attn.qkv.weight.dtype == torch.bfloat16
    assert all(p.dtype == torch.float32 for p in tiny_pretraining_model.parameters() if p.requires_grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_model_takes_the_float32_pixels_of_its_processor(tiny_base, tiny_batch, dtype):
    names = ("input_ids", "attention_mask", "pixel_values", "view_mask")
    inputs = {name: tiny_batch[name] for name in names}
    expected = tiny_base(**inputs)
    output = tiny_base.to(dtype)(**inputs)
    for name in ("image_embeds", "text_embeds"):
        assert output[name].dtype == dtype
        torch.testing.assert_close(output[name].float(), expected[name], rtol=0, atol=0.03)


def test_float32_model_takes_half_precision_pixels(tiny_base, tiny_batch):
    halves = tiny_batch["pixel_values"].bfloat16()
    assert torch.equal(tiny_base.get_image_features(halves), tiny_base.get_image_features(halves.float()))


@pytest.mark.parametrize("first", ["vision_model.blocks.0", "vision_model.blocks.1", "vision_model.norm"])
def test_towers_may_be_split_between_devices(tiny_base, tiny_batch, first):
    # The meta device stands for a second one: it computes shapes, and refuses tensors of another device.
    names = [name for name, module in tiny_base.named_modules() if type(module).__name__ in ("AltaBlock", "BertLayer")]
    names += ["vision_model.norm", *(name for name, _ in tiny_base.named_children() if "_projection" in name)]
    for name in names:
        if not (name.startswith("vision_model") and name < first) and name != "text_model.encoder.layer.0":
            module = tiny_base.get_submodule(name).to("meta")
            add_hook_to_module(module, AlignDevicesHook(execution_device="meta"))
    text = tiny_base.get_text_features(tiny_batch["input_ids"], tiny_batch["attention_mask"])
    image = tiny_base.get_image_features(tiny_batch["pixel_values"], tiny_batch["view_mask"])
    assert text.is_meta and image.is_meta and text.shape == image.shape == (4, 16)


def test_decoder_predicts_chosen_patches_as_among_all(tiny_pretraining_model, tiny_batch):
    vision = tiny_pretraining_model(**tiny_batch).vision_model_output
    tokens, ids_restore = vision.last_hidden_state[:, 0], vision.ids_restore[:, 0]
    removed = removed_patches(ids_restore, 4)
    assert torch.equal(torch.zeros_like(vision.mask[:, 0]).scatter(1, removed, 1), vision.mask[:, 0])
    decoder = tiny_pretraining_model.image_decoder
    expected = take_tokens(decoder(tokens, ids_restore), removed)
    torch.testing.assert_close(decoder(tokens, ids_restore, removed), expected)


def test_model_survives_save_and_load_bit_for_bit(tiny_pretraining_model, tiny_batch, tmp_path):
    tiny_pretraining_model.save_pretrained(tmp_path)
    expected = tiny_pretraining_model(**tiny_batch)
    got = AltaForPreTraining.from_pretrained(tmp_path).eval()(**tiny_batch)
    torch.testing.assert_close(got.loss, expected.loss, rtol=0, atol=0)
    pixels = tiny_batch["pixel_values"], tiny_batch["view_mask"]
    loaded = AltaModel.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(
        loaded.get_image_features(*pixels), tiny_pretraining_model.get_image_features(*pixels), rtol=0, atol=0
    )


@pytest.mark.parametrize("model_class", [AltaModel, AltaForPreTraining, AltaForMaskedRecordModeling])
def test_a_loaded_model_keeps_frozen_what_a_new_one_does(model_class, tmp_path):
    model = model_class(make_config(use_adapters=False))
    model.save_pretrained(tmp_path)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    loaded = model_class.from_pretrained(tmp_path)
    assert {name for name, parameter in loaded.named_parameters() if not parameter.requires_grad} == frozen
    assert {"vision_model.pos_embed", "vision_model.missing_token"} <= frozen


def test_a_checkpoint_of_another_size_is_an_error(tiny_base, tmp_path):
    tiny_base.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        AltaModel.from_pretrained(tmp_path, config=make_config(use_adapters=False, projection_dim=8))


def test_what_a_checkpoint_lacks_starts_as_in_a_new_model(tiny_pretraining_model, tmp_path):
    state = tiny_pretraining_model.state_dict()
    kept = {name: value for name, value in state.items() if ".adapter." not in name and "image_decoder" not in name}
    tiny_pretraining_model.save_pretrained(tmp_path, state_dict=kept)
    loaded = AltaForPreTraining.from_pretrained(tmp_path)
    assert all((p == 0).all() for name, p in loaded.named_parameters() if name.endswith("adapter.up.weight"))
    assert loaded.image_decoder.pos_embed[0, 1:].norm(dim=-1).min() > 1
    assert loaded.image_decoder.mask_token.token.std() > 0.005


def test_adapters_start_at_the_identity(tiny_base, tiny_batch):
    full = AltaModel(make_config()).eval()
    state = {
        name.replace(".base.", "."): value for name, value in full.state_dict().items() if ".adapter." not in name
    }
    tiny_base.load_state_dict(state)
    pixels = tiny_batch["pixel_values"], tiny_batch["view_mask"]
    torch.testing.assert_close(full.get_image_features(*pixels), tiny_base.get_image_features(*pixels), rtol=0, atol=0)
    ids = tiny_batch["input_ids"]
    torch.testing.assert_close(full.get_text_features(ids), tiny_base.get_text_features(ids), rtol=0, atol=0)


def test_masking_keeps_the_smallest_noise_and_its_order_can_be_undone():
    patches = torch.arange(8.0).reshape(1, 8, 1)
    noise = torch.tensor([[0.5, 0.1, 0.9, 0.2, 0.8, 0.7, 0.6, 0.4]])
    kept, mask, ids_restore = mask_patches(patches, 0.75, noise)
    assert kept.flatten().tolist() == [1, 3]
    assert mask.tolist() == [[1, 0, 1, 0, 1, 1, 1, 1]]
    filled = torch.cat([kept.flatten(), torch.full((6,), -1.0)])[ids_restore[0]]
    assert filled.tolist() == [-1, 1, -1, 3, -1, -1, -1, -1]


def test_patch_vectors_are_ordered_row_column_channel():
    image = torch.arange(2 * 4 * 4.0).reshape(1, 2, 4, 4)
    first = patchify(image, 2)[0, 0].reshape(2, 2, 2)
    for row in range(2):
        for column in range(2):
            assert first[row, column].tolist() == image[0, :, row, column].tolist()


def test_position_embedding_turns_columns_first_and_leaves_the_class_token_zero():
    embedding = sincos_position_embedding(torch.zeros(1, 10, 8))[0]
    assert (embedding[0] == 0).all()
    second_column, second_row = embedding[2], embedding[4]
    torch.testing.assert_close(second_column[:2], torch.sin(torch.tensor([1.0, 0.01])))
    torch.testing.assert_close(second_row[4:6], torch.sin(torch.tensor([1.0, 0.01])))


def test_embeddings_joined_from_parts_give_the_contrast_of_the_whole_batch(tiny_pretraining_model, tiny_batch):
    whole = tiny_pretraining_model(**tiny_batch)
    part = tiny_pretraining_model(**tiny_batch, contrast=False)
    assert part.global_contrastive_loss is None and part.local_contrastive_loss is None
    torch.testing.assert_close(part.loss, part.image_reconstruction_loss + part.masked_report_loss)
    expected = torch.stack([whole.global_contrastive_loss, whole.local_contrastive_loss])
    torch.testing.assert_close(torch.stack(contrastive_losses(part)), expected)


def test_one_channel_stands_for_all_three(tiny_pretraining_model, tiny_batch):
    grey = tiny_batch | {name: tiny_batch[name][..., :1, :, :] for name in ("pixel_values", "target_pixel_values")}
    colours = {name: grey[name].expand_as(tiny_batch[name]) for name in ("pixel_values", "target_pixel_values")}
    expected = tiny_pretraining_model(**tiny_batch | colours).loss
    torch.testing.assert_close(tiny_pretraining_model(**grey).loss, expected)


def make_trained_studies(model_class) -> list[dict[str, torch.Tensor]]:
    """Two single studies that a training model takes, with the noise of their masking."""
    batch, is_mrm = make_batch(2), model_class is AltaForMaskedRecordModeling
    if is_mrm:
        batch |= {"pixel_values": batch["pixel_values"][:, 0], "noise": batch["noise"][:, 0]}
    names = batch.keys() - ({"input_ids", "view_mask"} if is_mrm else set())
    return [{name: batch[name][index] for name in names} for index in range(2)]


@pytest.mark.parametrize("model_class", [AltaForPreTraining, AltaForMaskedRecordModeling])
def test_stock_trainer_averages_accumulated_batches(model_class, tmp_path):
    config = make_config(use_adapters=False)
    config.text_config.hidden_dropout_prob = config.text_config.attention_probs_dropout_prob = 0.0
    model, studies = model_class(config), make_trained_studies(model_class)
    with torch.no_grad():
        losses = [model(**default_data_collator([study])).loss.item() for study in studies]
    arguments = TrainingArguments(
        tmp_path, max_steps=1, per_device_train_batch_size=1, gradient_accumulation_steps=2, logging_steps=1,
        remove_unused_columns=False, report_to=[], save_strategy="no", use_cpu=True,
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=studies)
    assert trainer.train().training_loss == pytest.approx(sum(losses) / 2, rel=1e-4)
