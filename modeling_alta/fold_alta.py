"""The inference form of a model: its outputs at less work, for encoding whole archives.

Axes: P views of the whole batch, H heads, N tokens, S head size, D hidden size.
"""

from copy import deepcopy

import torch
from timm.layers import Attention, Mlp
from torch import nn

from .adapters_alta import ParallelAdapter, SerialAdapter
from .attention_alta import attend
from .modeling_alta import AltaModel, AltaPreTrainedModel
from .vision_alta import AltaVisionModel


# On a CPU, views go through the blocks so many at a time: larger buffers come fresh from the system at every layer,
# and their page faults cost more than the GELU that fills them.
VIEWS_AT_ONCE = 8

EMBEDDING_MODULES = (
    "text_model",
    "image_projection",
    "text_projection",
    "image_local_projection",
    "text_local_projection",
    "logit_scale",
    "local_logit_scales",
)


def fold_adapters(model: AltaModel) -> "AltaFoldedModel":
    """Turn a model into its inference form, which gives the same embeddings and logits faster.

    In the vision tower every adapter is folded into the matrices beside it, and the last block is computed for the
    class token alone, the only one that is pooled. The report tower stays as it is: its adapters follow a LayerNorm,
    past which nothing folds.

    Args:
        model (`AltaModel`): in evaluation mode, with its adapters inside or without any. It stays as it is, and the
            folded one shares the memory of what is not folded until it is moved to another device or dtype.

    Returns:
        `AltaFoldedModel`

    Raises:
        ValueError: for a model in training mode or with PEFT layers, which `merge_and_unload` turns into its own.

    Example:

    ```python
    model = fold_adapters(AutoModel.from_pretrained("you/alta"))
    ```
    """
    if not isinstance(model, AltaModel) or any(hasattr(module, "base_layer") for module in model.modules()):
        raise ValueError(
            "`model` must be an AltaModel without PEFT layers, which `merge_and_unload` gives of what "
            f"`PeftModel.from_pretrained(base, adapter)` loads, got {type(model).__name__}."
        )
    if model.training:
        raise ValueError("`model` must be in evaluation mode to be folded, got training mode: call `eval` first.")
    return model if isinstance(model, AltaFoldedModel) else AltaFoldedModel(clone_around_tensors(model))


class AltaFoldedModel(AltaModel):
    """A model that only embeds; made by `fold_adapters`.

    Its `vision_model_output.last_hidden_state` holds the class token alone. It computes no gradients, has no training
    mode and is not saved: all that stays with the model it was folded from.

    Args:
        model (`AltaModel`): whose modules become its own.
    """

    def __init__(self, model: AltaModel):
        AltaPreTrainedModel.__init__(self, model.config)
        self.vision_model = FoldedVisionModel(model.vision_model)
        for name in EMBEDDING_MODULES:
            setattr(self, name, getattr(model, name))
        self.eval()

    @torch.no_grad()
    def _embed_images(self, pixel_values, view_mask):
        return super()._embed_images(pixel_values, view_mask)

    @torch.no_grad()
    def _embed_texts(self, input_ids, attention_mask, token_type_ids):
        return super()._embed_texts(input_ids, attention_mask, token_type_ids)

    def train(self, mode: bool = True) -> "AltaFoldedModel":
        if mode:
            raise ValueError("A folded model has no training mode: train the model that it was folded from.")
        return super().train(mode)

    def save_pretrained(self, *args, **kwargs) -> None:
        raise ValueError("A folded model is not saved: save the model that it was folded from.")


class FoldedVisionModel(AltaVisionModel):
    """The vision tower over folded blocks, which gives class tokens only."""

    def __init__(self, model: AltaVisionModel):
        nn.Module.__init__(self)
        self.config = model.config
        self.patch_embed, self.study_tokens, self.norm = model.patch_embed, model.study_tokens, model.norm
        self.pos_embed, self.missing_token = model.pos_embed, model.missing_token
        *blocks, last = model.blocks
        self.blocks = nn.ModuleList([fold_block(block, FoldedBlock) for block in blocks])
        self.blocks.append(fold_block(last, FoldedClassTokenBlock))

    def encode(self, hidden_states: torch.Tensor) -> torch.Tensor:
        on_cpu = hidden_states.device.type == "cpu"
        parts = hidden_states.split(VIEWS_AT_ONCE) if on_cpu else [hidden_states]
        return torch.cat([self._encode_part(part) for part in parts])

    def _encode_part(self, hidden_states):
        for block in self.blocks:
            hidden_states = block(hidden_states)
        return self.norm(hidden_states[:, :1])


