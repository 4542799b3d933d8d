"""
Report retrieval: the report of a study, and the study of a report, by cosine similarity.

Identical reports are one answer: they are merged into one text before ranking, any study of that text is right, and
the number of distinct reports is given beside the number of studies.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from eval.bootstrap import describe_bootstrap, number_patients, share_interval
from eval.embeddings import embed_studies, embed_texts
from eval.protocol import (
    RunOptions,
    argument_errors,
    describe_run,
    load_model,
    load_records,
    patients_of,
    protocol_parser,
    write_json,
)
from eval.recall_at_k.recall_at_k import chance_median_rank, chance_recall, check_cutoffs, pair_ranks


PROTOCOL = {"name": "report_retrieval", "version": "1.1"}
CUTOFFS = (1, 5, 10)
QUERIES_PER_CHUNK = 1024


def retrieval_metrics(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    reports: Sequence[str],
    k: Sequence[int] = CUTOFFS,
    bootstrap_samples: int = 1000,
    seed: int = 0,
    patients: Sequence[str] | None = None,
) -> dict[str, Any]:
    """
    Recall@K and median rank in both directions, each beside the level of a random ranking.

    Args:
        image_embeds (`torch.FloatTensor` of shape `(num_studies, projection_dim)`): one embedding per study.
        text_embeds (`torch.FloatTensor` of shape `(num_studies, projection_dim)`): one embedding per report.
        reports (sequence of `str`): the reports; those that differ in white space only are identical.
        k (sequence of `int`): the cut-offs.
        bootstrap_samples, seed (`int`): of the 95 % intervals.
        patients (sequence of `str`, *optional*): the patient of every study, who is drawn as a whole for the
            intervals; a report of several studies is of the patient of the first. By default studies are drawn.

    Returns:
        `dict`: `studies`, `distinct_reports`, `bootstrap`, and `text_to_image` and `image_to_text`, each with
        `queries`, `candidates`, `recall_at_<k>` (`value`, `chance`, `ci95`, see [`eval.bootstrap.share_interval`]) and
        `median_rank` (`value`, `chance`).

    Raises:
        ValueError: shapes or lengths that do not fit, an embedding that is not finite, a bad cut-off, an empty report,
            patients of another number or without a name.
    """
    check_cutoffs(k)
    check_reports(reports)
    _check_embeds(image_embeds, text_embeds, reports)
    studies_of = _group_identical(reports)
    first = [studies[0] for studies in studies_of]
    text_of = {study: text for text, studies in enumerate(studies_of) for study in studies}
    images, texts = _unit(image_embeds), _unit(text_embeds)[first]
    numbers = number_patients(patients, len(reports))
    options = {"k": k, "bootstrap_samples": bootstrap_samples, "seed": seed}
    text_of_study = [[text_of[study]] for study in range(len(reports))]
    return {
        "studies": len(reports),
        "distinct_reports": len(studies_of),
        "bootstrap": describe_bootstrap(patients, numbers, bootstrap_samples, seed),
        "text_to_image": _direction(texts, images, studies_of, numbers[first], **options),
        "image_to_text": _direction(images, texts, text_of_study, numbers, **options),
    }


def check_reports(reports: Sequence[str | None]) -> None:
    """Raise a `ValueError` unless every report holds text: empty ones would all be right answers to each other."""
    empty = [study for study, report in enumerate(reports) if not (report or "").strip()]
    if empty:
        raise ValueError(
            f"`reports` must hold text for every study, got {len(empty)} of {len(reports)} empty, the first at "
            f"{empty[0]}."
        )


def _check_embeds(image_embeds: torch.Tensor, text_embeds: torch.Tensor, reports: Sequence[str]) -> None:
    for name, embeds in (("image_embeds", image_embeds), ("text_embeds", text_embeds)):
        if embeds.ndim != 2 or len(embeds) != len(reports) or not len(reports):
            raise ValueError(
                f"`{name}` must have shape ({len(reports)}, projection_dim), one row per report and at least one, "
                f"got {tuple(embeds.shape)}."
            )
        if not torch.isfinite(embeds).all():
            raise ValueError(
                f"`{name}` must be finite, got {int((~torch.isfinite(embeds)).sum())} values that are not."
            )
    if image_embeds.shape != text_embeds.shape:
        raise ValueError(
            f"`text_embeds` must have the shape of `image_embeds` {tuple(image_embeds.shape)}, "
            f"got {tuple(text_embeds.shape)}."
        )


def _group_identical(reports: Sequence[str]) -> list[list[int]]:
    groups: dict[str, list[int]] = {}
    for study, report in enumerate(reports):
        groups.setdefault(" ".join(report.split()), []).append(study)
    return list(groups.values())


def _unit(embeds: torch.Tensor) -> torch.Tensor:
    return F.normalize(embeds.detach().cpu().double(), dim=-1)


def _direction(
    queries: torch.Tensor,
    candidates: torch.Tensor,
    right: list[list[int]],
    patients: np.ndarray,
    k: Sequence[int],
    bootstrap_samples: int,
    seed: int,
) -> dict[str, Any]:
    ranks = _ranks(queries, candidates, right)
    sizes = [len(indices) for indices in right], [len(candidates)] * len(right)
    results = {"queries": len(queries), "candidates": len(candidates)}
    for cutoff in k:
        hits = ranks <= cutoff
        results[f"recall_at_{cutoff}"] = {
            "value": float(hits.mean()),
            "chance": chance_recall(*sizes, cutoff),
            "ci95": share_interval(hits, bootstrap_samples, seed, patients),
        }
    return results | {"median_rank": {"value": float(np.median(ranks)), "chance": chance_median_rank(*sizes)}}


def _ranks(queries: torch.Tensor, candidates: torch.Tensor, right: list[list[int]]) -> np.ndarray:
    ranks = []
    for start in range(0, len(queries), QUERIES_PER_CHUNK):
        chunk = slice(start, start + QUERIES_PER_CHUNK)
        # Rounded, so that what differs by float32 noise alone is a tie: a collapsed model must not rank well by luck.
        scores = (queries[chunk] @ candidates.T).numpy().round(6)
        ranks.append(pair_ranks(scores, right[chunk]))
    return np.concatenate(ranks)


def evaluate_retrieval(
    model: Any,
    processor: Any,
    records: Any,
    options: RunOptions,
) -> dict[str, Any]:
    """
    Run the protocol on a split of study records.

    Args:
        model (`AltaModel`), processor (`AltaProcessor`): what encodes.
        records (`datasets.Dataset`): study records; `study_id`, `patient_id`, the views and `report` are read.
        options ([`eval.protocol.RunOptions`]): names, batch size and bootstrap.

    Returns:
        `dict`: the head of [`eval.protocol.describe_run`] and, under `results`, what [`retrieval_metrics`] returns.

    Raises:
        ValueError: a study without a report.
    """
    reports = list(records["report"])
    check_reports(reports)
    patients = patients_of(records)
    image_embeds = embed_studies(model, processor, records, options.batch_size)
    text_embeds = embed_texts(model, processor, reports)
    run = describe_run(PROTOCOL, options, list(records["study_id"]), processor)
    results = retrieval_metrics(image_embeds, text_embeds, reports, patients=patients, **options.bootstrap)
    return run | {"results": results}


def main(argv: list[str] | None = None) -> None:
    parser = protocol_parser("eval.retrieval", "Report retrieval in both directions on a split of study records.")
    args = parser.parse_args(argv)
    with argument_errors(parser):
        records = load_records(args.records, args.split)
        check_reports(list(records["report"]))
        patients_of(records)
        model, processor = load_model(args.model, args.device)
    write_json(evaluate_retrieval(model, processor, records, RunOptions.from_arguments(args)), args.output)


if __name__ == "__main__":
    main()


__all__ = ["check_reports", "evaluate_retrieval", "retrieval_metrics"]
