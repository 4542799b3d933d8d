import json

import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from tiny import make_batch, make_config, randomise

from modeling_alta import AltaAdapterConfig, AltaConfig, AltaForPreTraining, AltaModel
from modeling_alta.adapters_alta import cast_frozen_matrices


def copy_of(base: AltaModel) -> AltaModel:
    model = type(base)(make_config(use_adapters=False)).eval()
    model.load_state_dict(base.state_dict())
    return model


def logits(model) -> torch.Tensor:
    batch = make_batch()
    names = ("input_ids", "attention_mask", "pixel_values", "view_mask")
    with torch.no_grad():
        return model(**{name: batch[name] for name in names}).logits_per_image


@pytest.fixture
def trained(tiny_base) -> PeftModel:
    """An adapter over a copy of `tiny_base`, everything it trains moved from its start."""
    return randomise(get_peft_model(copy_of(tiny_base), AltaAdapterConfig())).eval()


def test_adapter_is_the_identity_at_the_start(tiny_base):
    assert torch.equal(logits(get_peft_model(copy_of(tiny_base), AltaAdapterConfig())), logits(tiny_base))


def test_peft_trains_the_published_parameters_and_no_other():
    with torch.device("meta"):
        native, base = AltaForPreTraining(AltaConfig()), AltaForPreTraining(AltaConfig(use_adapters=False))
    native.freeze_pretrained()
    trained, total = get_peft_model(base, AltaAdapterConfig()).get_nb_trainable_parameters()
    assert trained == sum(p.numel() for p in native.parameters() if p.requires_grad) == 18_333_502
    # PEFT keeps the untrained copies of what trains beside the adapters, so that they can be switched off.
    assert total - trained == sum(p.numel() for p in native.parameters()) - 2 * 7_100_928


def test_peft_trains_the_same_modules_as_the_native_freeze(tiny_base):
    native = AltaModel(make_config())
    native.freeze_pretrained()
    model = get_peft_model(copy_of(tiny_base), AltaAdapterConfig())
    full_names = {n for n, p in native.named_parameters() if p.requires_grad}
    trained = {n: p.shape for n, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == len(full_names)
    assert sum(s.numel() for s in trained.values()) == sum(p.numel() for p in native.parameters() if p.requires_grad)


def test_print_trainable_parameters_tells_the_share(trained, capsys):
    trained.print_trainable_parameters()
    assert f"trainable params: {trained.get_nb_trainable_parameters()[0]:,d}" in capsys.readouterr().out


def test_only_trained_parameters_get_gradients():
    torch.manual_seed(0)
    model = get_peft_model(AltaForPreTraining(make_config(use_adapters=False)), AltaAdapterConfig())
    randomise(model)(**make_batch()).loss.backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert with_gradient == {name for name, p in model.named_parameters() if p.requires_grad}


def test_disabled_adapter_is_bitwise_the_base_tokens_norms_and_heads_included(tiny_base, trained):
    assert not torch.equal(logits(trained), logits(tiny_base))
    with trained.disable_adapter():
        assert torch.equal(logits(trained), logits(tiny_base))
    assert not torch.equal(logits(trained), logits(tiny_base))


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_saved_adapter_loads_over_the_base(tiny_base, trained, tmp_path, low_cpu_mem_usage):
    trained.save_pretrained(tmp_path)
    assert isinstance(PeftConfig.from_pretrained(tmp_path), AltaAdapterConfig)
    loaded = PeftModel.from_pretrained(copy_of(tiny_base), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage).eval()
    assert torch.equal(logits(loaded), logits(trained))


def test_adapter_file_holds_what_trains_and_nothing_of_the_base(trained, tmp_path):
    trained.save_pretrained(tmp_path)
    size = (tmp_path / "adapter_model.safetensors").stat().st_size
    count = trained.get_nb_trainable_parameters()[0]
    assert 4 * count < size < 4 * count + 20_000


def test_load_adapter_of_transformers_gives_the_same_and_switches_off_and_on(tiny_base, trained, tmp_path):
    trained.save_pretrained(tmp_path)
    model = copy_of(tiny_base)
    model.load_adapter(tmp_path)
    assert torch.equal(logits(model), logits(trained))
    model.disable_adapters()
    assert torch.equal(logits(model), logits(tiny_base))
    model.enable_adapters()
    assert torch.equal(logits(model), logits(trained))


def test_second_adapter_stands_beside_the_first(tiny_base, trained):
    first = logits(trained)
    trained.add_adapter("hospital", AltaAdapterConfig(bottleneck_ratio=0.5, parallel_scale=2.0))
    trained.set_adapter("hospital")
    assert torch.equal(logits(trained), logits(tiny_base))
    second = logits(randomise(trained, seed=1))
    trained.set_adapter("default")
    assert torch.equal(logits(trained), first)
    trained.set_adapter("hospital")
    assert torch.equal(logits(trained), second)
    trained.delete_adapter("hospital")
    trained.set_adapter("default")
    assert torch.equal(logits(trained), first)


def test_inactive_second_adapter_does_not_train(trained):
    trained.add_adapter("hospital", AltaAdapterConfig())
    assert not any(p.requires_grad for name, p in trained.named_parameters() if "hospital" in name)
    trained.set_adapter("hospital")
    assert any(p.requires_grad for name, p in trained.named_parameters() if "hospital" in name)
    assert not any(p.requires_grad for name, p in trained.named_parameters() if "default" in name)


def test_unload_gives_the_base_back(tiny_base, trained):
    assert torch.equal(logits(trained.unload()), logits(tiny_base))


def test_merge_and_unload_gives_a_full_model_that_saves_and_loads(trained, tmp_path):
    expected = logits(trained)
    config_before = trained.base_model.model.config.to_dict()
    full = trained.merge_and_unload()
    assert torch.equal(logits(full), expected)
    assert full.config.use_adapters and not config_before["use_adapters"]
    full.save_pretrained(tmp_path)
    loaded = AltaModel.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(loaded), expected)
    assert loaded.state_dict().keys() == AltaModel(make_config()).state_dict().keys()


