"""
Classification by a trained classifier: AUROC and average precision of every label of a split of study records, and
their macro means.
"""

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from sklearn.metrics import average_precision_score, roc_auc_score
from transformers import AutoModelForImageClassification, AutoProcessor

from eval.bootstrap import (
    auroc_interval,
    average_precision_interval,
    describe_bootstrap,
    number_patients,
)
from eval.embeddings import evaluating
from eval.protocol import (
    RunOptions,
    argument_errors,
    check_labels,
    describe_run,
    load_records,
    patients_of,
    protocol_parser,
    untrained_parameters,
    write_json,
)
from modeling_alta.configuration_alta import VIEW_NAMES
from processing.batches.label_batch import UNLABELLED_AS


PROTOCOL = {"name": "classification", "version": "1.1"}
CHANCE_AUROC = 0.5


@torch.no_grad()
def classify_studies(
    model: Any, processor: Any, studies: Iterable[dict[str, Any]], batch_size: int = 16
) -> torch.Tensor:
    """
    Probabilities of the labels of studies.

    Args:
        model (`AltaForImageClassification`): the classifier.
        processor (`AltaProcessor`): makes `pixel_values` and `view_mask` of a list of studies.
        studies (iterable of `dict`): view name to image or `None`; keys that are no view are ignored.
        batch_size (`int`): studies per forward pass.

    Returns:
        `torch.DoubleTensor` of shape `(num_studies, num_labels)`: on the CPU; the sigmoid of each logit, or for
        single-label classification their softmax. Double, so that sure scores do not make ties.

    Raises:
        ValueError: no study; what the processor says of a study without a current view.
    """
    is_single = model.config.problem_type == "single_label_classification"
    views = ({name: study[name] for name in VIEW_NAMES if study.get(name) is not None} for study in studies)
    logits = []
    with evaluating(model):
        while batch := list(islice(views, batch_size)):
            inputs = processor(images=batch, return_tensors="pt").to(model.device, model.dtype)
            logits.append(model(**inputs).logits.double().cpu())
    if not logits:
        raise ValueError("`studies` must hold at least one study, got none.")
    return torch.cat(logits).softmax(dim=-1) if is_single else torch.cat(logits).sigmoid()


def classification_metrics(
    scores: Any,
    names: Sequence[str],
    labels: Sequence[Sequence[str] | None],
    unlabelled: str = "left_out",
    bootstrap_samples: int = 1000,
    seed: int = 0,
    patients: Sequence[str] | None = None,
) -> dict[str, Any]:
    """
    AUROC and average precision of every label that has both a positive and a negative study, and their macro means.

    Args:
        scores (array of shape `(num_studies, num_labels)`): higher means that the label holds.
        names (sequence of `str`): the labels, in the order of the scores.
        labels (sequence of `str` sequences): the labels of every study.
        unlabelled (`str`): a study without any label was not labelled, `"left_out"`, or has none of the labels,
            `"negative"`; what was chosen in training, see [`processing.batches.label_batch.LabelledStudies`].
        bootstrap_samples, seed (`int`): of the 95 % intervals.
        patients (sequence of `str`, *optional*): the patient of every study, who is drawn as a whole for the
            intervals. By default studies are drawn.

    Returns:
        `dict`: `studies` and `unlabelled` (numbers of studies used and left out), `labels` (label to `auroc` and
        `average_precision`, each with `value`, `chance`, which of the average precision is the share of positives,
        and `ci95`, `None` with too few patients, see [`eval.bootstrap.auroc_interval`]; and `positives`, `negatives`),
        `macro_auroc` and `macro_average_precision` (`value`, `chance`, `labels`) or `None`, `not_evaluated` (label to
        reason) and `bootstrap`.

    Raises:
        ValueError: scores of another shape or not finite, no labelled study, an unknown `unlabelled`, patients of
            another number or without a name.
    """
    scores = _checked(scores, len(labels), len(names))
    truth, is_labelled = _truth(names, labels, unlabelled)
    numbers = number_patients(patients, len(labels))[is_labelled]
    scores, truth = scores[is_labelled], truth[is_labelled]
    results, reasons = {}, _without_output(names, labels)
    for name, values, positive in zip(names, scores.T, truth.T, strict=True):
        if positive.all() or not positive.any():
            reasons[name] = f"every study of the split is {'positive' if positive.all() else 'negative'}"
        else:
            results[name] = _label_result(values, positive, numbers, bootstrap_samples, seed)
    return {
        "studies": len(truth),
        "unlabelled": len(labels) - len(truth),
        "labels": results,
        "macro_auroc": _macro([result["auroc"] for result in results.values()]),
        "macro_average_precision": _macro([result["average_precision"] for result in results.values()]),
        "not_evaluated": reasons,
        "bootstrap": describe_bootstrap(patients, numbers, bootstrap_samples, seed),
    }


def _checked(scores: Any, num_studies: int, num_labels: int) -> np.ndarray:
    scores = np.asarray(scores, dtype=np.float64)
    if scores.shape != (num_studies, num_labels) or not np.isfinite(scores).all():
        raise ValueError(
            f"`scores` must hold a finite score of {num_labels} labels for each of {num_studies} studies, got shape "
            f"{scores.shape} with {int((~np.isfinite(scores)).sum())} not finite."
        )
    return scores


