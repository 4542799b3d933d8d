"""Names of the published parameters and ours: the table of the conversion, readable both ways."""

import re


# Published names and ours, first match wins: `{}` is a number, and a name that ends in a dot is the start of one.
# `.base.` is dropped where the model has no adapters inside.
RENAMES = (
    ("cls_token", "vision_model.study_tokens.cls_token"),
    ("view_embedding", "vision_model.study_tokens.view_embedding"),
    ("temporal_embedding", "vision_model.study_tokens.temporal_embedding"),
    ("missing_token", "vision_model.missing_token"),
    ("pos_embed", "vision_model.pos_embed"),
    ("patch_embed.", "vision_model.patch_embed."),
    ("norm.", "vision_model.norm."),
    ("blocks.{}.attn_adapter.", "vision_model.blocks.{}.attn.proj.adapter."),
    ("blocks.{}.mlp_adapter.", "vision_model.blocks.{}.mlp.adapter."),
    ("blocks.{}.attn.proj.", "vision_model.blocks.{}.attn.proj.base."),
    ("blocks.{}.mlp.", "vision_model.blocks.{}.mlp.base."),
    ("blocks.", "vision_model.blocks."),
    ("mask_token", "image_decoder.mask_token.token"),
    ("decoder_pos_embed", "image_decoder.pos_embed"),
    ("decoder_embed.", "image_decoder.embed."),
    ("decoder_blocks.", "image_decoder.blocks."),
    ("decoder_norm.", "image_decoder.norm."),
    ("decoder_pred.", "image_decoder.predict."),
    ("bert_embed.", "image_to_report."),
    ("logit_scale", "logit_scale.log_scale"),
    ("logit_scale_local1", "local_logit_scales.log_scale"),
    ("logit_scale_local2", "local_logit_scales.log_scale"),
    ("logit_scale_local3", "local_logit_scales.log_scale"),
    ("projection_head.", "image_projection."),
    ("local_projection_head.", "image_local_projection."),
    ("bert_encoder.cls_projection_head.", "text_projection."),
    ("bert_encoder.local_projection_head.", "text_local_projection."),
    ("bert_encoder.cls.predictions.bias", "report_head.bias"),
    ("bert_encoder.cls.predictions.transform.", "report_head."),
    ("bert_encoder.bert.encoder.layer.{}.attn_adapter.", "text_model.encoder.layer.{}.attention.output.adapter."),
    ("bert_encoder.bert.encoder.layer.{}.mlp_adapter.", "text_model.encoder.layer.{}.output.adapter."),
    ("bert_encoder.bert.encoder.layer.{}.attention.output.", "text_model.encoder.layer.{}.attention.output.base."),
    ("bert_encoder.bert.encoder.layer.{}.output.", "text_model.encoder.layer.{}.output.base."),
    ("bert_encoder.bert.encoder.", "text_model.encoder."),
    ("bert_encoder.bert.embeddings.", "text_model.embeddings."),
)
LAYER_NORM_HEADS = re.compile(r"((?:image|text)(?:_local)?_projection|report_head)\.LayerNorm\.")
# Published scalars that are one vector here, in its order.
SCALES = {
    "logit_scale.log_scale": ("logit_scale",),
    "local_logit_scales.log_scale": ("logit_scale_local1", "logit_scale_local2", "logit_scale_local3"),
}

# Keys with no place of their own, and why.
UNUSED = (
    (r"bert_encoder\.cls\.predictions\.decoder\.(weight|bias)", "tied to the word embeddings and to the bias"),
    (r"bert_encoder\.bert\.embeddings\.position_ids", "a buffer, computed"),
    (r"bert_encoder\.(bert\.pooler|cls\.seq_relationship)\..+", "ALTA has no pooler"),
    (r"bert_(mlp|encoder\.model)\..+", "the report decoder of masked record modelling, left behind"),
    (r"(head|fc_norm|head_drop)\..+", "the classifier of another task, left behind"),
)


def rename_key(key: str) -> str | None:
    """Our name of a published parameter, `None` if it has no place."""
    # The first BERT checkpoints call the weight and the bias of a LayerNorm gamma and beta.
    key = key.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
    for published, ours in RENAMES:
        name = match_template(published, ours, key)
        if name is not None:
            name = name.replace(".D_fc1.", ".down.").replace(".D_fc2.", ".up.")
            return LAYER_NORM_HEADS.sub(r"\1.layer_norm.", name)
    return None


def published_key(name: str) -> str | None:
    """The inverse of `rename_key`, to say in the words of a checkpoint what is wrong with it."""
    for published, ours in RENAMES:
        key = match_template(ours, published, name)
        if key is not None:
            key = key.replace("_adapter.down.", "_adapter.D_fc1.").replace("_adapter.up.", "_adapter.D_fc2.")
            return key.replace(".layer_norm.", ".LayerNorm.")
    return None


def match_template(template: str, replacement: str, name: str) -> str | None:
    """Put the number and the end of a name that `template` matches into `replacement`; see `RENAMES`."""
    pattern = re.escape(template).replace(r"\{\}", r"(?P<number>\d+)").replace(r"\.base\.", r"\.(?:base\.)?")
    match = re.fullmatch(pattern + ("(?P<end>.+)" if template.endswith(".") else ""), name)
    if match is None:
        return None
    groups = match.groupdict(default="")
    return replacement.format(groups.get("number", "")) + groups.get("end", "")


__all__ = ["SCALES", "UNUSED", "published_key", "rename_key"]
