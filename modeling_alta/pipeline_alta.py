"""Zero-shot classification of whole studies, as a pipeline: `pipeline(model=REPO, trust_remote_code=True)`."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import Pipeline


class AltaStudyPipeline(Pipeline):
    """
    Scores texts against every view of a study at once, where `zero-shot-image-classification` takes one image.

    Example:

    ```python
    classify = pipeline(model=REPO, trust_remote_code=True)
    study = {"current_frontal": "today.dcm", "prior_frontal": "before.dcm"}
    classify(study, candidate_labels=["pneumonia", "no pneumonia"])
    ```
    """

    _load_processor = True
    _load_tokenizer = _load_image_processor = _load_feature_extractor = _load_video_processor = False

    def __call__(self, study: Any, candidate_labels: Sequence[str] | None = None, **kwargs: Any) -> Any:
        """Score every label for a study.

        Args:
            study (`dict`, an image, or a list, dataset or generator of them): what `AltaImageProcessor` takes as a
                study: views by their names, `None` where there is none. An image is a current frontal alone.
            candidate_labels (`list[str]`): what to tell apart.
            hypothesis_template (`str`, defaults to `"{}"`): text of a label, which stands at the `{}`.
            batch_size (`int`, defaults to 1): studies that go through the model at once.

        Returns:
            `list[dict]` with `label` and `score`, the highest score first: the softmax over the labels of
            `logits_per_image`. A list of such lists if a list came.

        Raises:
            ValueError: without labels, for a template without `{}`, or for a study that cannot be used.
        """
        if candidate_labels is not None:
            kwargs["candidate_labels"] = candidate_labels
        return super().__call__(study, **kwargs)

    def _sanitize_parameters(self, candidate_labels=None, hypothesis_template=None, **kwargs):
        if isinstance(candidate_labels, str) or (candidate_labels is not None and len(candidate_labels) == 0):
            raise ValueError(f"`candidate_labels` must be a list of at least one text, got {candidate_labels!r}.")
        if hypothesis_template is not None and "{}" not in hypothesis_template:
            raise ValueError(f"`hypothesis_template` must hold {{}} for the label, got {hypothesis_template!r}.")
        given = {"candidate_labels": candidate_labels, "hypothesis_template": hypothesis_template}
        return {name: value for name, value in given.items() if value is not None}, {}, {}

    def preprocess(self, study, candidate_labels=None, hypothesis_template="{}"):
        if candidate_labels is None:
            raise ValueError("`candidate_labels` must be a list of at least one text, got none.")
        # Always a study, so that images and studies fit into one batch.
        study = study if isinstance(study, Mapping) else {"current_frontal": study}
        inputs = self.processor(images=[study], return_tensors="pt").to(self.dtype)
        texts = [hypothesis_template.format(label) for label in candidate_labels]
        # A list, since the pipeline would join the tensors of a batch, whose texts are all the same.
        inputs["text_inputs"] = [self.processor(text=texts, padding=True, return_tensors="pt")]
        inputs["candidate_labels"] = candidate_labels
        return inputs

    def _forward(self, model_inputs):
        candidate_labels = model_inputs.pop("candidate_labels")
        text_inputs = model_inputs.pop("text_inputs")[0]
        if isinstance(text_inputs, list):
            text_inputs = text_inputs[0]  # a batch of more than one study
        logits = self.model(**text_inputs, **model_inputs).logits_per_image
        return {"logits": logits, "candidate_labels": candidate_labels}

    def postprocess(self, model_outputs: Mapping[str, Any]) -> list[dict[str, Any]]:
        scores: torch.Tensor = model_outputs["logits"][0].float().softmax(dim=-1)
        ranking = sorted(zip(scores.tolist(), model_outputs["candidate_labels"], strict=True), key=lambda x: -x[0])
        return [{"label": label, "score": score} for score, label in ranking]


__all__ = ["AltaStudyPipeline"]
