"""Bottleneck adapters as native modules: what a full ALTA model carries inside, and what PEFT adapters merge into."""

import re

import torch
from torch import nn

from .configuration_alta import AltaConfig


# Beside the adapters and the LayerNorms inside the adapted modules, the published method trains these modules: the
# other normalisations, the learned tokens, the heads and the scales. Suffixes of names, as PEFT's `modules_to_save`.
TRAINED_MODULES = (
    "study_tokens",
    "norm1",
    "norm2",
    "vision_model.norm",
    "text_model.embeddings.LayerNorm",
    "image_projection",
    "text_projection",
    "image_local_projection",
    "text_local_projection",
    "logit_scale",
    "local_logit_scales",
    "image_decoder.embed",
    "image_decoder.mask_token",
    "image_decoder.norm",
    "image_decoder.predict",
    "report_head",
    "classifier",
)


class BottleneckAdapter(nn.Module):
    """`up(gelu(down(x)))`, zero at the start (paper, section III-B).

    Args:
        hidden_size (`int`): size of the tokens.
        bottleneck_size (`int`): size in between.
    """

    def __init__(self, hidden_size: int, bottleneck_size: int):
        super().__init__()
        self.down = nn.Linear(hidden_size, bottleneck_size)
        self.up = nn.Linear(bottleneck_size, hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return bottleneck(hidden_states, self.down, self.up)


class SerialAdapter(nn.Module):
    """A module whose output passes through an adapter with its residual inside: `y + adapter(y)`."""

    def __init__(self, base: nn.Module, adapter: BottleneckAdapter):
        super().__init__()
        self.base = base
        self.adapter = adapter

    def forward(self, *args) -> torch.Tensor:
        hidden_states = self.base(*args)
        return hidden_states + self.adapter(hidden_states)


class ParallelAdapter(nn.Module):
    """A module with an adapter beside it: `base(…, x) + scale * adapter(x)`, where `x` is the last argument.

    For a timm MLP that is its input, for a BERT output layer the residual, which is the input of its feed-forward.
    """

    def __init__(self, base: nn.Module, adapter: BottleneckAdapter, scale: float):
        super().__init__()
        self.base = base
        self.adapter = adapter
        self.scale = scale

    def forward(self, *args) -> torch.Tensor:
        return torch.add(self.base(*args), self.adapter(args[-1]), alpha=self.scale)


def bottleneck(hidden_states: torch.Tensor, down: nn.Linear, up: nn.Linear) -> torch.Tensor:
    """Down-projection, exact GELU, up-projection."""
    return up(nn.functional.gelu(down(hidden_states)))


def output_size(module: nn.Module) -> int:
    """Size of the tokens that a linear, a timm MLP, a BERT output layer or an already adapted module gives.

    Raises:
        ValueError: if `module` is none of these.
    """
    for name in ("base", "base_layer", "fc2", "dense"):
        if hasattr(module, name):
            return output_size(getattr(module, name))
    if not hasattr(module, "out_features"):
        raise ValueError(f"`module` must end in a linear layer to take an adapter, got {type(module).__name__}.")
    return module.out_features


def bottleneck_size(hidden_size: int, ratio: float) -> int:
    """Adapter width of a module, at least 1; a ratio that was read off a width gives that width again."""
    return max(1, int(hidden_size * ratio + 1e-6))


def add_adapters(model: nn.Module, config: AltaConfig) -> None:
    """Wrap in place every module that `config.adapter_target_modules` matches.

    Raises:
        ValueError: if no module matches.
    """
    names = [name for name, _ in model.named_modules() if re.fullmatch(config.adapter_target_modules, name)]
    if not names:
        raise ValueError(
            f"`adapter_target_modules` must match at least one module, got {config.adapter_target_modules!r}."
        )
    for name in names:
        is_parallel = re.fullmatch(config.adapter_parallel_modules, name) is not None
        model.set_submodule(name, wrap_with_adapter(model.get_submodule(name), config, is_parallel))


def wrap_with_adapter(base: nn.Module, config: AltaConfig, is_parallel: bool) -> SerialAdapter | ParallelAdapter:
    """A new adapter around `base`."""
    hidden_size = output_size(base)
    adapter = BottleneckAdapter(hidden_size, bottleneck_size(hidden_size, config.adapter_bottleneck_ratio))
    return (
        ParallelAdapter(base, adapter, config.parallel_adapter_scale) if is_parallel else SerialAdapter(base, adapter)
    )


def freeze_pretrained(model: nn.Module) -> None:
    """Leave trainable what the published method trains: adapters, norms, tokens, heads and scales."""
    is_trained = re.compile(
        rf"(.*\.)?(adapter|base\.LayerNorm|{'|'.join(map(re.escape, TRAINED_MODULES))})\..*"
    ).fullmatch
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_trained(name) is not None)


def cast_frozen_matrices(model: nn.Module, dtype: torch.dtype) -> None:
    """Hold the weights of frozen linear layers and convolutions in the dtype to which autocast takes them every step.

    Under autocast to `dtype` nothing changes but speed and memory; without it their inputs must be of that dtype. The
    weights stay rounded, so a base to keep is saved before.

    Args:
        model (`nn.Module`): with everything frozen that will be.
        dtype (`torch.dtype`): of the autocast, `torch.bfloat16` or `torch.float16`.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and not any(p.requires_grad for p in module.parameters()):
            module.to(dtype)


__all__ = [
    "TRAINED_MODULES",
    "BottleneckAdapter",
    "ParallelAdapter",
    "SerialAdapter",
    "add_adapters",
    "cast_frozen_matrices",
    "freeze_pretrained",
]
