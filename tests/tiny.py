"""Tiny models and batches for every test."""

import pytest
import torch

from modeling_alta import AltaConfig, AltaForPreTraining, AltaModel


# Tiny models gain nothing from threads, and wait for each other where the machine is shared.
torch.set_num_threads(1)

TINY_VISION = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
TINY_TEXT = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
}


def make_config(**settings) -> AltaConfig:
    """A tiny configuration: 16 patches a view, targets of 64 px."""
    defaults = {
        "projection_dim": 16,
        "decoder_hidden_size": 32,
        "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 2,
        "decoder_patch_size": 16,
        "max_report_length": 32,
    }
    return AltaConfig(vision_config=dict(TINY_VISION), text_config=dict(TINY_TEXT), **(defaults | settings))


def make_batch(num_studies: int = 4, num_tokens: int = 12, seed: int = 0) -> dict[str, torch.Tensor]:
    """Inputs of `AltaForPreTraining.forward` with every pattern of present views and reports of several lengths."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(num_tokens // 2, num_tokens + 1, (num_studies,), generator=generator)
    attention_mask = (torch.arange(num_tokens) < lengths[:, None]).long()
    input_ids = torch.randint(5, 60, (num_studies, num_tokens), generator=generator) * attention_mask
    is_masked = (torch.rand(num_studies, num_tokens, generator=generator) < 0.5) & attention_mask.bool()
    view_mask = torch.rand(num_studies, 4, generator=generator) < 0.5
    view_mask[:, 0] |= ~view_mask[:, 1]
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "masked_input_ids": input_ids.masked_fill(is_masked, 4),
        "labels": input_ids.masked_fill(~is_masked, -100),
        "pixel_values": torch.randn(num_studies, 4, 3, 32, 32, generator=generator),
        "view_mask": view_mask,
        "target_pixel_values": torch.randn(num_studies, 3, 64, 64, generator=generator),
        "noise": torch.rand(num_studies, 4, 16, generator=generator),
    }


def randomise(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Move every trainable parameter away from its start, adapters' zeros included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture
def tiny_config() -> AltaConfig:
    return make_config()


@pytest.fixture
def tiny_base() -> AltaModel:
    """A frozen base without adapters, in eval mode."""
    torch.manual_seed(0)
    return AltaModel(make_config(use_adapters=False)).eval()


@pytest.fixture
def tiny_pretraining_model() -> AltaForPreTraining:
    """A full model whose adapters are not zero, frozen as published, in eval mode."""
    torch.manual_seed(0)
    model = AltaForPreTraining(make_config()).eval()
    model.freeze_pretrained()
    return randomise(model)


@pytest.fixture
def tiny_batch() -> dict[str, torch.Tensor]:
    return make_batch()
