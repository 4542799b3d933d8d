"""A model card from the metrics file of a run: every number in it is read from there, and what is absent says so."""

import argparse
import json
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData


TEMPLATE = Path(__file__).with_name("template.md")
KINDS = ("adapter", "full")
TAGS = ["alta", "chest-x-ray", "peft", "radiology"]
NOT_MEASURED = "not measured"
# The Hub's name of the metric, its field in the results, its title.
CLASSIFICATION_FIGURES = (
    ("roc_auc", "auroc", "AUROC"),
    ("average_precision", "average_precision", "average precision"),
)
DIRECTIONS = {"text_to_image": "text to image", "image_to_text": "image to text"}
PROTOCOLS = {
    "retrieval": "report_retrieval",
    "zero_shot": "zero_shot_prompt_pairs",
    "classification": "classification",
}
PROTOCOL_FIELDS = ("n", "protocol", "records", "results", "split")


def build_card(
    metrics: dict[str, Any],
    *,
    model_id: str = "alta",
    kind: str = "full",
    base_model: str | None = None,
    title: str | None = None,
    datasets: list[str] | None = None,
    license: str | None = None,
    data_terms: str | None = None,
    weights_terms: str | None = None,
) -> ModelCard:
    """
    Fill the card's template and metadata.

    Args:
        metrics (`dict`): any of `run`, `parameters`, `training`, `validation`, `retrieval`, `zero_shot`,
            `classification`, `records`, `overlap` and `preprocessing_sha256`; `retrieval`, `zero_shot` and
            `classification` as the commands of `eval` write them. With `classification`, or a `run` of the stage
            `classify`, the card is a classifier's.
        model_id (`str`): Hub id of the repository, for the snippets.
        kind (`str`): `"full"` for a full model, `"adapter"` for an adapter repository.
        base_model (`str`, *optional*): Hub id of the frozen base; an adapter needs it.
        title (`str`, *optional*): heading of the card, the name in `model_id` by default.
        datasets (`list` of `str`, *optional*): Hub ids of the training data.
        license (`str`, *optional*): the Hub's name of the weights' license, for the metadata, which else name none:
            the weights are bound by their base and their data, not by the license of the code.
        data_terms, weights_terms (`str`, *optional*): terms of the training data and of the weights, in a sentence.

    Returns:
        `huggingface_hub.ModelCard`: its `str` is the README, its `data` the metadata.

    Raises:
        ValueError: an unknown kind, an adapter without a base, a part of `metrics` of another form.
    """
    _check(metrics, kind, base_model)
    data = _card_data(metrics, model_id, kind, base_model=base_model, datasets=datasets, license=license)
    return ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        title=title or model_id.rsplit("/", 1)[-1],
        model_id=model_id,
        kind=kind,
        auto_class="AutoModelForImageClassification" if _is_classifier(metrics) else "AutoModel",
        is_classifier=_is_classifier(metrics),
        base_model=base_model,
        data_terms=data_terms or "Terms of the data: not stated.",
        weights_terms=weights_terms or "not stated; those of the base weights and of the training data bind them",
        **_tables(metrics),
    )


def _is_classifier(metrics: dict[str, Any]) -> bool:
    recipe = (metrics.get("run") or {}).get("recipe")
    return bool(metrics.get("classification")) or (isinstance(recipe, dict) and recipe.get("stage") == "classify")


def _card_data(metrics: dict[str, Any], model_id: str, kind: str, **metadata: Any) -> ModelCardData:
    eval_results = _retrieval_results(metrics) + _zero_shot_results(metrics) + _classification_results(metrics)
    return ModelCardData(
        base_model_relation="adapter" if kind == "adapter" else None,
        eval_results=eval_results or None,
        language="en",
        library_name="transformers",
        model_name=model_id if eval_results else None,
        pipeline_tag="image-classification" if _is_classifier(metrics) else "zero-shot-image-classification",
        tags=TAGS,
        **metadata,
    )


