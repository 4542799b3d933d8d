"""ALTA: a vision tower pretrained by masked record modelling and a report tower, aligned through adapters.

Lian et al., "Efficient Medical Vision-Language Alignment Through Adapting Masked Vision Models", IEEE TMI 2025.

Axes: B studies, V views, K kept patches, D hidden size, E projection size.
"""

from dataclasses import dataclass
from os import PathLike

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import ModelOutput

from .adapters_alta import BottleneckAdapter, add_adapters, freeze_pretrained
from .configuration_alta import VIEW_NAMES, AltaConfig
from .losses_alta import (
    global_contrastive_loss,
    image_reconstruction_loss,
    local_contrastive_loss,
    masked_report_loss,
)
from .shipped_alta import copy_code
from .staged_alta import staged_loss
from .text_alta import AltaReportHead, build_text_model, embed_tokens, encode_texts, masked_token_logits
from .vision_alta import (
    AltaImageDecoder,
    AltaMaskToken,
    AltaStudyTokens,
    AltaVisionModel,
    AltaVisionOutput,
    patchify,
    removed_patches,
    sincos_position_embedding,
    take_tokens,
)


# `peft` is optional: without it a full model still loads.
try:
    from .tuner_alta import AltaAdapterConfig  # noqa: F401  (registers the adapter type, so that adapters load by name)
except ImportError:
    pass


@dataclass
class AltaOutput(ModelOutput):
    """
    Args:
        loss (scalar `torch.Tensor`): global contrastive loss, with `return_loss=True`.
        logits_per_image (`torch.Tensor` of shape `(num_studies, num_texts)`): scaled cosines.
        logits_per_text (`torch.Tensor` of shape `(num_texts, num_studies)`): its transpose.
        image_embeds (`torch.Tensor` of shape `(num_studies, projection_dim)`): L2-normalised.
        text_embeds (`torch.Tensor` of shape `(num_texts, projection_dim)`): L2-normalised.
        vision_model_output (`AltaVisionOutput`).
        text_model_output (`BaseModelOutput`).
    """

    loss: torch.Tensor | None = None
    logits_per_image: torch.Tensor | None = None
    logits_per_text: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    vision_model_output: AltaVisionOutput | None = None
    text_model_output: BaseModelOutput | None = None


@dataclass
class AltaForPreTrainingOutput(ModelOutput):
    """
    Args:
        loss (scalar `torch.Tensor`): weighted sum of the losses that are there.
        global_contrastive_loss, local_contrastive_loss, image_reconstruction_loss, masked_report_loss (scalars).
        image_embeds, text_embeds (`torch.Tensor` of shape `(batch_size, projection_dim)`): L2-normalised.
        word_embeds (`torch.Tensor` of shape `(batch_size, num_words, projection_dim)`): local, not normalised.
        word_mask (`torch.BoolTensor` of shape `(batch_size, num_words)`): `True` where a word stands.
        patch_embeds (`torch.Tensor` of shape `(batch_size, num_patches, projection_dim)`): kept patches of all views.
        patch_mask (`torch.BoolTensor` of shape `(batch_size, num_patches)`): `True` where a patch counts.
        logit_scales (`torch.Tensor` of shape `(4,)`): the global scale, then the three local ones, exponentiated.
        vision_model_output (`AltaVisionOutput`): of the masked views.
    """

    loss: torch.Tensor | None = None
    global_contrastive_loss: torch.Tensor | None = None
    local_contrastive_loss: torch.Tensor | None = None
    image_reconstruction_loss: torch.Tensor | None = None
    masked_report_loss: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    word_embeds: torch.Tensor | None = None
    word_mask: torch.Tensor | None = None
    patch_embeds: torch.Tensor | None = None
    patch_mask: torch.Tensor | None = None
    logit_scales: torch.Tensor | None = None
    vision_model_output: AltaVisionOutput | None = None


class AltaProjectionHead(nn.Module):
    """Linear, GELU, LayerNorm, Linear: CXR-BERT's projection, used for both towers."""

    def __init__(self, hidden_size: int, config: AltaConfig):
        super().__init__()
        self.dense_to_hidden = nn.Linear(hidden_size, config.projection_dim)
        self.layer_norm = nn.LayerNorm(config.projection_dim, eps=config.projection_layer_norm_eps)
        self.dense_to_output = nn.Linear(config.projection_dim, config.projection_dim)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = nn.functional.gelu(self.dense_to_hidden(hidden_states))
        return self.dense_to_output(self.layer_norm(hidden_states))


