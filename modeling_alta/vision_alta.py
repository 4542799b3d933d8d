"""The vision tower and the image decoder, on timm's patch embedding and blocks, so that MRM and MAE weights fit.

Axes: B studies, V views, N patches, K kept patches, P computed views of the whole batch, D hidden size.
"""

from dataclasses import dataclass
from functools import partial

import torch
from timm.layers import Attention, PatchEmbed
from timm.models.vision_transformer import Block
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import ModelOutput

from .attention_alta import attend
from .configuration_alta import AltaConfig, AltaVisionConfig


@dataclass
class AltaVisionOutput(ModelOutput):
    """
    Args:
        last_hidden_state (`torch.Tensor` of shape `(batch_size, num_views, 1 + num_kept_patches, hidden_size)`):
            class token first; zeros in a view that was not computed.
        pooler_output (`torch.Tensor` of shape `(batch_size, hidden_size)`): mean class token of the computed views.
        computed_views (`torch.BoolTensor` of shape `(batch_size, num_views)`): views that went through the blocks.
        mask (`torch.Tensor` of shape `(batch_size, num_views, num_patches)`): 1 where a patch was removed.
        ids_restore (`torch.LongTensor` of shape `(batch_size, num_views, num_patches)`): order that undoes masking.
    """

    last_hidden_state: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    computed_views: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    ids_restore: torch.Tensor | None = None


class AltaAttention(Attention):
    """timm's attention in the form of `attend`, for all tokens or as queries of chosen ones only."""

    def forward(self, hidden_states: torch.Tensor, chosen: torch.Tensor | None = None) -> torch.Tensor:
        qkv = self.qkv(hidden_states).unflatten(2, (3, self.num_heads, self.head_dim))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        if chosen is not None:
            query = take_tokens(query.transpose(1, 2), chosen).transpose(1, 2)
        return self.proj(attend(query, key, value).transpose(1, 2).flatten(2))


class AltaBlock(GradientCheckpointingLayer, Block):
    """timm's block, of which the last one of a tower may give chosen tokens only.

    Args of its `forward`:
        hidden_states (`torch.Tensor` of shape `(batch_size, num_tokens, hidden_size)`).
        chosen (`torch.LongTensor` of shape `(batch_size, num_chosen)`, *optional*): the tokens to give, which still
            see all others.
    """

    def forward(self, hidden_states: torch.Tensor, chosen: torch.Tensor | None = None) -> torch.Tensor:
        context = self.attn(self.norm1(hidden_states), chosen)
        if chosen is not None:
            hidden_states = take_tokens(hidden_states, chosen)
        hidden_states = hidden_states + context
        return hidden_states + self.mlp(self.norm2(hidden_states))