def _check(metrics: dict[str, Any], kind: str, base_model: str | None) -> None:
    if kind not in KINDS:
        raise ValueError(f"`kind` must be one of {list(KINDS)}, got {kind!r}.")
    if kind == "adapter" and not base_model:
        raise ValueError(f"`base_model` must name the frozen base of an adapter, got {base_model!r}.")
    if not isinstance(metrics, dict):
        raise ValueError(f"`metrics` must be an object, got {type(metrics).__name__}.")
    for name in ("run", "parameters", "training", "validation", "records", "overlap", *PROTOCOLS):
        if not isinstance(metrics.get(name) or {}, dict):
            raise ValueError(f"`{name}` of `metrics` must be an object, got {type(metrics[name]).__name__}.")
    for name in PROTOCOLS:
        missing = [field for field in PROTOCOL_FIELDS if metrics.get(name) and field not in metrics[name]]
        if missing:
            raise ValueError(
                f"`{name}` of `metrics` must hold {list(PROTOCOL_FIELDS)}, as `eval.{name}` writes them, got "
                f"{sorted(metrics[name])} without {missing}."
            )
        protocol = metrics[name]["protocol"]["name"] if metrics.get(name) else PROTOCOLS[name]
        if protocol != PROTOCOLS[name]:
            raise ValueError(f"`{name}` of `metrics` must be of the protocol {PROTOCOLS[name]!r}, got {protocol!r}.")
    _check_preprocessing(metrics)


def _check_preprocessing(metrics: dict[str, Any]) -> None:
    """Figures of one model: that of another run may see radiographs in another way."""
    parts = {"metrics": metrics} | {name: metrics[name] for name in PROTOCOLS if metrics.get(name)}
    hashes = {name: part["preprocessing_sha256"] for name, part in parts.items() if part.get("preprocessing_sha256")}
    if len(set(hashes.values())) > 1:
        raise ValueError(f"`preprocessing_sha256` must be the same in all parts of `metrics`, got {hashes}.")


def _tables(metrics: dict[str, Any]) -> dict[str, Any]:
    records = dict(metrics.get("records") or {})
    excluded = records.pop("excluded", None)
    return {
        "run": _rows(metrics.get("run")),
        "parameters": _rows(metrics.get("parameters")),
        "training": _rows(metrics.get("training")),
        "validation": _rows(metrics.get("validation")),
        "records": _rows(records),
        "overlap": _rows(_without_examples(metrics.get("overlap"))),
        "excluded": _rows(excluded),
        "preprocessing": metrics.get("preprocessing_sha256") or NOT_MEASURED,
        "retrieval": _retrieval_table(metrics),
        "zero_shot": _zero_shot_table(metrics),
        "classification": _classification_table(metrics),
    }


def _rows(values: dict[str, Any] | None) -> list[tuple[str, str]]:
    rows = []
    for name, value in (values or {}).items():
        if isinstance(value, dict):
            rows += [(f"{_cell(name)}: {inner}", text) for inner, text in _rows(value)]
        else:
            rows.append((_cell(name.replace("_", " ")), _value(name, value)))
    return rows


def _value(name: str, value: Any) -> str:
    if name == "seed":  # a name rather than an amount
        return str(value)
    return _share(value) if name.endswith("_share") else _cell(value)


def _without_examples(overlap: dict[str, Any] | None) -> dict[str, Any]:
    """The counts of `processing.overlap`: its examples name files and studies."""
    return {
        name: {inner: number for inner, number in value.items() if inner != "examples"}
        if isinstance(value, dict)
        else value
        for name, value in (overlap or {}).items()
    }


def _cell(value: Any) -> str:
    if value is None:
        return NOT_MEASURED
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_cell, value))
    return " ".join(str(value).split()).replace("|", "\\|")