class AltaLogitScales(nn.Module):
    """Trained scales, kept as logarithms and given exponentiated: a module, so that PEFT can train and save them."""

    def __init__(self, num_scales: int, init_value: float):
        super().__init__()
        self.init_value = init_value
        self.log_scale = nn.Parameter(torch.full((num_scales,), float(init_value)))

    def forward(self) -> tuple[torch.Tensor, ...]:
        return self.log_scale.exp().unbind()


class AltaPreTrainedModel(PreTrainedModel):
    config_class = AltaConfig
    base_model_prefix = "alta"
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["AltaBlock", "BertLayer"]
    # Every loss is a mean over a batch, which a `Trainer` itself must divide over accumulated batches.
    accepts_loss_kwargs = False

    @torch.no_grad()
    def _init_weights(self, module):
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            init.trunc_normal_(module.weight, std=self.config.initializer_range)
            init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, AltaVisionModel):
            init.copy_(module.pos_embed, sincos_position_embedding(module.pos_embed))
            init.zeros_(module.missing_token)
        elif isinstance(module, AltaStudyTokens):
            init.normal_(module.cls_token, std=self.config.initializer_range)
            init.zeros_(module.view_embedding)
            init.zeros_(module.temporal_embedding)
        elif isinstance(module, AltaImageDecoder):
            init.copy_(module.pos_embed, sincos_position_embedding(module.pos_embed))
        elif isinstance(module, AltaMaskToken):
            init.normal_(module.token, std=self.config.initializer_range)
        elif isinstance(module, AltaLogitScales):
            init.constant_(module.log_scale, module.init_value)
        elif isinstance(module, AltaReportHead):
            init.zeros_(module.bias)

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """Initialise what was not loaded; adapters last, since BERT gives those inside it weights of its own.

        Loading makes every parameter trainable; those that never train, such as the positions, are frozen again.
        """
        super().initialize_weights()
        for module in self.modules():
            if isinstance(module, BottleneckAdapter):
                init.zeros_(module.up.weight)
        self._freeze_fixed()

    def post_init(self) -> None:
        self._fixed_parameters = [name for name, p in self.named_parameters() if not p.requires_grad]
        super().post_init()

    def _freeze_fixed(self) -> None:
        for name in self._fixed_parameters:
            self.get_parameter(name).requires_grad_(False)

    def check_views(self, pixel_values, view_mask):
        """Views as (batch, views, channels, height, width) with a mask, or an error that says what is wrong."""
        vision = self.config.vision_config
        pixel_values = repeat_channel(pixel_values, vision.num_channels)
        image_shape = (vision.num_channels, vision.image_size, vision.image_size)
        if pixel_values.ndim == 4 and view_mask is None:
            pixel_values = pixel_values.unsqueeze(1)
        num_views = pixel_values.shape[1]
        if pixel_values.ndim != 5 or pixel_values.shape[2:] != image_shape or num_views not in (1, len(VIEW_NAMES)):
            raise ValueError(
                f"`pixel_values` must have shape (batch, {len(VIEW_NAMES)}, {', '.join(map(str, image_shape))}), or "
                f"without the view axis and `view_mask` for current frontals alone, got {tuple(pixel_values.shape)}."
            )
        if view_mask is None:
            view_mask = torch.ones(pixel_values.shape[:2], dtype=torch.bool, device=pixel_values.device)
        if view_mask.shape != pixel_values.shape[:2]:
            raise ValueError(
                f"`view_mask` must have shape {tuple(pixel_values.shape[:2])}, got {tuple(view_mask.shape)}."
            )
        view_mask = view_mask.bool()
        without_current = (~view_mask[:, :2].any(1)).nonzero().flatten().tolist()
        if without_current:
            raise ValueError(f"`view_mask` must hold a current view in every study, got none in {without_current}.")
        return pixel_values, view_mask

    def enable_adapters(self) -> None:
        """Switch PEFT adapters on again, class token, norms and heads included."""
        super().enable_adapters()
        for module in self.modules():
            if hasattr(module, "modules_to_save") and hasattr(module, "enable_adapters"):
                module.enable_adapters(True)

    def freeze_pretrained(self) -> None:
        """Leave trainable what the published method trains: adapters, norms, tokens, heads and scales."""
        freeze_pretrained(self)

    def save_pretrained(self, save_directory: str | PathLike, is_main_process: bool = True, *args, **kwargs) -> None:
        """Save as transformers does, with all the code that a repository ships if the config names any of it."""
        super().save_pretrained(save_directory, is_main_process, *args, **kwargs)
        if is_main_process:
            self._copy_named_code(save_directory)

    def _upload_modified_files(self, working_dir: str | PathLike, *args, **kwargs):
        # With `push_to_hub=True` transformers uploads before `save_pretrained` is through.
        self._copy_named_code(working_dir)
        return super()._upload_modified_files(working_dir, *args, **kwargs)

    def _copy_named_code(self, folder):
        if getattr(self.config, "auto_map", None):
            copy_code(folder)