class FoldedBlock(nn.Module):
    """A pre-norm block; sums are in place, since nothing waits for a gradient."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.norm1, self.norm2 = block.norm1, block.norm2
        self.num_heads = block.attn.num_heads
        self.proj, self.mlp = fold_module(block.attn.proj), fold_module(block.mlp)
        self.set_projections(block.attn.qkv)

    def set_projections(self, qkv: nn.Linear) -> None:
        self.qkv = qkv

    def project(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Query, key and value of shape `(num_views, num_heads, num_tokens, head_size)`."""
        return self.split_heads(self.qkv(hidden_states), 3)

    def split_heads(self, states: torch.Tensor, num_parts: int) -> tuple[torch.Tensor, ...]:
        return states.unflatten(2, (num_parts, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind()  # (P, H, N, S)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        query, key, value = self.project(self.norm1(hidden_states))
        context = attend(query, key, value).transpose(1, 2).flatten(2)  # (P, N or 1, D)
        hidden_states = add_update(hidden_states[:, : context.shape[1]], self.proj(context))
        return add_update(hidden_states, self.mlp(self.norm2(hidden_states)))


class FoldedClassTokenBlock(FoldedBlock):
    """The last block: keys and values of all tokens, everything else of the class token alone."""

    def set_projections(self, qkv: nn.Linear) -> None:
        size = qkv.in_features
        self.query = linear_from(qkv.weight[:size], None if qkv.bias is None else qkv.bias[:size])
        self.key_value = linear_from(qkv.weight[size:], None if qkv.bias is None else qkv.bias[size:])

    def project(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        class_token = hidden_states[:, :1]
        return self.split_heads(self.query(class_token), 1) + self.split_heads(self.key_value(hidden_states), 2)


class FoldedSerial(nn.Module):
    """A linear layer with a serial adapter: `down` is folded into a second part of the layer's matrix.

    `y + up(gelu(down(y)))` of `y = linear(x)` takes `y` and `down(y)` from one product.
    """

    def __init__(self, adapted: SerialAdapter):
        super().__init__()
        linear, down = adapted.base, adapted.adapter.down
        weight, bias, down_weight = linear.weight.double(), linear.bias.double(), down.weight.double()
        self.sizes = (linear.out_features, down.out_features)
        self.linear_and_down = linear_from(
            torch.cat([weight, down_weight @ weight]),
            torch.cat([bias, down_weight @ bias + down.bias.double()]),
            linear.weight.dtype,
        )
        self.up = adapted.adapter.up

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        output, narrow = self.linear_and_down(hidden_states).split(self.sizes, dim=-1)
        return self.up(nn.functional.gelu(narrow)).add_(output)


class FoldedMlp(nn.Module):
    """An MLP with a parallel adapter, which becomes more of its hidden units: both see the same input and a GELU."""

    def __init__(self, adapted: ParallelAdapter):
        super().__init__()
        mlp, down, up, scale = adapted.base, adapted.adapter.down, adapted.adapter.up, adapted.scale
        dtype = mlp.fc1.weight.dtype
        self.fc1 = linear_from(torch.cat([mlp.fc1.weight, down.weight]), torch.cat([mlp.fc1.bias, down.bias]), dtype)
        self.fc2 = linear_from(
            torch.cat([mlp.fc2.weight.double(), scale * up.weight.double()], dim=1),
            mlp.fc2.bias.double() + scale * up.bias.double(),
            dtype,
        )

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(torch.ops.aten.gelu_(self.fc1(hidden_states)))


def clone_around_tensors(model: nn.Module) -> nn.Module:
    """New modules and parameters around the same memory: casting or moving the clone leaves the model alone."""
    clones = {id(buffer): buffer for buffer in model.buffers()}
    for parameter in model.parameters():
        clones[id(parameter)] = nn.Parameter(parameter.detach(), parameter.requires_grad)
    return deepcopy(model, clones)


def add_update(hidden_states: torch.Tensor, update: torch.Tensor) -> torch.Tensor:
    """Their sum, in the memory of `update` but where autocast gave it fewer bits than the residual stream has."""
    return update.add_(hidden_states) if update.dtype == hidden_states.dtype else hidden_states + update


def fold_block(block: nn.Module, block_class: type[FoldedBlock]) -> nn.Module:
    """A folded block; one whose attention is adapted elsewhere than in its output projection stays as it is."""
    is_plain = isinstance(block.attn, Attention) and isinstance(block.attn.qkv, nn.Linear)
    return block_class(block) if is_plain else block


def fold_module(module: nn.Module) -> nn.Module:
    """A module with its adapter folded in where that is exact, else the module."""
    if isinstance(module, SerialAdapter) and isinstance(module.base, nn.Linear):
        return FoldedSerial(module)
    if isinstance(module, ParallelAdapter) and isinstance(module.base, Mlp):
        layers = (module.base.fc1, module.base.fc2)
        return FoldedMlp(module) if all(isinstance(layer, nn.Linear) for layer in layers) else module
    return module


def linear_from(weight: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype | None = None) -> nn.Linear:
    """A linear layer with this weight and bias, a copy that is not trained."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    linear.weight = frozen(weight, dtype)
    if bias is not None:
        linear.bias = frozen(bias, dtype)
    return linear


def frozen(values: torch.Tensor, dtype: torch.dtype | None) -> nn.Parameter:
    return nn.Parameter(values.detach().to(dtype, copy=True), requires_grad=False)


__all__ = ["AltaFoldedModel", "fold_adapters"]
