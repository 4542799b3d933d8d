"""
Zero-shot classification by prompt pairs, the RSNA protocol ("There is pneumonia" / "There is no pneumonia") for any
number of labels: the prompts of a side are averaged to one embedding, and a study's score is the softmax of its two
cosines.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch.nn import functional as F

from eval.bootstrap import auroc_interval, describe_bootstrap, number_patients
from eval.embeddings import embed_studies, embed_texts
from eval.prompts import PromptSet, load_prompts
from eval.protocol import (
    RunOptions,
    argument_errors,
    check_labels,
    describe_run,
    load_model,
    load_records,
    patients_of,
    protocol_parser,
    write_json,
)


PROTOCOL = {"name": "zero_shot_prompt_pairs", "version": "1.1"}
CHANCE_AUROC = 0.5


def zero_shot_scores(
    image_embeds: torch.Tensor, positive_embeds: torch.Tensor, negative_embeds: torch.Tensor, scale: float = 1.0
) -> torch.Tensor:
    """
    Score of one label for every study: the positive share of the softmax of two cosines.

    Args:
        image_embeds (`torch.FloatTensor` of shape `(num_studies, projection_dim)`): embeddings of the studies.
        positive_embeds (`torch.FloatTensor` of shape `(num_positive_prompts, projection_dim)`): of its prompts.
        negative_embeds (`torch.FloatTensor` of shape `(num_negative_prompts, projection_dim)`): of the opposite ones.
        scale (`float`): factor of the cosines. It moves a threshold but no rank, so the AUROC does not depend on it.

    Returns:
        `torch.DoubleTensor` of shape `(num_studies,)`: 0 to 1; double, so that a large scale does not make ties.

    Raises:
        ValueError: a shape that does not fit, or `scale` not above 0.
    """
    if not scale > 0:
        raise ValueError(f"`scale` must be above 0, got {scale}.")
    for name, embeds in (("positive_embeds", positive_embeds), ("negative_embeds", negative_embeds)):
        if embeds.ndim != 2 or not len(embeds) or embeds.shape[-1] != image_embeds.shape[-1]:
            raise ValueError(
                f"`{name}` must have shape (num_prompts, {image_embeds.shape[-1]}) with at least one prompt, "
                f"got {tuple(embeds.shape)}."
            )
    sides = torch.stack([_ensemble(positive_embeds), _ensemble(negative_embeds)])
    cosines = F.normalize(image_embeds.double(), dim=-1) @ sides.T
    return (scale * cosines).softmax(dim=-1)[:, 0]


def _ensemble(prompt_embeds: torch.Tensor) -> torch.Tensor:
    return F.normalize(F.normalize(prompt_embeds.double(), dim=-1).mean(dim=0), dim=-1)


def prompt_scores(
    image_embeds: torch.Tensor, text_embeds: torch.Tensor, prompts: PromptSet
) -> dict[str, torch.Tensor]:
    """
    Score of every label of a prompt set for every study.

    Args:
        image_embeds (`torch.FloatTensor` of shape `(num_studies, projection_dim)`): embeddings of the studies.
        text_embeds (`torch.FloatTensor` of shape `(num_texts, projection_dim)`): of `prompts.texts`, in that order.
        prompts ([`eval.prompts.PromptSet`]): the prompts of every label.

    Returns:
        `dict` of `str` to `torch.DoubleTensor` of shape `(num_studies,)`: label to what [`zero_shot_scores`] returns.
    """
    of_text = dict(zip(prompts.texts, text_embeds, strict=True))
    scores = {}
    for label, pair in prompts.labels.items():
        sides = (torch.stack([of_text[text] for text in side]) for side in (pair.positive, pair.negative))
        scores[label] = zero_shot_scores(image_embeds, *sides)
    return scores


def zero_shot_metrics(
    scores: dict[str, Sequence[float]],
    labels: Sequence[Sequence[str]],
    bootstrap_samples: int = 1000,
    seed: int = 0,
    patients: Sequence[str] | None = None,
) -> dict[str, Any]:
    """
    AUROC of every label that has both a positive and a negative study, and their macro mean.

    Args:
        scores (`dict` of `str` to a sequence of `float`): label to one score per study.
        labels (sequence of `str` sequences or `None`): the labels of every study. A study with none was not labelled:
            it is left out, not taken as a negative of everything.
        bootstrap_samples, seed (`int`): of the 95 % intervals.
        patients (sequence of `str`, *optional*): the patient of every study, who is drawn as a whole for the
            intervals. By default studies are drawn.

    Returns:
        `dict`: `studies` and `unlabelled` (numbers of studies used and left out), `labels` (label to `auroc` with
        `value`, `chance`, `ci95`, `None` with too few patients, see [`eval.bootstrap.auroc_interval`]; and
        `positives`, `negatives`), `macro_auroc` (`value`, `chance`, `labels`) or `None`, `not_evaluated` (label to
        reason) and `bootstrap`.

    Raises:
        ValueError: no labelled study, a label with another number of scores, a score that is not finite, or patients
            of another number or without a name.
    """
    labels = [present or () for present in labels]
    check_labels(labels)
    labelled = np.flatnonzero([len(present) > 0 for present in labels])
    numbers = number_patients(patients, len(labels))[labelled]
    results, reasons = {}, _without_prompts(scores, labels)
    for label, values in scores.items():
        values = _checked(label, values, len(labels))[labelled]
        truth = np.array([label in labels[study] for study in labelled])
        if truth.all() or not truth.any():
            reasons[label] = f"every study of the split is {'positive' if truth.all() else 'negative'}"
        else:
            results[label] = _label_result(values, truth, numbers, bootstrap_samples, seed)
    return {
        "studies": int(labelled.size),
        "unlabelled": len(labels) - int(labelled.size),
        "labels": results,
        "macro_auroc": _macro([result["auroc"]["value"] for result in results.values()]),
        "not_evaluated": reasons,
        "bootstrap": describe_bootstrap(patients, numbers, bootstrap_samples, seed),
    }


def check_prompted(prompts: PromptSet, labels: Sequence[Sequence[str] | None]) -> None:
    """Raise a `ValueError` unless a study has a label that the prompts tell of."""
    check_labels(labels)
    present = sorted({label for study in labels for label in study or ()})
    if not prompts.labels.keys() & set(present):
        raise ValueError(f"`prompts` must have a label of the records, {present}, got {list(prompts.labels)}.")


def _without_prompts(scores: dict[str, Any], labels: Sequence[Sequence[str]]) -> dict[str, str]:
    present = sorted({label for study in labels for label in study})
    return {label: "the prompt set has no prompt for it" for label in present if label not in scores}


def _checked(label: str, scores: Sequence[float], num_studies: int) -> np.ndarray:
    scores = np.asarray(scores, dtype=np.float64)
    if scores.shape != (num_studies,) or not np.isfinite(scores).all():
        raise ValueError(
            f"`scores` of {label!r} must hold one finite score for each of the {num_studies} studies, "
            f"got shape {scores.shape} with {int((~np.isfinite(scores)).sum())} not finite."
        )
    return scores


def _label_result(
    scores: np.ndarray, truth: np.ndarray, patients: np.ndarray, bootstrap_samples: int, seed: int
) -> dict[str, Any]:
    interval = auroc_interval(scores, truth, bootstrap_samples, seed, patients)
    auroc = {"value": float(roc_auc_score(truth, scores)), "chance": CHANCE_AUROC, "ci95": interval}
    return {"auroc": auroc, "positives": int(truth.sum()), "negatives": int((~truth).sum())}


def _macro(values: list[float]) -> dict[str, Any] | None:
    if not values:
        return None
    return {"value": float(np.mean(values)), "chance": CHANCE_AUROC, "labels": len(values)}


def evaluate_zero_shot(
    model: Any,
    processor: Any,
    records: Any,
    prompts: PromptSet,
    options: RunOptions,
) -> dict[str, Any]:
    """
    Run the protocol on a split of study records.

    Args:
        model (`AltaModel`), processor (`AltaProcessor`): what encodes.
        records (`datasets.Dataset`): study records; `study_id`, `patient_id`, the views and `labels` are read.
        prompts ([`eval.prompts.PromptSet`]): the prompts of every label.
        options ([`eval.protocol.RunOptions`]): names, batch size and bootstrap.

    Returns:
        `dict`: the head of [`eval.protocol.describe_run`], `prompts` (`name`, `version`, `sha256`) and, under
        `results`, what [`zero_shot_metrics`] returns.

    Raises:
        ValueError: no study has a label, or none that has a prompt.
    """
    check_prompted(prompts, list(records["labels"]))
    patients = patients_of(records)
    text_embeds = embed_texts(model, processor, prompts.texts)
    scores = prompt_scores(embed_studies(model, processor, records, options.batch_size), text_embeds, prompts)
    run = describe_run(PROTOCOL, options, list(records["study_id"]), processor)
    prompt_set = {"name": prompts.name, "version": prompts.version, "sha256": prompts.sha256}
    results = zero_shot_metrics(scores, list(records["labels"]), patients=patients, **options.bootstrap)
    return run | {"prompts": prompt_set, "results": results}


def main(argv: list[str] | None = None) -> None:
    parser = protocol_parser("eval.zero_shot", "Zero-shot AUROC of prompt pairs on a split of study records.")
    parser.add_argument("--prompts", required=True, help="JSON file of prompts, such as eval/prompts/covid_cxr.json")
    args = parser.parse_args(argv)
    with argument_errors(parser):
        prompts = load_prompts(args.prompts)
        records = load_records(args.records, args.split)
        check_prompted(prompts, list(records["labels"]))
        patients_of(records)
        model, processor = load_model(args.model, args.device)
    results = evaluate_zero_shot(model, processor, records, prompts, RunOptions.from_arguments(args))
    write_json(results, args.output)


if __name__ == "__main__":
    main()


__all__ = ["check_prompted", "evaluate_zero_shot", "prompt_scores", "zero_shot_metrics", "zero_shot_scores"]