class AltaModel(AltaPreTrainedModel):
    """Both towers and their projections: studies and texts in one space.

    Args:
        config (`AltaConfig`): with `use_adapters` the adapters are inside, else this is the base for PEFT adapters.
    """

    # A pretraining checkpoint holds the decoder and the report head as well.
    _keys_to_ignore_on_load_unexpected = [r"^image_decoder\.", r"^report_head\.", r"^image_to_report\."]

    def __init__(self, config: AltaConfig):
        super().__init__(config)
        text, vision = config.text_config, config.vision_config
        self.vision_model = AltaVisionModel(vision)
        self.text_model = build_text_model(text)
        self.image_projection = AltaProjectionHead(vision.hidden_size, config)
        self.text_projection = AltaProjectionHead(text.hidden_size, config)
        self.image_local_projection = AltaProjectionHead(vision.hidden_size, config)
        self.text_local_projection = AltaProjectionHead(text.hidden_size, config)
        self.logit_scale = AltaLogitScales(1, config.logit_scale_init_value)
        self.local_logit_scales = AltaLogitScales(3, config.logit_scale_init_value)
        if config.use_adapters:
            add_adapters(self, config)
        self.post_init()

    @staticmethod
    def _load_pretrained_model(model, *args, **kwargs):
        """Loading an adapter, transformers would report the decoder's weights in it, which training has left there."""
        loading_info, *rest = AltaPreTrainedModel._load_pretrained_model(model, *args, **kwargs)
        model._adjust_missing_and_unexpected_keys(loading_info)
        return loading_info, *rest

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text_model.set_input_embeddings(value)

    def get_image_features(self, pixel_values: torch.Tensor, view_mask: torch.Tensor | None = None) -> torch.Tensor:
        """L2-normalised embeddings of studies, from the views that are present.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, 4, 3, height, width)` or `(batch_size, 3, height,
                width)`): views in the order of `VIEW_NAMES`, or current frontals alone.
            view_mask (`torch.BoolTensor` of shape `(batch_size, 4)`, *optional*): `True` where the view was taken; all
                by default.

        Returns:
            `torch.Tensor` of shape `(batch_size, projection_dim)`.

        Raises:
            ValueError: for pixels or a mask of another shape, and for a study without a current view.
        """
        return self._embed_images(*self.check_views(pixel_values, view_mask))[0]

    def get_text_features(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """L2-normalised embeddings of texts, from the class token.

        Args:
            input_ids, attention_mask, token_type_ids (`torch.LongTensor` of shape `(batch_size, num_tokens)`).

        Returns:
            `torch.Tensor` of shape `(batch_size, projection_dim)`.
        """
        return self._embed_texts(input_ids, attention_mask, token_type_ids)[0]

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        view_mask: torch.Tensor | None = None,
        return_loss: bool = False,
        **kwargs,
    ) -> AltaOutput:
        """
        Args:
            input_ids, attention_mask, token_type_ids (`torch.LongTensor` of shape `(num_texts, num_tokens)`).
            pixel_values (`torch.Tensor` of shape `(num_studies, 4, 3, height, width)` or `(num_studies, 3, height,
                width)`).
            view_mask (`torch.BoolTensor` of shape `(num_studies, 4)`): `True` where the view was taken. Pixels of an
                absent view never change an output.
            return_loss (`bool`): also give the global contrastive loss, the i-th text belonging to the i-th study.

        Raises:
            ValueError: if both modalities are left out, for a wrong shape, or for a study without a current view.
        """
        if input_ids is None and pixel_values is None:
            raise ValueError("`input_ids` or `pixel_values` must be given, got neither.")
        output = AltaOutput()
        if pixel_values is not None:
            output.image_embeds, output.vision_model_output = self._embed_images(
                *self.check_views(pixel_values, view_mask)
            )
        if input_ids is not None:
            output.text_embeds, output.text_model_output = self._embed_texts(input_ids, attention_mask, token_type_ids)
        if input_ids is not None and pixel_values is not None:
            (scale,) = self.logit_scale()
            output.logits_per_text = scale * output.text_embeds @ output.image_embeds.T
            output.logits_per_image = output.logits_per_text.T
        if return_loss:
            output.loss = self._contrastive_loss(output)
        return output

    def _embed_images(self, pixel_values, view_mask):
        vision_output = self.vision_model(pixel_values, view_mask)
        return nn.functional.normalize(self.image_projection(vision_output.pooler_output), dim=-1), vision_output

    def _embed_texts(self, input_ids, attention_mask, token_type_ids):
        hidden_states = embed_tokens(self.text_model, input_ids, token_type_ids)
        hidden_states = encode_texts(self.text_model, hidden_states, attention_mask)
        text_embeds = nn.functional.normalize(self.text_projection(hidden_states[:, 0]), dim=-1)
        return text_embeds, BaseModelOutput(last_hidden_state=hidden_states)

    def _contrastive_loss(self, output):
        if output.image_embeds is None or output.text_embeds is None:
            raise ValueError("`return_loss=True` needs both `input_ids` and `pixel_values`, got one of them.")
        if len(output.image_embeds) != len(output.text_embeds):
            raise ValueError(
                f"`return_loss=True` needs one text per study, got {len(output.text_embeds)} texts and "
                f"{len(output.image_embeds)} studies."
            )
        (scale,) = self.logit_scale()
        return global_contrastive_loss(output.image_embeds, output.text_embeds, scale)


