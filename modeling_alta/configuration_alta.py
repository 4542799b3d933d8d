"""Configuration of ALTA: every size, scale, weight and ratio of the published model is a field here."""

import math

from huggingface_hub.dataclasses import strict
from transformers import BertConfig, PreTrainedConfig


# The order of the view axis in `pixel_values` and `view_mask`.
VIEW_NAMES = ("current_frontal", "current_lateral", "prior_frontal", "prior_lateral")

# Where the published adapters sit: after the attention projection (serial) and beside the MLP (parallel) of every
# block of both towers.
ADAPTER_TARGET_MODULES = (
    r"(.*\.)?(vision_model\.blocks\.\d+\.(attn\.proj|mlp)|text_model\.encoder\.layer\.\d+\.(attention\.)?output)"
)
ADAPTER_PARALLEL_MODULES = r"(.*\.)?(vision_model\.blocks\.\d+\.mlp|text_model\.encoder\.layer\.\d+\.output)"


@strict
class AltaVisionConfig(PreTrainedConfig):
    """Sizes of the vision tower, a ViT-B/16 at 224 px by default (paper, section III-A)."""

    model_type = "alta_vision_model"
    base_config_key = "vision_config"

    image_size: int = 224
    patch_size: int = 16
    num_channels: int = 3
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    mlp_ratio: float | int = 4.0
    layer_norm_eps: float | int = 1e-6
    qkv_bias: bool = True
    initializer_range: float | int = 0.02

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    def validate_architecture(self):
        super().validate_architecture()
        if self.image_size % self.patch_size:
            raise ValueError(
                f"`image_size` must be a multiple of `patch_size` {self.patch_size}, got {self.image_size}."
            )
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"`hidden_size` must be a multiple of `num_attention_heads` {self.num_attention_heads}, "
                f"got {self.hidden_size}."
            )


@strict
class AltaConfig(PreTrainedConfig):
    """
    Configuration of an ALTA model. Without arguments it is the published full-size model.

    Args:
        text_config (`dict` or `BertConfig`): the text tower, CXR-BERT's sizes by default.
        vision_config (`dict` or `AltaVisionConfig`): the vision tower.
        projection_dim (`int`): size of the global and local embeddings.
        max_report_length (`int`): tokens of a report, special tokens included.
        use_adapters (`bool`): `True` for a full model with its adapters inside, `False` for the frozen base over which
            PEFT adapters are put.
        adapter_bottleneck_ratio (`float`): adapter width over hidden size.
        parallel_adapter_scale (`float`): factor of the adapter beside an MLP.
        adapter_target_modules, adapter_parallel_modules (`str`): regular expressions that match the full name of every
            adapted module, and of those among them whose adapter is parallel.
        missing_views (`str`): `"token"` runs an absent view on `missing_token` in training, as published; `"skip"`
            computes the present views only.
        mask_ratio, report_mask_ratio (`float`): share of the patches and of the report tokens masked in training.
        logit_scale_init_value (`float`): initial logarithm of the global and of the three local scales.

    Raises:
        Any field of a wrong type or range raises an error that names the field (a
        `huggingface_hub.errors.StrictDataclassError`).
    """

    model_type = "alta"
    sub_configs = {"text_config": BertConfig, "vision_config": AltaVisionConfig}

    text_config: dict | BertConfig | None = None
    vision_config: dict | AltaVisionConfig | None = None
    projection_dim: int = 128
    projection_layer_norm_eps: float | int = 1e-12
    max_report_length: int = 128
    use_adapters: bool = True
    adapter_bottleneck_ratio: float | int = 0.25
    parallel_adapter_scale: float | int = 0.5
    adapter_target_modules: str = ADAPTER_TARGET_MODULES
    adapter_parallel_modules: str = ADAPTER_PARALLEL_MODULES
    missing_views: str = "token"
    mask_ratio: float | int = 0.75
    report_mask_ratio: float | int = 0.5
    decoder_hidden_size: int = 768
    decoder_num_hidden_layers: int = 4
    decoder_num_attention_heads: int = 6
    decoder_patch_size: int = 32
    norm_pix_loss: bool = True
    logit_scale_init_value: float | int = math.log(1 / 0.07)
    global_contrastive_weight: float | int = 1.0
    local_contrastive_weight: float | int = 1.0
    image_reconstruction_weight: float | int = 1.0
    masked_report_weight: float | int = 1.0
    initializer_range: float | int = 0.02

    def __post_init__(self, **kwargs):
        self.text_config = _sub_config(BertConfig, self.text_config)
        self.vision_config = _sub_config(AltaVisionConfig, self.vision_config)
        super().__post_init__(**kwargs)

    @property
    def target_image_size(self) -> int:
        """Side in pixels of the image that the decoder reconstructs, 448 at full size."""
        return self.vision_config.image_size // self.vision_config.patch_size * self.decoder_patch_size

    def validate_architecture(self):
        super().validate_architecture()
        if self.missing_views not in ("token", "skip"):
            raise ValueError(f"`missing_views` must be 'token' or 'skip', got {self.missing_views!r}.")
        for name in ("mask_ratio", "report_mask_ratio"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be in [0, 1), got {getattr(self, name)}.")
        positive = ("projection_dim", "decoder_hidden_size", "decoder_patch_size", "max_report_length")
        for name in (*positive, "decoder_num_hidden_layers", "decoder_num_attention_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.decoder_hidden_size % self.decoder_num_attention_heads:
            raise ValueError(
                f"`decoder_hidden_size` must be a multiple of `decoder_num_attention_heads` "
                f"{self.decoder_num_attention_heads}, got {self.decoder_hidden_size}."
            )


def _sub_config(config_class: type[PreTrainedConfig], value: dict | PreTrainedConfig | None) -> PreTrainedConfig:
    if isinstance(value, dict):
        return config_class(**value)
    return config_class() if value is None else value


__all__ = ["VIEW_NAMES", "AltaConfig", "AltaVisionConfig"]
