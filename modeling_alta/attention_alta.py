"""Attention of both towers: the fastest form for a device and dtype, and reports packed without padding.

Axes: R reports, H heads, L tokens of the longest report, T tokens of all reports, S head size.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask


# Operations that take as long on a CPU as the calls for one text more.
CALL_WORK = 4e6

# Name of the attention of packed texts among those of transformers.
PACKED_ATTENTION = "alta_packed"


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Scaled dot-product attention.

    Args:
        query, key, value (`torch.Tensor` of shape `(batch_size, num_heads, num_tokens, head_size)`).
        mask (`torch.BoolTensor`, broadcast to `(batch_size, num_heads, num_tokens, num_tokens)`, *optional*): `True`
            where a query sees a key.
        dropout (`float`): share of the attention weights dropped.
    """
    if not query.shape[0]:
        return query  # which the fused forms of torch before 2.10 refuse
    # On a CPU the fused backward is several times slower in half precision, and nothing is fused with dropout.
    if query.device.type != "cpu" or (query.dtype == torch.float32 and not dropout):
        return nn.functional.scaled_dot_product_attention(query, key, value, mask, dropout)
    with torch.autocast("cpu", enabled=False):
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
        if mask is not None:
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        return nn.functional.dropout(scores.softmax(-1), dropout) @ value


@dataclass
class TextPacking:
    """
    Where the tokens of several texts stand in one row without padding.

    Args:
        slots (`torch.LongTensor` of shape `(total_tokens,)`): their places in the flattened padded batch.
        mask (`torch.BoolTensor` of shape `(num_texts, num_tokens)`): `True` where a token stands.
        lengths (`list[int]`): tokens of each text.
    """

    slots: torch.Tensor
    mask: torch.Tensor
    lengths: list[int]

    @classmethod
    def from_mask(cls, attention_mask: torch.Tensor) -> "TextPacking":
        mask = attention_mask.bool()
        return cls(mask.flatten().nonzero().squeeze(1), mask, mask.sum(1).tolist())

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> "TextPacking":
        """The packing on a device, to which accelerate sends it before a layer that lies there."""
        slots, mask = (tensor.to(device, non_blocking=non_blocking) for tensor in (self.slots, self.mask))
        return TextPacking(slots, mask, self.lengths)

    def pack(self, padded: torch.Tensor) -> torch.Tensor:
        """`(num_texts, num_tokens, …)` to `(total_tokens, …)`."""
        return padded.flatten(0, 1).index_select(0, self.slots)

    def unpack(self, packed: torch.Tensor) -> torch.Tensor:
        """`(total_tokens, …)` to `(num_texts, num_tokens, …)`, zeros where no token stands."""
        padded = packed.new_zeros(self.mask.numel(), *packed.shape[1:]).index_copy_(0, self.slots, packed)
        return padded.unflatten(0, tuple(self.mask.shape))


def attend_in_packing(query, key, value, packing: TextPacking, dropout: float = 0.0) -> torch.Tensor:
    """Attention of every token to those of its own text.

    Args:
        query, key, value (`torch.Tensor` of shape `(1, num_heads, total_tokens, head_size)`).
    """
    is_costly = padding_work(packing, query.shape[1] * query.shape[3]) > CALL_WORK
    form = attend_one_by_one if query.device.type == "cpu" and is_costly else attend_padded
    return form(query, key, value, packing, dropout)


def padding_work(packing: TextPacking, hidden_size: int) -> float:
    """Operations per text that padding would add to the two products of the attention."""
    padded, needed = packing.mask.shape[1] ** 2, sum(length**2 for length in packing.lengths) / len(packing.lengths)
    return 4 * hidden_size * (padded - needed)


def attend_one_by_one(query, key, value, packing, dropout):
    """No padding at all, at the cost of a few calls for every text."""
    texts = zip(*(states.split(packing.lengths, dim=2) for states in (query, key, value)), strict=True)
    return torch.cat([attend(*text, dropout=dropout) for text in texts], dim=2)


def attend_padded(query, key, value, packing, dropout):
    """Padding inside the attention only."""
    # Not `states[0]`, whose gradient would be a copy into zeros.
    rows = [states.squeeze(0).transpose(0, 1) for states in (query, key, value)]  # (T, H, S)
    states = [packing.unpack(row).transpose(1, 2) for row in rows]  # (R, H, L, S)
    context = attend(*states, mask=packing.mask[:, None, None], dropout=dropout)
    return packing.pack(context.transpose(1, 2)).transpose(0, 1).unsqueeze(0)


def packed_attention_forward(
    module: nn.Module,
    query,
    key,
    value,
    attention_mask,
    dropout: float = 0.0,
    packing: TextPacking | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """What transformers calls in every layer; without a packing it is SDPA."""
    if packing is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, **kwargs)
    return attend_in_packing(query, key, value, packing, dropout).transpose(1, 2), None


AttentionInterface.register(PACKED_ATTENTION, packed_attention_forward)
AttentionMaskInterface.register(PACKED_ATTENTION, sdpa_mask)


__all__ = ["PACKED_ATTENTION", "TextPacking", "attend", "attend_in_packing"]