class AltaForPreTraining(AltaModel):
    """ALTA with the image decoder and the report head of its training (paper, section III-C)."""

    _keys_to_ignore_on_load_unexpected = None

    def __init__(self, config: AltaConfig):
        super().__init__(config)
        self.image_decoder = AltaImageDecoder(config)
        self.report_head = AltaReportHead(config.text_config)
        self.image_to_report = nn.Linear(config.vision_config.hidden_size, config.text_config.hidden_size)
        self.image_to_report.requires_grad_(False)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        masked_input_ids: torch.Tensor,
        labels: torch.Tensor,
        pixel_values: torch.Tensor,
        target_pixel_values: torch.Tensor,
        view_mask: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        contrast: bool = True,
        **kwargs,
    ) -> AltaForPreTrainingOutput:
        """
        Args:
            input_ids, attention_mask, masked_input_ids (`torch.LongTensor` of shape `(batch_size, num_tokens)`).
            labels (`torch.LongTensor` of shape `(batch_size, num_tokens)`): −100 where no token was masked.
            pixel_values (`torch.Tensor` of shape `(batch_size, 4, 3, height, width)`): or with one channel, which
                stands for all three.
            target_pixel_values (`torch.Tensor` of shape `(batch_size, 3, target_size, target_size)`): the current
                frontal at `config.target_image_size`, or one channel of it.
            view_mask (`torch.BoolTensor` of shape `(batch_size, 4)`): `True` where the view was taken.
            noise (`torch.Tensor` of shape `(batch_size, 4, num_patches)`, *optional*): makes the masking reproducible.
            contrast (`bool`): `False` leaves the two contrastive losses out, for a batch that is a part of the one to
                contrast; `contrastive_losses` of the joined embeddings gives them.

        Raises:
            ValueError: for a wrong shape or a study without a current view.
        """
        config = self.config
        pixel_values, view_mask = self.check_views(pixel_values, view_mask)
        target_pixel_values = check_target(config, target_pixel_values, len(pixel_values))
        vision = self.vision_model(pixel_values, view_mask, config.mask_ratio, noise, config.missing_views)
        # The heads that use up most memory come first and are through before the next begins.
        image_loss = self._image_loss(vision, view_mask, target_pixel_values)
        report_loss = self._report_loss(vision, masked_input_ids, attention_mask, labels)
        output = self._embed(input_ids, attention_mask, vision)
        output.image_reconstruction_loss, output.masked_report_loss = image_loss, report_loss
        if contrast:
            output.global_contrastive_loss, output.local_contrastive_loss = contrastive_losses(output)
        output.loss = weigh_losses(config, output)
        return output

    def _embed(self, input_ids, attention_mask, vision):
        reports = encode_texts(self.text_model, embed_tokens(self.text_model, input_ids), attention_mask)
        patches = self.image_local_projection(vision.last_hidden_state[:, :, 1:])  # (B, V, K, E)
        patch_mask = vision.computed_views.unsqueeze(-1).expand(patches.shape[:3])
        return AltaForPreTrainingOutput(
            image_embeds=nn.functional.normalize(self.image_projection(vision.pooler_output), dim=-1),
            text_embeds=nn.functional.normalize(self.text_projection(reports[:, 0]), dim=-1),
            word_embeds=self.text_local_projection(reports[:, 1:]),  # the class token is no word, the separator is
            word_mask=attention_mask[:, 1:].bool(),
            patch_embeds=patches.flatten(1, 2),
            patch_mask=patch_mask.flatten(1, 2),
            logit_scales=torch.stack([*self.logit_scale(), *self.local_logit_scales()]),
            vision_model_output=vision,
        )

    def _image_loss(self, vision, view_mask, target_pixel_values):
        present = view_mask[:, 0].nonzero().squeeze(1)
        ids_restore, target = vision.ids_restore[present, 0], target_pixel_values[present]

        def loss(tokens):
            return masked_image_loss(self.config, self.image_decoder, tokens, ids_restore, target)

        return staged_loss(loss, (vision.last_hidden_state[present, 0],), [self.image_decoder])

    def _report_loss(self, vision, masked_input_ids, attention_mask, labels):
        def loss(image_feature):
            hidden_states = embed_tokens(self.text_model, masked_input_ids) + image_feature.unsqueeze(1)
            hidden_states = encode_texts(self.text_model, hidden_states, attention_mask)
            return masked_report_loss(*masked_token_logits(self.report_head, self.text_model, hidden_states, labels))

        image_feature = self.image_to_report(vision.pooler_output)  # (B, D)
        return staged_loss(loss, (image_feature,), [self.text_model, self.report_head])


