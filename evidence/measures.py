"""Figures of a trained arm on unseen studies: retrieval in both directions and zero-shot AUROC."""

from statistics import fmean
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from eval.prompts import PromptSet
from eval.retrieval import retrieval_metrics
from eval.zero_shot import prompt_scores, zero_shot_metrics
from evidence.studies import Studies
from modeling_alta import AltaModel


__all__ = ["RECALLS", "measure"]

CUTOFFS = (1, 5)
DIRECTIONS = ("text_to_image", "image_to_text")
RECALLS = tuple(f"{direction}_{k}" for direction in DIRECTIONS for k in CUTOFFS)
CHUNK = 64
BOOTSTRAP_SAMPLES = 1  # the spread is that of the seeds


@torch.no_grad()
def measure(
    model: AltaModel, tokenizer: PreTrainedTokenizerBase, studies: Studies, prompts: PromptSet, num_candidates: int
) -> dict[str, Any]:
    """
    Args:
        model ([`AltaModel`]): in eval mode.
        tokenizer (`PreTrainedTokenizerBase`): its `model_max_length` is the limit of a report.
        studies ([`Studies`]): each with its report.
        prompts ([`PromptSet`]): of the zero-shot labels.
        num_candidates (`int`): studies among which the right one is sought. More are ranked in groups of so many, of
            which the recalls are means; what is left over counts for zero-shot alone. Fewer are one group.

    Returns:
        `dict`: `candidates`, `groups`, `distinct_reports` (mean of the groups), and `value` and `chance` of
        `text_to_image_1`, `text_to_image_5`, `image_to_text_1`, `image_to_text_5`, `macro_auroc` and, under `auroc`,
        of every label.
    """
    images, texts = _embed_images(model, studies), _embed_texts(model, tokenizer, studies.reports)
    size = min(num_candidates, len(images))
    groups = [slice(start, start + size) for start in range(0, len(images) - size + 1, size)]
    ranked = [
        retrieval_metrics(images[group], texts[group], studies.reports[group], CUTOFFS, BOOTSTRAP_SAMPLES)
        for group in groups
    ]
    return {
        "candidates": size,
        "groups": len(groups),
        "distinct_reports": fmean(found["distinct_reports"] for found in ranked),
        **{f"{direction}_{k}": _mean_recall(ranked, direction, k) for direction in DIRECTIONS for k in CUTOFFS},
        **_zero_shot(model, tokenizer, images, studies, prompts),
    }


def _mean_recall(ranked: list[dict[str, Any]], direction: str, k: int) -> dict[str, float]:
    figures = [_bare(found[direction][f"recall_at_{k}"]) for found in ranked]
    return {key: fmean(figure[key] for figure in figures) for key in ("value", "chance")}


def _zero_shot(model, tokenizer, images, studies, prompts) -> dict[str, Any]:
    scores = prompt_scores(images, _embed_texts(model, tokenizer, prompts.texts), prompts)
    results = zero_shot_metrics(scores, studies.labels, BOOTSTRAP_SAMPLES)
    auroc = {label: _bare(result["auroc"]) for label, result in results["labels"].items()}
    return {"macro_auroc": _bare(results["macro_auroc"]), "auroc": auroc}


def _bare(figure: dict[str, Any]) -> dict[str, float]:
    return {"value": figure["value"], "chance": figure["chance"]}


def _embed_images(model: nn.Module, studies: Studies) -> torch.Tensor:
    embeds = []
    for start in range(0, len(studies.samples), CHUNK):
        chunk = studies.samples[start : start + CHUNK]
        pixel_values = torch.stack([sample["pixel_values"] for sample in chunk])
        embeds.append(model.get_image_features(pixel_values, torch.stack([sample["view_mask"] for sample in chunk])))
    return torch.cat(embeds)


def _embed_texts(model: nn.Module, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> torch.Tensor:
    encoded = tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
    return model.get_text_features(encoded["input_ids"], encoded["attention_mask"])
