"""The plain form of ALTA's training losses, to measure against: the method as one first writes it down.

Over the weights of an `AltaForPreTraining`, adapters included, it computes every view slot, present or not, reads the
reports twice at their padded length, gives logits for all tokens and pixels for all patches, and takes the local loss
report by report. Attention is the one of torch and transformers.

Axes: B studies, V views, K kept patches, L words, D hidden size, E projection size.
"""

import torch
from torch import nn
from torch.nn.functional import cosine_similarity, cross_entropy, mse_loss, normalize, scaled_dot_product_attention
from transformers.masking_utils import create_bidirectional_mask

from modeling_alta import AltaForPreTraining
from modeling_alta.vision_alta import patchify


__all__ = ["plain_local_loss", "plain_losses"]


def plain_losses(model: AltaForPreTraining, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The four losses and their sum.

    Args:
        model (`AltaForPreTraining`): whose weights are used; its loss weights must be 1.
        batch (`dict`): the arguments of its `forward`.
    """
    batch_size, num_views = batch["view_mask"].shape
    tokens, mask, ids_restore = encode_views(model, batch)  # (B * V, 1 + K, D)
    tokens = tokens.unflatten(0, (batch_size, num_views))
    image = tokens[:, :, 0].mean(1)
    feature = model.image_to_report(image).unsqueeze(1)
    reports = encode_reports(model, batch["input_ids"], batch["attention_mask"])
    masked_reports = encode_reports(model, batch["masked_input_ids"], batch["attention_mask"], feature)
    logits = model.report_head(masked_reports, model.get_input_embeddings().weight)
    losses = {
        "global_contrastive_loss": global_loss(model, image, reports[:, 0]),
        "local_contrastive_loss": plain_local_loss(
            model.text_local_projection(reports[:, 1:]),
            batch["attention_mask"][:, 1:].bool(),
            model.image_local_projection(tokens[:, :, 1:]).flatten(1, 2),
            *model.local_logit_scales(),
        ),
        "image_reconstruction_loss": image_loss(
            model,
            tokens[:, 0],
            mask[::num_views] * batch["view_mask"][:, :1],
            ids_restore[::num_views],
            batch["target_pixel_values"],
        ),
        "masked_report_loss": cross_entropy(logits.flatten(0, 1).float(), batch["labels"].flatten()),
    }
    return {**losses, "loss": sum(losses.values())}


def encode_views(model, batch):
    """Every slot of every study, an absent view as the missing token."""
    tower, pixels = model.vision_model, batch["pixel_values"].flatten(0, 1)
    patches = tower.patch_embed(pixels)
    patches = torch.where(batch["view_mask"].flatten()[:, None, None], patches, tower.missing_token)
    patches = patches + tower.pos_embed[:, 1:]
    ids_shuffle = batch["noise"].flatten(0, 1).argsort(1)
    ids_restore = ids_shuffle.argsort(1)
    num_kept = int(patches.shape[1] * (1 - model.config.mask_ratio))
    kept = patches.gather(1, ids_shuffle[:, :num_kept, None].expand(-1, -1, patches.shape[2]))
    views = torch.arange(len(pixels)) % batch["view_mask"].shape[1]
    hidden_states = tower.study_tokens(kept, views, tower.pos_embed[:, :1])
    for block in tower.blocks:
        hidden_states = vit_block(block, hidden_states)
    return tower.norm(hidden_states), (ids_restore >= num_kept).float(), ids_restore


def vit_block(block: nn.Module, hidden_states: torch.Tensor) -> torch.Tensor:
    batch_size, num_tokens, _ = hidden_states.shape
    attention = block.attn
    qkv = attention.qkv(block.norm1(hidden_states)).reshape(batch_size, num_tokens, 3, attention.num_heads, -1)
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    context = scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    hidden_states = hidden_states + attention.proj(context)
    return hidden_states + block.mlp(block.norm2(hidden_states))


def encode_reports(model, input_ids, attention_mask, image_feature=0.0):
    bert = model.text_model
    hidden_states = bert.embeddings(input_ids=input_ids) + image_feature
    attention_mask = create_bidirectional_mask(bert.config, inputs_embeds=hidden_states, attention_mask=attention_mask)
    return bert.encoder(hidden_states, attention_mask=attention_mask).last_hidden_state


def global_loss(model, image, report):
    image = normalize(model.image_projection(image), dim=-1)
    report = normalize(model.text_projection(report), dim=-1)
    (scale,) = model.logit_scale()
    return symmetric_cross_entropy(scale * report @ image.T)


def plain_local_loss(
    words: torch.Tensor,
    word_mask: torch.Tensor,
    patches: torch.Tensor,
    attention_scale: torch.Tensor,
    pooling_scale: torch.Tensor,
    contrast_scale: torch.Tensor,
) -> torch.Tensor:
    """Local contrastive loss, one report after another against the patches of all studies.

    Args:
        words (`torch.Tensor` of shape `(batch_size, num_words, projection_dim)`): padded.
        word_mask (`torch.BoolTensor` of shape `(batch_size, num_words)`): `True` where a word stands.
        patches (`torch.Tensor` of shape `(batch_size, num_patches, projection_dim)`).
        attention_scale, pooling_scale, contrast_scale (scalar `torch.Tensor`).
    """
    similarities = []
    for report, present in zip(words, word_mask, strict=True):
        report = report[present]
        attention = (patches @ report.T).softmax(dim=2)  # (B, K, L)
        attention = (attention_scale * attention.transpose(1, 2)).softmax(dim=2)
        context = attention @ patches  # (B, L, E)
        cosine = cosine_similarity(report.expand_as(context), context, dim=-1)
        similarities.append((pooling_scale * cosine).exp().sum(1).log())
    return symmetric_cross_entropy(contrast_scale * torch.stack(similarities))


def image_loss(model, tokens, mask, ids_restore, target_pixel_values):
    """Decode every current frontal and compare the patches that were removed, where there is one."""
    decoder = model.image_decoder
    tokens = decoder.embed(tokens)
    mask_tokens = decoder.mask_token().expand(len(tokens), ids_restore.shape[1] + 1 - tokens.shape[1], -1)
    patches = torch.cat([tokens[:, 1:], mask_tokens.to(tokens.dtype)], dim=1)
    patches = patches.gather(1, ids_restore.unsqueeze(-1).expand_as(patches))
    hidden_states = torch.cat([tokens[:, :1], patches], dim=1) + decoder.pos_embed
    for block in decoder.blocks:
        hidden_states = vit_block(block, hidden_states)
    predicted = decoder.predict(decoder.norm(hidden_states))[:, 1:]
    target = patchify(target_pixel_values, model.config.decoder_patch_size)
    mean, variance = target.mean(-1, keepdim=True), target.var(-1, keepdim=True)
    error = mse_loss(predicted, (target - mean) / (variance + 1e-6).sqrt(), reduction="none").mean(-1)
    return (error * mask).sum() / mask.sum()


def symmetric_cross_entropy(logits: torch.Tensor) -> torch.Tensor:
    target = torch.arange(len(logits), device=logits.device)
    return (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2