class AltaStudyTokens(nn.Module):
    """Class token, view and temporal embeddings: a module of their own, so that PEFT can train and save them."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, hidden_size))
        self.view_embedding = nn.Parameter(torch.zeros(1, 2, hidden_size))
        self.temporal_embedding = nn.Parameter(torch.zeros(1, 2, hidden_size))

    def forward(self, patches: torch.Tensor, views: torch.Tensor, class_position: torch.Tensor) -> torch.Tensor:
        class_token = (self.cls_token + class_position).expand(len(patches), -1, -1).to(patches.dtype)
        which_view, which_time = views % 2, views // 2  # the order of VIEW_NAMES
        embedding = self.view_embedding[0, which_view] + self.temporal_embedding[0, which_time]  # (P, D)
        return torch.cat([class_token, patches], dim=1) + embedding.unsqueeze(1)


class AltaVisionModel(nn.Module):
    """ViT over every view of a study alone; views meet in the mean of their class tokens (paper, section III-A)."""

    def __init__(self, config: AltaVisionConfig):
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config.image_size, config.patch_size, config.num_channels, config.hidden_size)
        self.pos_embed = frozen_parameter(1, 1 + config.num_patches, config.hidden_size)
        self.missing_token = frozen_parameter(1, config.num_patches, config.hidden_size)
        self.study_tokens = AltaStudyTokens(config.hidden_size)
        self.blocks = vit_blocks(config, config.hidden_size, config.num_hidden_layers, config.num_attention_heads)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(
        self,
        pixel_values: torch.Tensor,
        view_mask: torch.Tensor,
        mask_ratio: float = 0.0,
        noise: torch.Tensor | None = None,
        missing_views: str = "skip",
    ) -> AltaVisionOutput:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, num_views, num_channels, height, width)`).
            view_mask (`torch.BoolTensor` of shape `(batch_size, num_views)`): `True` where the view was taken.
            mask_ratio (`float`): share of the patches removed.
            noise (`torch.Tensor` of shape `(batch_size, num_views, num_patches)`): the patches with the smallest stay.
            missing_views (`str`): `"skip"` leaves absent views out, `"token"` runs them on `missing_token`.
        """
        batch_size, num_views = view_mask.shape
        patches, slots = self.embed_patches(pixel_values, view_mask, missing_views)
        noise = noise.flatten(0, 1)[slots] if noise is not None else None
        patches, mask, ids_restore = mask_patches(patches, mask_ratio, noise)
        hidden_states = self.study_tokens(patches, slots % num_views, self.pos_embed[:, :1])
        hidden_states = self.encode(hidden_states)
        last_hidden_state = unpack_views(hidden_states, slots, view_mask.shape)
        computed_views = torch.ones_like(view_mask) if missing_views == "token" else view_mask
        return AltaVisionOutput(
            last_hidden_state=last_hidden_state,
            pooler_output=pool_views(last_hidden_state, computed_views),
            computed_views=computed_views,
            mask=unpack_views(mask, slots, view_mask.shape),
            ids_restore=unpack_views(ids_restore, slots, view_mask.shape),
        )

    def embed_patches(self, pixel_values, view_mask, missing_views):
        """Patch embeddings with position of the views to compute, packed, and their slots in the flat batch."""
        slots = view_mask.flatten().nonzero().squeeze(1)
        pixel_values = pixel_values.flatten(0, 1)[slots]
        if not torch.is_autocast_enabled(pixel_values.device.type):  # which casts them itself, to its own dtype
            pixel_values = pixel_values.to(self.patch_embed.proj.weight.dtype)
        patches = self.patch_embed(pixel_values)  # (P, N, D)
        if missing_views == "token":
            missing = self.missing_token.to(patches.dtype).expand(view_mask.numel(), -1, -1)
            patches = missing.index_copy(0, slots, patches)
            slots = torch.arange(view_mask.numel(), device=slots.device)
        return patches + self.pos_embed[:, 1:], slots

    def encode(self, hidden_states: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            hidden_states = block(hidden_states)
        return self.norm(hidden_states)


class AltaMaskToken(nn.Module):
    """The decoder's token for a removed patch: a module, so that PEFT can train and save it."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, hidden_size))

    def forward(self) -> torch.Tensor:
        return self.token


class AltaImageDecoder(nn.Module):
    """Predicts the pixels of a view at twice its resolution from the patches that were kept (MRM, section 3)."""

    def __init__(self, config: AltaConfig):
        super().__init__()
        size, vision = config.decoder_hidden_size, config.vision_config
        self.embed = nn.Linear(vision.hidden_size, size)
        self.mask_token = AltaMaskToken(size)
        self.pos_embed = frozen_parameter(1, 1 + vision.num_patches, size)
        self.blocks = vit_blocks(vision, size, config.decoder_num_hidden_layers, config.decoder_num_attention_heads)
        self.norm = nn.LayerNorm(size, eps=vision.layer_norm_eps)
        self.predict = nn.Linear(size, config.decoder_patch_size**2 * vision.num_channels)

    def forward(
        self, hidden_states: torch.Tensor, ids_restore: torch.Tensor, chosen: torch.Tensor | None = None
    ) -> torch.Tensor:
        """
        Args:
            hidden_states (`torch.Tensor` of shape `(batch_size, 1 + num_kept_patches, hidden_size)`).
            ids_restore (`torch.LongTensor` of shape `(batch_size, num_patches)`).
            chosen (`torch.LongTensor` of shape `(batch_size, num_chosen)`, *optional*): the patches to predict; all by
                default.

        Returns:
            `torch.Tensor` of shape `(batch_size, num_chosen, decoder_patch_size**2 * num_channels)`.
        """
        hidden_states = self.embed(hidden_states)
        class_token, kept = hidden_states[:, :1], hidden_states[:, 1:]
        num_removed = ids_restore.shape[1] - kept.shape[1]
        mask_tokens = self.mask_token().to(kept.dtype).expand(len(kept), num_removed, -1)
        patches = take_tokens(torch.cat([kept, mask_tokens], dim=1), ids_restore)
        hidden_states = torch.cat([class_token, patches], dim=1) + self.pos_embed
        if chosen is None:
            chosen = torch.arange(ids_restore.shape[1], device=ids_restore.device).expand_as(ids_restore)
        for block in self.blocks[:-1]:
            hidden_states = block(hidden_states)
        return self.predict(self.norm(self.blocks[-1](hidden_states, 1 + chosen)))


def frozen_parameter(*shape: int) -> nn.Parameter:
    """A parameter that is stored with the weights and never trained."""
    return nn.Parameter(torch.zeros(*shape), requires_grad=False)


def vit_blocks(config: AltaVisionConfig, hidden_size: int, num_layers: int, num_heads: int) -> nn.ModuleList:
    """timm's pre-norm transformer blocks."""
    return nn.ModuleList(
        AltaBlock(
            hidden_size,
            num_heads,
            attn_layer=AltaAttention,
            mlp_ratio=config.mlp_ratio,
            qkv_bias=config.qkv_bias,
            norm_layer=partial(nn.LayerNorm, eps=config.layer_norm_eps),
        )
        for _ in range(num_layers)
    )


def sincos_position_embedding(like: torch.Tensor) -> torch.Tensor:
    """MAE's fixed 2-D sine-cosine embedding in the shape (1, 1 + patches, hidden) of `like`, zero for the class token.

    A quarter of the channels each: sine and cosine of the column, sine and cosine of the row.
    """
    _, num_tokens, hidden_size = like.shape
    side, quarter = round((num_tokens - 1) ** 0.5), hidden_size // 4
    frequencies = 1 / 10000 ** (torch.arange(quarter, dtype=torch.float64) / quarter)
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    angles = [axis.reshape(-1, 1) * frequencies for axis in (columns, rows)]
    patches = torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], dim=1)  # (N, D)
    return torch.cat([torch.zeros(1, hidden_size), patches.float()]).unsqueeze(0).to(like.device, like.dtype)


