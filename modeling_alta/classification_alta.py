"""The vision tower with a linear classifier: labels of studies, by linear probe, adapters or full fine-tuning.

Axes: B studies, C labels, D hidden size.
"""

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_outputs import ImageClassifierOutput

from .adapters_alta import add_adapters
from .configuration_alta import AltaConfig
from .modeling_alta import AltaPreTrainedModel
from .vision_alta import AltaVisionModel


PROBLEM_TYPES = ("multi_label_classification", "single_label_classification")
UNKNOWN_LABEL = -100


class AltaForImageClassification(AltaPreTrainedModel):
    """
    A linear classifier on the mean class token of a study's present views.

    `from_pretrained` takes the vision tower of a full ALTA or MRM model, of its base, or a classifier saved before.
    Three ways to tune it: as it comes, the whole tower trains; after `freeze_tower` the classifier alone; under
    `get_peft_model(model, AltaAdapterConfig())` new adapters, norms and tokens of the tower and the classifier (or,
    after `freeze_pretrained`, the adapters that are inside).

    Args:
        config (`AltaConfig`): with `num_labels` or `id2label`, and `problem_type`: `"multi_label_classification"`, or
            `None` for the same, where a study has any number of the labels, `"single_label_classification"` where it
            has one. With `use_adapters` the adapters of the vision tower are inside.

    Raises:
        ValueError: for another `problem_type`.
    """

    input_modalities = ("image",)
    # Everything that the models of the other stages hold beside the vision tower.
    _keys_to_ignore_on_load_unexpected = [
        r"^(text_model|report_decoder|report_head|image_decoder|image_to_report)\.",
        r"^((image|text)(_local)?_projection|logit_scale|local_logit_scales)\.",
    ]

    def __init__(self, config: AltaConfig):
        super().__init__(config)
        if config.problem_type is None:
            config.problem_type = "multi_label_classification"
        if config.problem_type not in PROBLEM_TYPES:
            raise ValueError(f"`problem_type` must be one of {list(PROBLEM_TYPES)}, got {config.problem_type!r}.")
        self.vision_model = AltaVisionModel(config.vision_config)
        self.classifier = nn.Linear(config.vision_config.hidden_size, config.num_labels)
        if config.use_adapters:
            add_adapters(self, config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.vision_model.patch_embed

    def freeze_tower(self) -> None:
        """Leave the classifier alone trainable: a linear probe. The tower stays in evaluation mode from here on."""
        self.requires_grad_(False)
        self.classifier.requires_grad_(True)
        self.vision_model.eval()

    def unfreeze_tower(self) -> None:
        """Let everything train but the fixed positions, as after `from_pretrained`: full fine-tuning."""
        self.requires_grad_(True)
        self._freeze_fixed()
        self.vision_model.train(self.training)

    def train(self, mode: bool = True) -> "AltaForImageClassification":
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.vision_model.parameters()):
            self.vision_model.eval()
        return self

    def get_image_features(self, pixel_values: torch.Tensor, view_mask: torch.Tensor | None = None) -> torch.Tensor:
        """What the classifier sees of studies; of a frozen tower it can be kept and given to `classify`.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, 4, 3, height, width)` or `(batch_size, 3, height,
                width)`): views in the order of `VIEW_NAMES`, or current frontals alone.
            view_mask (`torch.BoolTensor` of shape `(batch_size, 4)`, *optional*): `True` where the view was taken; all
                by default.

        Returns:
            `torch.Tensor` of shape `(batch_size, hidden_size)`: mean class token of the present views.

        Raises:
            ValueError: for pixels or a mask of another shape, and for a study without a current view.
        """
        return self.vision_model(*self.check_views(pixel_values, view_mask)).pooler_output

    def classify(self, image_features: torch.Tensor, labels: torch.Tensor | None = None) -> ImageClassifierOutput:
        """Logits of image features, and their loss with `labels`; shapes as in `forward`.

        Args:
            image_features (`torch.Tensor` of shape `(batch_size, hidden_size)`): of `get_image_features`.
            labels (`torch.Tensor`, *optional*).
        """
        logits = self.classifier(image_features)  # (B, C)
        if labels is None:
            return ImageClassifierOutput(logits=logits)
        is_single = self.config.problem_type == "single_label_classification"
        loss = single_label_loss if is_single else multi_label_loss
        return ImageClassifierOutput(loss=loss(logits, labels.to(logits.device)), logits=logits)

    def forward(
        self,
        pixel_values: torch.Tensor,
        view_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs,
    ) -> ImageClassifierOutput:
        """
        Args:
            pixel_values, view_mask: as in `get_image_features`. Pixels of an absent view never change an output.
            labels (`torch.Tensor`, *optional*): of shape `(batch_size, num_labels)` with 1 where a label holds and 0
                where not, or for single-label classification of shape `(batch_size,)` with the label's index. NaN or
                −100 is an unknown label, which is left out of the loss.

        Returns:
            `ImageClassifierOutput` with `logits` of shape `(batch_size, num_labels)` and, with `labels`, `loss`.

        Raises:
            ValueError: what `get_image_features` raises, and for labels of another shape or out of range.
        """
        return self.classify(self.get_image_features(pixel_values, view_mask), labels)

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if module is self.classifier:
            init.normal_(module.weight, std=self.config.initializer_range)


def multi_label_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy, mean over the known labels; 0 if there is none.

    Args:
        logits (`torch.Tensor` of shape `(batch_size, num_labels)`).
        labels (`torch.Tensor` of shape `(batch_size, num_labels)`): 0 to 1, NaN or −100 where unknown.

    Raises:
        ValueError: for labels of another shape or out of range.
    """
    if labels.shape != logits.shape:
        raise ValueError(
            f"`labels` must have shape {tuple(logits.shape)} for multi-label classification, got "
            f'{tuple(labels.shape)}; one label a study is `problem_type="single_label_classification"`.'
        )
    labels = labels.float()
    is_known = ~(labels.isnan() | (labels == UNKNOWN_LABEL))
    logits, labels = logits.float()[is_known], labels[is_known]
    if ((labels < 0) | (labels > 1)).any():
        raise ValueError(f"`labels` must be 0 to 1, NaN or {UNKNOWN_LABEL}, got {_range_of(labels)}.")
    loss = nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="sum")
    return loss / is_known.sum().clamp(min=1)


def single_label_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy, mean over the studies whose label is known; 0 if there is none.

    Args:
        logits (`torch.Tensor` of shape `(batch_size, num_labels)`).
        labels (`torch.Tensor` of shape `(batch_size,)`): indices, NaN or −100 where unknown.

    Raises:
        ValueError: for labels of another shape or out of range.
    """
    if labels.shape != logits.shape[:1]:
        raise ValueError(
            f"`labels` must have shape ({len(logits)},) for single-label classification, got {tuple(labels.shape)}."
        )
    is_known = ~(labels.isnan() | (labels == UNKNOWN_LABEL))
    logits, labels = logits.float()[is_known], labels[is_known].long()
    if ((labels < 0) | (labels >= logits.shape[-1])).any():
        raise ValueError(
            f"`labels` must be indices below {logits.shape[-1]}, NaN or {UNKNOWN_LABEL}, got {_range_of(labels)}."
        )
    return nn.functional.cross_entropy(logits, labels, reduction="sum") / is_known.sum().clamp(min=1)


def _range_of(labels: torch.Tensor) -> str:
    return f"{labels.min().item():g} to {labels.max().item():g}"


__all__ = ["AltaForImageClassification", "multi_label_loss", "single_label_loss"]
