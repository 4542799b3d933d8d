"""What an arm starts from: a converted base, and what of it trains."""

from pathlib import Path

import torch
from peft import get_peft_model
from torch import nn

from evidence.arms import Arm
from evidence.settings import Settings
from modeling_alta import AltaAdapterConfig, AltaForPreTraining, AltaModel
from modeling_alta.convert_alta import convert_mrm


__all__ = ["base_model", "build_model"]

HEADS = (
    "image_projection.",
    "image_local_projection.",
    "text_projection.",
    "text_local_projection.",
    "logit_scale.",
    "local_logit_scales.",
)
FIXED = ("pos_embed", "missing_token")


def build_model(arm: Arm, settings: Settings, folder: Path, seed: int) -> nn.Module:
    """
    The model of an arm before its training.

    Args:
        arm ([`Arm`]), settings ([`Settings`]).
        folder (`Path`): holds `mrm` and `text_encoder` of the seed.
        seed (`int`): of the weights that are new.
    """
    torch.manual_seed(seed)
    fields = {**settings.alignment, **arm.settings}
    model, _ = convert_mrm(folder / "mrm", folder / "text_encoder", **fields)
    if not arm.is_pretrained:
        _randomise_vision(model)
    if arm.contrast_only:
        model = _without_reconstruction(model)
    if arm.trains == "adapters":
        return _adapt(model, arm, settings)
    for name, parameter in model.named_parameters():
        is_trained = name.startswith(HEADS) if arm.trains == "heads" else not name.endswith(FIXED)
        parameter.requires_grad_(is_trained)
    return model


def _adapt(model: AltaForPreTraining, arm: Arm, settings: Settings) -> nn.Module:
    """The model with PEFT adapters, and the towers that the arm opens."""
    ratio = arm.bottleneck_ratio or settings.bottleneck_ratio
    opened = [p for name, p in model.named_parameters() if name.startswith(arm.opens) and not name.endswith(FIXED)]
    adapted = get_peft_model(model, AltaAdapterConfig(bottleneck_ratio=ratio))
    for parameter in opened:
        parameter.requires_grad_(True)
    return adapted


def base_model(model: nn.Module) -> AltaModel:
    """The ALTA model itself, adapters inside where PEFT put them."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _randomise_vision(model: AltaForPreTraining) -> None:
    fresh = AltaForPreTraining(model.config)
    for name in ("vision_model", "image_decoder"):
        getattr(model, name).load_state_dict(getattr(fresh, name).state_dict())


def _without_reconstruction(model: AltaForPreTraining) -> "ContrastiveModel":
    contrastive = ContrastiveModel(model.config)
    expected = contrastive.state_dict()
    contrastive.load_state_dict({name: value for name, value in model.state_dict().items() if name in expected})
    return contrastive


class ContrastiveModel(AltaModel):
    """A CLIP: the batch of the other arms, of which the whole images and reports alone are used."""

    def forward(self, input_ids, attention_mask, pixel_values, view_mask, **kwargs):
        return super().forward(
            input_ids, attention_mask, pixel_values=pixel_values, view_mask=view_mask, return_loss=True
        )