def _truth(
    names: Sequence[str], labels: Sequence[Sequence[str] | None], unlabelled: str
) -> tuple[np.ndarray, np.ndarray]:
    """Whether each label holds `(num_studies, num_labels)`, and whether each study counts `(num_studies,)`."""
    if unlabelled not in UNLABELLED_AS:
        raise ValueError(f"`unlabelled` must be one of {list(UNLABELLED_AS)}, got {unlabelled!r}.")
    _check_labelled(labels, unlabelled)
    is_labelled = np.array([bool(present) or unlabelled == "negative" for present in labels], dtype=bool)
    return np.array([[name in (present or ()) for name in names] for present in labels]), is_labelled


def _check_labelled(labels: Sequence[Sequence[str] | None], unlabelled: str) -> None:
    if unlabelled == "left_out" or not len(labels):
        check_labels(labels)


def _without_output(names: Sequence[str], labels: Sequence[Sequence[str] | None]) -> dict[str, str]:
    present = sorted({label for study in labels for label in study or ()})
    return {label: "the model has no output for it" for label in present if label not in names}


def _label_result(
    scores: np.ndarray, truth: np.ndarray, patients: np.ndarray, bootstrap_samples: int, seed: int
) -> dict[str, Any]:
    return {
        "auroc": {
            "value": float(roc_auc_score(truth, scores)),
            "chance": CHANCE_AUROC,
            "ci95": auroc_interval(scores, truth, bootstrap_samples, seed, patients),
        },
        "average_precision": {
            "value": float(average_precision_score(truth, scores)),
            "chance": float(truth.mean()),
            "ci95": average_precision_interval(scores, truth, bootstrap_samples, seed, patients),
        },
        "positives": int(truth.sum()),
        "negatives": int((~truth).sum()),
    }


def _macro(figures: list[dict[str, Any]]) -> dict[str, Any] | None:
    if not figures:
        return None
    means = {key: float(np.mean([figure[key] for figure in figures])) for key in ("value", "chance")}
    return means | {"labels": len(figures)}


def evaluate_classification(
    model: Any,
    processor: Any,
    records: Any,
    options: RunOptions,
    unlabelled: str = "left_out",
) -> dict[str, Any]:
    """
    Run the protocol on a split of study records.

    Args:
        model (`AltaForImageClassification`), processor (`AltaProcessor`): what classifies.
        records (`datasets.Dataset`): study records; `study_id`, `patient_id`, the views and `labels` are read.
        options ([`eval.protocol.RunOptions`]): names, batch size and bootstrap.
        unlabelled (`str`): see [`classification_metrics`].

    Returns:
        `dict`: the head of [`eval.protocol.describe_run`] and, under `results`, what [`classification_metrics`]
        returns.
    """
    _check_labelled(list(records["labels"]), unlabelled)
    patients = patients_of(records)
    scores = classify_studies(model, processor, records, options.batch_size)
    names = [model.config.id2label[index] for index in range(model.config.num_labels)]
    run = describe_run(PROTOCOL, options, list(records["study_id"]), processor)
    labels = list(records["labels"])
    results = classification_metrics(scores, names, labels, unlabelled, patients=patients, **options.bootstrap)
    return run | {"results": results}


def load_classifier(name: str, device: str = "cpu") -> tuple[Any, Any]:
    """The classifier of a Hub folder or id, full or adapter, in evaluation mode on `device`, and its processor.

    Raises:
        ValueError: a folder or id of no model, or of a model without a classifier.
    """
    try:
        model, info = AutoModelForImageClassification.from_pretrained(name, output_loading_info=True)
        processor = AutoProcessor.from_pretrained(name)
    except (OSError, RuntimeError, ValueError) as error:  # a RuntimeError: an adapter over a base of other labels
        raise ValueError(f"`model` must be a Hub folder or a Hub id of a classifier, got {name!r}: {error}") from error
    # Of an adapter that aligns a base with reports nothing is missing, but its text tower is left over.
    missing, left_over = untrained_parameters(model, info), sorted(info["unexpected_keys"])
    if missing or left_over:
        raise ValueError(
            f"`model` must be a trained classifier, got {name!r} without {missing[:2]} and with {left_over[:2]}."
        )
    return model.to(device).eval(), processor


def main(argv: list[str] | None = None) -> None:
    parser = protocol_parser("eval.classification", "AUROC and average precision of a classifier on study records.")
    meaning = "what a study without labels is (default: left_out)"
    parser.add_argument("--unlabelled", choices=UNLABELLED_AS, default="left_out", help=meaning)
    args = parser.parse_args(argv)
    with argument_errors(parser):
        records = load_records(args.records, args.split)
        _check_labelled(list(records["labels"]), args.unlabelled)
        patients_of(records)
        model, processor = load_classifier(args.model, args.device)
    options = RunOptions.from_arguments(args)
    results = evaluate_classification(model, processor, records, options, args.unlabelled)
    write_json(results, args.output)


if __name__ == "__main__":
    main()


__all__ = ["classification_metrics", "classify_studies", "evaluate_classification", "load_classifier"]
