"""The report tower: transformers' BERT, unforked, with a place between embeddings and layers for an image feature."""

import torch
from torch import nn
from transformers import BertConfig, BertModel
from transformers.masking_utils import create_bidirectional_mask

from .attention_alta import PACKED_ATTENTION, TextPacking


class AltaReportHead(nn.Module):
    """BERT's masked-token head without its tied word matrix, which is passed in."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden_states: torch.Tensor, word_embeddings: torch.Tensor) -> torch.Tensor:
        hidden_states = self.layer_norm(nn.functional.gelu(self.dense(hidden_states)))
        return nn.functional.linear(hidden_states, word_embeddings, self.bias)


def build_text_model(config: BertConfig) -> BertModel:
    """BERT without its pooler, whose SDPA attention also takes packed texts."""
    text_model = BertModel._from_config(config, add_pooling_layer=False)
    if text_model.config._attn_implementation == "sdpa":
        text_model.set_attn_implementation(PACKED_ATTENTION)
    return text_model


def embed_tokens(
    text_model: BertModel, input_ids: torch.Tensor, token_type_ids: torch.Tensor | None = None
) -> torch.Tensor:
    """BERT's embeddings of shape `(batch_size, num_tokens, hidden_size)`, LayerNorm included.

    Raises:
        ValueError: for more tokens than the tower has positions.
    """
    limit = text_model.config.max_position_embeddings
    if input_ids.ndim != 2 or input_ids.shape[1] > limit:
        raise ValueError(
            f"`input_ids` must have shape (batch, tokens) with at most {limit} tokens, got {tuple(input_ids.shape)}."
        )
    return text_model.embeddings(input_ids=input_ids, token_type_ids=token_type_ids)


def encode_texts(
    text_model: BertModel, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """BERT's layers over embeddings `(batch_size, num_tokens, hidden_size)`, to which a feature may be added.

    Texts of several lengths go through the layers as one row without padding, where the chosen attention can take
    them; the padding is zero then.
    """
    if attention_mask is None or not _is_packable(text_model, attention_mask):
        attention_mask = create_bidirectional_mask(
            config=text_model.config, inputs_embeds=hidden_states, attention_mask=attention_mask
        )
        return text_model.encoder(hidden_states, attention_mask=attention_mask).last_hidden_state
    packing = TextPacking.from_mask(attention_mask)
    packed = text_model.encoder(packing.pack(hidden_states).unsqueeze(0), packing=packing).last_hidden_state
    return packing.to(packed.device).unpack(packed.squeeze(0))  # the last layer may lie on another device


def _is_packable(text_model, attention_mask):
    # A graph that is compiled keeps its shapes from batch to batch.
    is_possible = text_model.config._attn_implementation == PACKED_ATTENTION and not torch.compiler.is_compiling()
    return is_possible and attention_mask.ndim == 2 and not attention_mask.all()


def masked_token_logits(
    head: AltaReportHead, text_model: BertModel, hidden_states: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits `(num_masked, vocab_size)` and labels `(num_masked,)` at the masked tokens, the only ones computed."""
    is_masked = labels != -100
    return head(hidden_states[is_masked], text_model.get_input_embeddings().weight), labels[is_masked]


__all__ = ["AltaReportHead", "build_text_model", "embed_tokens", "encode_texts", "masked_token_logits"]
