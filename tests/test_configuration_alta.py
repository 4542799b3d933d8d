import pytest
from huggingface_hub.errors import StrictDataclassError
from tiny import make_config
from transformers import AutoConfig

from modeling_alta import AltaConfig


def test_default_is_the_published_full_size():
    config = AltaConfig()
    assert (config.vision_config.hidden_size, config.vision_config.num_hidden_layers) == (768, 12)
    assert (config.text_config.vocab_size, config.text_config.hidden_size) == (30522, 768)
    assert (config.target_image_size, config.vision_config.num_patches) == (448, 196)


def test_config_survives_save_and_load_through_auto_config(tmp_path):
    config = make_config(missing_views="skip", local_contrastive_weight=2)
    config.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).to_dict() == config.to_dict() | {"_name_or_path": str(tmp_path)}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("missing_views", "zeros"),
        ("mask_ratio", 1.0),
        ("report_mask_ratio", -0.1),
        ("projection_dim", 0),
        ("decoder_num_attention_heads", 5),
        ("hidden_size", "oops"),
    ],
)
def test_config_rejects_a_bad_field_by_name(field, value):
    settings = {"vision_config": {field: value}} if field == "hidden_size" else {field: value}
    with pytest.raises(StrictDataclassError, match=field):
        AltaConfig(**settings)


def test_vision_config_rejects_an_image_that_patches_do_not_fill():
    with pytest.raises(StrictDataclassError, match="`image_size` must be a multiple of `patch_size` 16, got 225"):
        AltaConfig(vision_config={"image_size": 225})