def mask_patches(patches: torch.Tensor, mask_ratio: float, noise: torch.Tensor | None = None):
    """Keep the patches with the smallest noise.

    Args:
        patches (`torch.Tensor` of shape `(num_images, num_patches, hidden_size)`).
        mask_ratio (`float`): share removed; 0 keeps all in their order.
        noise (`torch.Tensor` of shape `(num_images, num_patches)`, *optional*).

    Returns:
        kept patches `(num_images, num_kept, hidden_size)`, mask `(num_images, num_patches)` with 1 = removed, and the
        order `(num_images, num_patches)` that undoes the masking.
    """
    num_images, num_patches, _ = patches.shape
    num_kept = int(num_patches * (1 - mask_ratio))
    if num_kept == num_patches:
        ids_restore = torch.arange(num_patches, device=patches.device).expand(num_images, -1)
        return patches, torch.zeros(num_images, num_patches, device=patches.device), ids_restore
    if noise is None:
        noise = torch.rand(num_images, num_patches, device=patches.device)
    ids_shuffle = noise.argsort(dim=1)
    ids_restore = ids_shuffle.argsort(dim=1)
    kept = take_tokens(patches, ids_shuffle[:, :num_kept])
    return kept, (ids_restore >= num_kept).float(), ids_restore


def take_tokens(hidden_states: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Those of `(batch_size, num_tokens, …)` at positions `(batch_size, num_chosen)`, which shape the result."""
    batch_size, num_tokens = hidden_states.shape[:2]
    rows = positions + num_tokens * torch.arange(batch_size, device=positions.device)[:, None]
    return hidden_states.flatten(0, 1).index_select(0, rows.flatten()).unflatten(0, positions.shape)


def removed_patches(ids_restore: torch.Tensor, num_kept: int) -> torch.Tensor:
    """Positions `(num_images, num_removed)` of the patches that masking removed, in no order."""
    return ids_restore.argsort(dim=1)[:, num_kept:]


def unpack_views(packed: torch.Tensor, slots: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Put packed views `(num_computed, …)` back into `(batch_size, num_views, …)`, zeros elsewhere."""
    if len(slots) < shape.numel():
        slots = slots.to(packed.device)  # the last block may lie on another device
        packed = packed.new_zeros(shape.numel(), *packed.shape[1:]).index_copy_(0, slots, packed)
    return packed.unflatten(0, tuple(shape))


def pool_views(last_hidden_state: torch.Tensor, computed_views: torch.Tensor) -> torch.Tensor:
    """Mean class token `(batch_size, hidden_size)` of the computed views."""
    weights = computed_views.unsqueeze(-1).to(last_hidden_state)  # (B, V, 1)
    return (last_hidden_state[:, :, 0] * weights).sum(1) / weights.sum(1)


def patchify(pixel_values: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Images `(batch, channels, height, width)` as patch vectors in the order row, column, channel."""
    batch_size, channels, height, width = pixel_values.shape
    grid = pixel_values.reshape(
        batch_size, channels, height // patch_size, patch_size, width // patch_size, patch_size
    )
    return grid.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


__all__ = [
    "AltaBlock",
    "AltaImageDecoder",
    "AltaMaskToken",
    "AltaStudyTokens",
    "AltaVisionModel",
    "AltaVisionOutput",
    "mask_patches",
    "patchify",
    "pool_views",
    "removed_patches",
    "sincos_position_embedding",
    "take_tokens",
]