def _share(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{100 * value:.2f} %"


def _figure(figure: dict[str, Any], digits: int = 3) -> tuple[str, str, str]:
    """Value, chance and interval of a figure."""
    value, chance, *bounds = (f"{number:.{digits}f}" for number in _numbers(figure))
    return value, chance, " to ".join(bounds) or "–"


def _numbers(figure: dict[str, Any]) -> list[float]:
    return [figure["value"], figure["chance"], *(figure.get("ci95") or ())]


def _where(run: dict[str, Any]) -> str:
    protocol = f"{run['protocol']['name']} {run['protocol']['version']}"
    studies = f"{run['n']} studies, SHA-256 of their ids `{run.get('study_ids_sha256', NOT_MEASURED)}`"
    source = f"model `{run.get('model', NOT_MEASURED)}`; records `{run['records']}`, split `{run['split']}`, {studies}"
    return f"Protocol {protocol}; {source}. {_drawn(run['results'].get('bootstrap', {}))}"


def _drawn(bootstrap: dict[str, Any]) -> str:
    """Whose resamples the intervals are of; what protocols before 1.1 wrote does not count them."""
    units = f", {bootstrap['units']} of them" if "units" in bootstrap else ""
    return f"Unit of the intervals: {bootstrap.get('unit', NOT_MEASURED)}{units}."


def _retrieval_table(metrics: dict[str, Any]) -> dict[str, Any] | None:
    run = metrics.get("retrieval")
    if not run:
        return None
    rows = [row for direction in DIRECTIONS for row in _direction_rows(direction, run["results"][direction])]
    counts = {name: run["results"][name] for name in ("distinct_reports", "studies")}
    return {"where": _where(run), "rows": rows} | counts


def _direction_rows(direction: str, results: dict[str, Any]) -> list[tuple[str, ...]]:
    counts = str(results["queries"]), str(results["candidates"])
    figures = {name: value for name, value in results.items() if isinstance(value, dict)}
    return [
        (DIRECTIONS[direction], _figure_name(name), *_figure(value, 1 if name == "median_rank" else 3), *counts)
        for name, value in figures.items()
    ]


def _figure_name(name: str) -> str:
    return name.replace("recall_at_", "R@").replace("_", " ")


def _zero_shot_table(metrics: dict[str, Any]) -> dict[str, Any] | None:
    run = metrics.get("zero_shot")
    if not run:
        return None
    prompts = f"{run['prompts']['name']} {run['prompts']['version']}"
    return _labels_table(run, ("auroc",)) | {"prompts": prompts}


def _classification_table(metrics: dict[str, Any]) -> dict[str, Any] | None:
    run = metrics.get("classification")
    return _labels_table(run, ("auroc", "average_precision")) if run else None


def _labels_table(run: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """The figures called `names` of every label, and their means."""
    results = run["results"]
    rows = [
        (_cell(label), *_figures(value, names), str(value["positives"]), str(value["negatives"]))
        for label, value in results["labels"].items()
    ]
    means = {name: results[f"macro_{name}"] for name in names}
    if all(means.values()):
        rows.append((f"mean (labels: {means[names[0]]['labels']})", *_figures(means, names), "–", "–"))
    return {
        "where": _where(run),
        "rows": rows,
        "studies": results["studies"],
        "unlabelled": results["unlabelled"],
        "not_evaluated": "; ".join(f"{_cell(label)} ({why})" for label, why in results["not_evaluated"].items()),
    }


def _figures(values: dict[str, Any], names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(text for name in names for text in _figure(values[name]))


def _retrieval_results(metrics: dict[str, Any]) -> list[EvalResult]:
    run = metrics.get("retrieval") or {"results": {}}
    return [
        _eval_result(run, "image-text-retrieval", name, f"{DIRECTIONS[direction]} {_figure_name(name)}", figure)
        for direction in DIRECTIONS
        for name, figure in run["results"].get(direction, {}).items()
        if isinstance(figure, dict)
    ]


def _zero_shot_results(metrics: dict[str, Any]) -> list[EvalResult]:
    run = metrics.get("zero_shot") or {"results": {}}
    figures = {f"AUROC {label}": value["auroc"] for label, value in run["results"].get("labels", {}).items()}
    if run["results"].get("macro_auroc"):
        figures["mean AUROC"] = run["results"]["macro_auroc"]
    task = "zero-shot-image-classification"
    return [_eval_result(run, task, "roc_auc", name, figure) for name, figure in figures.items()]


def _classification_results(metrics: dict[str, Any]) -> list[EvalResult]:
    run = metrics.get("classification") or {"results": {}}
    figures = [
        (kind, f"{title} {label}", value[name])
        for label, value in run["results"].get("labels", {}).items()
        for kind, name, title in CLASSIFICATION_FIGURES
    ]
    figures += [
        (kind, f"mean {title}", run["results"][f"macro_{name}"])
        for kind, name, title in CLASSIFICATION_FIGURES
        if run["results"].get(f"macro_{name}")
    ]
    return [_eval_result(run, "image-classification", kind, title, figure) for kind, title, figure in figures]


def _eval_result(
    run: dict[str, Any], task_type: str, metric_type: str, metric_name: str, figure: dict[str, Any]
) -> EvalResult:
    return EvalResult(
        task_type=task_type,
        dataset_type=run["records"],
        dataset_name=run["records"],
        dataset_split=run["split"],
        dataset_args={"n": run["n"], "study_ids_sha256": run.get("study_ids_sha256")},
        metric_type=metric_type,
        metric_name=metric_name,
        metric_value=figure["value"],
        metric_args={key: value for key, value in figure.items() if key != "value" and value is not None},
    )


def read_metrics(path: str | Path, name: str = "metrics") -> dict[str, Any]:
    """The metrics file of a run, or what a command of `eval` wrote, whose argument is `name`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: one that is not JSON.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"`{name}` must be a JSON file, got {path}, which is no file.")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"`{path}` must be JSON in UTF-8, got: {error}") from error


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m model_cards.card", description=__doc__)
    parser.add_argument("--metrics", required=True, help="metrics.json of a run")
    for name in PROTOCOLS:
        command = f"python -m eval.{name}"
        parser.add_argument(f"--{name.replace('_', '-')}", metavar="JSON", help=f"what `{command}` wrote of the model")
    parser.add_argument("--overlap", metavar="JSON", help="what `python -m processing.overlap` wrote of the records")
    parser.add_argument("--output", required=True, type=Path, help="README.md to write")
    parser.add_argument("--model-id", default="alta", help="Hub id of the repository")
    parser.add_argument("--kind", choices=KINDS, default="full", help="full model or adapter repository")
    parser.add_argument("--base", help="Hub id of the frozen base, needed with --kind adapter")
    parser.add_argument("--title", help="heading of the card")
    parser.add_argument("--dataset", action="append", help="Hub id of training data; may be given again")
    parser.add_argument("--license", help="the Hub's name of the weights' license (default: none is named)")
    parser.add_argument("--data-terms", help="terms of the training data, in a sentence")
    parser.add_argument("--weights-terms", help="terms of the weights, in a sentence")
    args = parser.parse_args(argv)
    names = ("model_id", "kind", "title", "license", "data_terms", "weights_terms")
    options = {name: getattr(args, name) for name in names}
    try:
        metrics = read_metrics(args.metrics)
        parts = ("overlap", *PROTOCOLS)
        metrics |= {name: read_metrics(path, name) for name in parts if (path := getattr(args, name))}
        card = build_card(metrics, base_model=args.base, datasets=args.dataset, **options)
        args.output.parent.mkdir(parents=True, exist_ok=True)
        card.save(args.output)
    except (OSError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()


__all__ = ["build_card", "read_metrics"]
