"""Studies and texts to embeddings: batched, without gradients, on the model's device."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from modeling_alta.configuration_alta import VIEW_NAMES


def embed_studies(
    model: nn.Module, processor: Any, studies: Iterable[dict[str, Any]], batch_size: int = 16, progress: bool = True
) -> torch.Tensor:
    """
    Image embeddings of studies.

    Args:
        model (`AltaModel`): any model whose output has `image_embeds`.
        processor (`AltaProcessor`): makes `pixel_values` and `view_mask` of a list of studies.
        studies (iterable of `dict`): view name to image or `None`; keys that are no view, as the other columns of a
            study record, are ignored.
        batch_size (`int`): studies per forward pass.
        progress (`bool`): show a progress bar once it has taken two seconds.

    Returns:
        `torch.FloatTensor` of shape `(num_studies, projection_dim)`: on the CPU, L2-normalised.

    Raises:
        ValueError: no study, or `batch_size` under 1; what the processor says of a study without a current view.
    """
    return _embed(model, processor, studies, "image", batch_size, progress)


def embed_texts(
    model: nn.Module, processor: Any, texts: Iterable[str], batch_size: int = 64, progress: bool = True
) -> torch.Tensor:
    """
    Text embeddings of reports or prompts; a text over the model's limit is cut there, as in training.

    Args:
        model (`AltaModel`): any model whose output has `text_embeds`.
        processor (`AltaProcessor`): makes `input_ids` and `attention_mask` of a list of texts.
        texts (iterable of `str`): the texts.
        batch_size (`int`): texts per forward pass.
        progress (`bool`): show a progress bar once it has taken two seconds.

    Returns:
        `torch.FloatTensor` of shape `(num_texts, projection_dim)`: on the CPU, L2-normalised.

    Raises:
        ValueError: no text, or `batch_size` under 1.
    """
    return _embed(model, processor, texts, "text", batch_size, progress)


@torch.no_grad()
def _embed(
    model: nn.Module, processor: Any, items: Iterable[Any], modality: str, batch_size: int, progress: bool
) -> torch.Tensor:
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
    total = len(items) if hasattr(items, "__len__") else None
    bar = tqdm(items, desc=f"{modality} embeddings", total=total, delay=2, disable=not progress)
    embeds = []
    with evaluating(model):
        for batch in _batches(bar, batch_size):
            outputs = model(**_to_model(_inputs(processor, batch, modality), model))
            embeds.append(F.normalize(getattr(outputs, f"{modality}_embeds").float(), dim=-1).cpu())
    if not embeds:
        raise ValueError(f"`{'studies' if modality == 'image' else 'texts'}` must hold at least one item, got none.")
    return torch.cat(embeds)


def _batches(items: Iterable[Any], batch_size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while batch := list(islice(iterator, batch_size)):
        yield batch


def _inputs(processor: Any, batch: list[Any], modality: str) -> dict[str, torch.Tensor]:
    if modality == "text":
        return processor(text=batch, return_tensors="pt", padding=True, truncation=True)
    return processor(images=[_views(study) for study in batch], return_tensors="pt")


def _views(study: dict[str, Any]) -> dict[str, Any]:
    return {name: study[name] for name in VIEW_NAMES if study.get(name) is not None}


def _to_model(inputs: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    weight = next(model.parameters())
    dtypes = {key: weight.dtype if value.is_floating_point() else value.dtype for key, value in inputs.items()}
    return {key: value.to(weight.device, dtypes[key]) for key, value in inputs.items()}


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put `model` in evaluation mode and every module of it back into its own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, is_training in modes:
            module.training = is_training


__all__ = ["embed_studies", "embed_texts", "evaluating"]
