"""Processor of ALTA: one call for the radiographs of studies and for texts."""

from collections.abc import Sequence
from typing import Any

from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin, Unpack


class AltaProcessorKwargs(ProcessingKwargs, total=False):
    _defaults = {"text_kwargs": {"truncation": True}}


class AltaProcessor(ProcessorMixin):
    """
    Joins an [`AltaImageProcessor`] and the tokenizer of the text tower (paper, section III-A).

    Args:
        image_processor ([`AltaImageProcessor`]): prepares the radiographs.
        tokenizer (`PreTrainedTokenizerBase`): its `model_max_length` is the longest text in tokens, special tokens
            included.
    """

    valid_processor_kwargs = AltaProcessorKwargs

    def __init__(self, image_processor=None, tokenizer=None, **kwargs):
        super().__init__(image_processor, tokenizer, **kwargs)

    @classmethod
    def from_args_and_dict(cls, args, processor_dict: dict[str, Any], **kwargs):
        """As in transformers, which forgets here what code a repository names for its processor."""
        made = super().from_args_and_dict(args, processor_dict, **kwargs)
        if "auto_map" in processor_dict:
            processor = made[0] if isinstance(made, tuple) else made
            processor.auto_map = dict(processor_dict["auto_map"])
        return made

    def __call__(
        self, images: Any = None, text: str | Sequence[str] | None = None, **kwargs: Unpack[AltaProcessorKwargs]
    ) -> BatchFeature:
        """Prepare radiographs, texts, or both; their numbers need not agree.

        Args:
            images: a study, a list of studies, an image or a list of images, as [`AltaImageProcessor`] takes them.
            text (`str` or `list[str]`): reports, sentences or prompts. Truncated to `tokenizer.model_max_length`
                tokens unless `truncation=False`.
            kwargs: arguments of the tokenizer (`padding`, `truncation`, ...), of the image processor, and
                `return_tensors`.

        Returns:
            `BatchFeature` with
            - **input_ids**, **attention_mask**, **token_type_ids** -- of shape `(num_texts, num_tokens)`, with `text`.
            - **pixel_values** -- of shape `(batch, 4, 3, height, width)`, or `(batch, 3, height, width)` if no study
              came, with `images`.
            - **view_mask** -- `bool` of shape `(batch, 4)`, if a study came.

        Raises:
            `ValueError`: neither `images` nor `text`, a text longer than the limit with `truncation=False`, a
                `max_length` over the limit, or anything that [`AltaImageProcessor`] refuses.
            `TypeError`: a `text` that is no string or list of strings.
        """
        if images is None and text is None:
            raise ValueError("Either `images` or `text` must be passed, got None for both.")
        # A fast tokenizer is saved with the length of its last call, which is none of these texts' business.
        settings = {name: value for name, value in self.tokenizer.init_kwargs.items() if name != "max_length"}
        merged = self._merge_kwargs(AltaProcessorKwargs, tokenizer_init_kwargs=settings, **kwargs)
        data = {} if text is None else dict(self._tokenize(text, merged["text_kwargs"]))
        if images is not None:
            data.update(self.image_processor(images, **merged["images_kwargs"]))
        return BatchFeature(data)

    def _tokenize(self, text: str | Sequence[str], text_kwargs: dict):
        text = text if isinstance(text, str) else _check_texts(text)
        limit = self.tokenizer.model_max_length
        if (text_kwargs.get("max_length") or 0) > limit:
            raise ValueError(f"`max_length` must be at most {limit} tokens, got {text_kwargs['max_length']}.")
        if text_kwargs["truncation"] in (False, "do_not_truncate"):
            self._check_lengths([text] if isinstance(text, str) else text, limit)
        return self.tokenizer(text, **text_kwargs)

    def _check_lengths(self, texts: list[str], limit: int) -> None:
        for index, input_ids in enumerate(self.tokenizer(texts, truncation=False, verbose=False)["input_ids"]):
            if len(input_ids) > limit:
                raise ValueError(
                    f"`text`[{index}] must have at most {limit} tokens with `truncation=False`, got {len(input_ids)}."
                )


def _check_texts(text: Any) -> list[str]:
    if not isinstance(text, Sequence) or isinstance(text, bytes):
        raise TypeError(f"`text` must be a string or a list of strings, got {type(text).__name__}.")
    if len(text) == 0:
        raise ValueError("`text` must hold at least one string, got an empty list.")
    for index, item in enumerate(text):
        if not isinstance(item, str):
            raise TypeError(f"`text`[{index}] must be a string, got {type(item).__name__}.")
    return list(text)


__all__ = ["AltaProcessor", "AltaProcessorKwargs"]