def test_adapter_of_chosen_modules_and_sizes_survives_the_merge(tiny_base, tmp_path):
    config = AltaAdapterConfig(
        bottleneck_ratio=0.5, parallel_scale=0.1, target_modules=["attn.proj", "mlp"], parallel_modules=["mlp"]
    )
    model = randomise(get_peft_model(copy_of(tiny_base), config)).eval()
    expected = logits(model)
    model.merge_and_unload().save_pretrained(tmp_path)
    assert torch.equal(logits(AltaModel.from_pretrained(tmp_path).eval()), expected)


@pytest.mark.parametrize("target_modules", [AltaAdapterConfig().target_modules, ["attn.proj", "mlp"]])
@pytest.mark.parametrize(
    "exclude_modules", [r".*blocks\.0\..*|.*layer\.1\.output", ["blocks.0.attn.proj", "mlp"], ["proj"], []]
)
def test_modules_excluded_from_the_adapter_survive_the_merge(tiny_base, tmp_path, target_modules, exclude_modules):
    config = AltaAdapterConfig(target_modules=target_modules, exclude_modules=exclude_modules)
    model = randomise(get_peft_model(copy_of(tiny_base), config)).eval()
    expected = logits(model)
    model.merge_and_unload().save_pretrained(tmp_path)
    loaded, info = AltaModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(logits(loaded.eval()), expected)


def test_new_adapter_goes_over_a_full_model_without_touching_it(trained, tmp_path):
    full = trained.merge_and_unload()
    expected = logits(full)
    state = {name: value.clone() for name, value in full.state_dict().items()}
    model = get_peft_model(full, AltaAdapterConfig())
    assert torch.equal(logits(model), expected)
    assert not torch.equal(logits(randomise(model)), expected)
    with pytest.raises(ValueError, match="takes one adapter over a base without adapters inside"):
        model.merge_and_unload()
    assert all(torch.equal(value, state[name]) for name, value in model.unload().state_dict().items())


