"""Masked record modelling, the stage before ALTA: single frontals and their masked reports.

Zhou et al., "Advancing Radiograph Representation Learning with Masked Record Modeling", ICLR 2023.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers.utils import ModelOutput

from .configuration_alta import AltaConfig
from .losses_alta import masked_report_loss
from .modeling_alta import AltaPreTrainedModel, check_target, masked_image_loss, repeat_channel
from .text_alta import AltaReportHead, build_text_model, embed_tokens, encode_texts, masked_token_logits
from .vision_alta import AltaImageDecoder, AltaVisionModel


@dataclass
class MaskedRecordModelingOutput(ModelOutput):
    """
    Args:
        loss (scalar `torch.Tensor`): weighted sum of the two.
        image_reconstruction_loss, masked_report_loss (scalar `torch.Tensor`).
    """

    loss: torch.Tensor | None = None
    image_reconstruction_loss: torch.Tensor | None = None
    masked_report_loss: torch.Tensor | None = None


class AltaForMaskedRecordModeling(AltaPreTrainedModel):
    """
    The vision tower with the image decoder and a report decoder that sees the mean patch (MRM, section 3).

    Args:
        config (`AltaConfig`): `text_config` holds the sizes of the report decoder, 6 layers of 384 in the published
            stage.

    Raises:
        ValueError: if `config.use_adapters` is set: the stage trains the towers themselves.
    """

    def __init__(self, config: AltaConfig):
        super().__init__(config)
        if config.use_adapters:
            raise ValueError("`use_adapters` must be False for masked record modelling, got True.")
        self.vision_model = AltaVisionModel(config.vision_config)
        self.image_decoder = AltaImageDecoder(config)
        self.report_decoder = build_text_model(config.text_config)
        self.report_head = AltaReportHead(config.text_config)
        self.image_to_report = nn.Linear(config.vision_config.hidden_size, config.text_config.hidden_size)
        # Single current frontals carry no view or time to tell apart: both stay zero for the next stage.
        self.vision_model.study_tokens.view_embedding.requires_grad_(False)
        self.vision_model.study_tokens.temporal_embedding.requires_grad_(False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.report_decoder.get_input_embeddings()

    def forward(
        self,
        masked_input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        labels: torch.Tensor,
        pixel_values: torch.Tensor,
        target_pixel_values: torch.Tensor,
        noise: torch.Tensor | None = None,
        **kwargs,
    ) -> MaskedRecordModelingOutput:
        """
        Args:
            masked_input_ids, attention_mask, labels (`torch.LongTensor` of shape `(batch_size, num_tokens)`): labels
                are −100 where no token was masked.
            pixel_values (`torch.Tensor` of shape `(batch_size, 3, height, width)`): current frontals.
            target_pixel_values (`torch.Tensor` of shape `(batch_size, 3, target_size, target_size)`): the same at
                `config.target_image_size`.
            noise (`torch.Tensor` of shape `(batch_size, num_patches)`, *optional*): makes the masking reproducible.
        """
        config = self.config
        target_pixel_values = check_target(config, target_pixel_values, len(pixel_values))
        pixel_values = repeat_channel(pixel_values, config.vision_config.num_channels)
        view_mask = torch.ones(len(pixel_values), 1, dtype=torch.bool, device=pixel_values.device)
        noise = noise.unsqueeze(1) if noise is not None else None
        vision = self.vision_model(pixel_values.unsqueeze(1), view_mask, config.mask_ratio, noise)
        tokens = vision.last_hidden_state[:, 0]
        output = MaskedRecordModelingOutput(
            image_reconstruction_loss=masked_image_loss(
                config, self.image_decoder, tokens, vision.ids_restore[:, 0], target_pixel_values
            ),
            masked_report_loss=masked_report_loss(
                *self._fill_report(tokens, masked_input_ids, attention_mask, labels)
            ),
        )
        output.loss = (
            config.image_reconstruction_weight * output.image_reconstruction_loss
            + config.masked_report_weight * output.masked_report_loss
        )
        return output

    def _fill_report(self, tokens, masked_input_ids, attention_mask, labels):
        image_feature = self.image_to_report(tokens[:, 1:].mean(1, keepdim=True))
        hidden_states = embed_tokens(self.report_decoder, masked_input_ids) + image_feature
        hidden_states = encode_texts(self.report_decoder, hidden_states, attention_mask)
        return masked_token_logits(self.report_head, self.report_decoder, hidden_states, labels)


__all__ = ["AltaForMaskedRecordModeling", "MaskedRecordModelingOutput"]