def masked_image_loss(
    config: AltaConfig,
    decoder: AltaImageDecoder,
    tokens: torch.Tensor,
    ids_restore: torch.Tensor,
    target_pixel_values: torch.Tensor,
) -> torch.Tensor:
    """Reconstruction loss of images, whose removed patches are the only ones predicted.

    Args:
        tokens (`torch.Tensor` of shape `(num_images, 1 + num_kept_patches, hidden_size)`): class token first.
        ids_restore (`torch.LongTensor` of shape `(num_images, num_patches)`).
        target_pixel_values (`torch.Tensor` of shape `(num_images, 3, target_size, target_size)`).
    """
    removed = removed_patches(ids_restore, tokens.shape[1] - 1)
    target = take_tokens(patchify(target_pixel_values, config.decoder_patch_size), removed)
    return image_reconstruction_loss(decoder(tokens, ids_restore, removed), target, config.norm_pix_loss)


def contrastive_losses(embeds: AltaForPreTrainingOutput) -> tuple[torch.Tensor, torch.Tensor]:
    """Global and local contrastive loss of a batch, whole or joined from parts."""
    global_scale, *local_scales = embeds.logit_scales.unbind()
    return (
        global_contrastive_loss(embeds.image_embeds, embeds.text_embeds, global_scale),
        local_contrastive_loss(
            embeds.word_embeds, embeds.word_mask, embeds.patch_embeds, embeds.patch_mask, *local_scales
        ),
    )


def weigh_losses(config: AltaConfig, output: ModelOutput) -> torch.Tensor:
    """Weighted sum of those of the four losses that `output` holds (paper, section III-C)."""
    names = ("global_contrastive", "local_contrastive", "image_reconstruction", "masked_report")
    losses = {name: output.get(f"{name}_loss") for name in names}
    return sum(getattr(config, f"{name}_weight") * loss for name, loss in losses.items() if loss is not None)


def check_target(config: AltaConfig, target_pixel_values: torch.Tensor, batch_size: int) -> torch.Tensor:
    """The target with all its channels.

    Raises:
        ValueError: if the target is not the current frontal of every study at `config.target_image_size`.
    """
    size, channels = config.target_image_size, config.vision_config.num_channels
    target_pixel_values = repeat_channel(target_pixel_values, channels)
    expected = (batch_size, channels, size, size)
    if target_pixel_values.shape != expected:
        raise ValueError(f"`target_pixel_values` must have shape {expected}, got {tuple(target_pixel_values.shape)}.")
    return target_pixel_values


def repeat_channel(pixel_values: torch.Tensor, num_channels: int) -> torch.Tensor:
    """Radiographs are grey: one channel, which is a third of the memory on the way here, stands for all of them."""
    if pixel_values.ndim < 3 or pixel_values.shape[-3] != 1:
        return pixel_values
    return pixel_values.expand(*pixel_values.shape[:-3], num_channels, *pixel_values.shape[-2:])


__all__ = [
    "AltaForPreTraining",
    "AltaForPreTrainingOutput",
    "AltaModel",
    "AltaOutput",
    "AltaPreTrainedModel",
    "contrastive_losses",
    "masked_image_loss",
    "repeat_channel",
    "weigh_losses",
]