def test_lora_can_take_the_place_of_the_adapters(tiny_base, tmp_path):
    config = LoraConfig(target_modules=["qkv", "query", "value"], modules_to_save=["image_projection"])
    model = randomise(get_peft_model(copy_of(tiny_base), config)).eval()
    expected = logits(model)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(copy_of(tiny_base), tmp_path)), expected)
    torch.testing.assert_close(logits(model.merge_and_unload()), expected, rtol=1e-4, atol=1e-4)


def test_pretraining_adapter_loads_over_a_model_without_the_decoder(tmp_path):
    torch.manual_seed(0)
    base = AltaForPreTraining(make_config(use_adapters=False)).eval()
    model = randomise(get_peft_model(base, AltaAdapterConfig())).eval()
    model.save_pretrained(tmp_path)
    batch = make_batch()
    expected = model.base_model.model.get_image_features(batch["pixel_values"], batch["view_mask"])
    plain = AltaModel(make_config(use_adapters=False)).eval()
    state = model.unload().state_dict()
    plain.load_state_dict({name: state[name] for name in plain.state_dict()})
    loaded = PeftModel.from_pretrained(plain, tmp_path).base_model.model
    assert torch.equal(loaded.get_image_features(batch["pixel_values"], batch["view_mask"]), expected)


def test_adapters_of_a_bfloat16_base_train_in_float32(tiny_base):
    model = get_peft_model(copy_of(tiny_base).to(torch.bfloat16), AltaAdapterConfig())
    adapters = [p for name, p in model.named_parameters() if "alta_adapter_" in name]
    assert adapters and all(p.dtype == torch.float32 for p in adapters)
    batch = make_batch()
    pixels = batch["pixel_values"].to(torch.bfloat16)
    assert model.base_model.model.get_image_features(pixels, batch["view_mask"]).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_merge_over_a_half_precision_base_gives_a_model_of_its_dtype_that_runs(trained, tiny_base, tmp_path, dtype):
    trained.save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(copy_of(tiny_base).to(dtype), tmp_path).eval()
    expected = logits(model)
    full = model.merge_and_unload()
    assert {parameter.dtype for parameter in full.parameters()} == {dtype}
    torch.testing.assert_close(logits(full), expected, rtol=0, atol=0.3)  # logits are cosines over 0.07


def test_merge_over_frozen_matrices_in_bfloat16_keeps_what_was_trained_in_float32(trained):
    cast_frozen_matrices(trained, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        expected = logits(trained)
        full = trained.merge_and_unload()
        assert torch.equal(logits(full), expected)
    dtypes = {name: parameter.dtype for name, parameter in full.named_parameters()}
    assert dtypes["vision_model.blocks.0.attn.proj.base.weight"] == torch.bfloat16
    assert all(dtype == torch.float32 for name, dtype in dtypes.items() if "adapter" in name or "norm" in name.lower())


def test_under_autocast_an_adapter_gives_bit_for_bit_what_it_gives_inside_a_full_model(trained):
    with torch.autocast("cpu", torch.bfloat16):
        apart = logits(trained)
        inside = logits(trained.merge_and_unload())
    assert torch.equal(apart, inside)


def test_adapter_config_is_json_and_names_its_type(trained, tmp_path):
    trained.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["peft_type"], config["bottleneck_ratio"], config["parallel_scale"]) == ("ALTA_ADAPTER", 0.25, 0.5)


def test_a_ratio_that_is_not_positive_is_an_error():
    with pytest.raises(ValueError, match="`bottleneck_ratio` must be positive, got 0"):
        AltaAdapterConfig(bottleneck_ratio=0)


def test_merging_in_place_is_an_error_that_names_the_other_way(trained):
    with pytest.raises(ValueError, match="merge_and_unload"):
        trained.merge_adapter()
