"""What `evidence.run` wrote → RESULTS.md and `evidence/reasons.md`: `python -m evidence.report`.

The words stand in `results_template.md.jinja` and `reasons_template.md.jinja`; every figure comes from the JSON files.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import jinja2

from eval.protocol import argument_errors
from evidence.arms import ARMS, FAMILIES
from evidence.measures import RECALLS
from evidence.run import RESULTS


__all__ = ["compare", "main", "render_reasons", "render_results", "summarize"]

OUTPUT = Path("RESULTS.md")
MARGIN = 5.0  # points of R@1 that four views are to be ahead
TRAINABLE_LIMIT = 0.10
MIN_SEEDS = 3  # fewer decide nothing


def summarize(results: dict[str, Any]) -> dict[str, Any]:
    """
    Means and standard deviations over the seeds.

    Args:
        results (`dict`): what `run_experiment` returned.

    Returns:
        `dict`: `arms` (arm → `title`, `share`, `seconds`, `steps`, `learning_rate`, every figure, and `auroc` by
        label), `chance`, `labels`, `candidates`, `groups`, `minutes` and `workers`.
    """
    arms = {name: [run for run in results["runs"] if run["arm"] == name] for name in ARMS}
    figures = [run["figures"] for run in results["runs"]]
    # Those that every seed's candidates have with and without.
    labels = sorted(set.intersection(*(set(figure["auroc"]) for figure in figures)))
    arms = {name: _summarize_arm(name, runs, labels) for name, runs in arms.items() if runs}
    return {
        "arms": arms,
        "chance": {name: percent([figure[name]["chance"] for figure in figures])[0] for name in RECALLS},
        "labels": labels,
        "candidates": sorted({figure["candidates"] for figure in figures}),
        "groups": max(figure["groups"] for figure in figures),
        "minutes": results["seconds"] / 60,
        "workers": results["workers"],
        "prepared_seconds": mean_std([prepared["seconds"] for prepared in results["prepared"].values()]),
        "settings": results["settings"],
        "seeds": sorted({run["seed"] for run in results["runs"]}),
        "training_studies": [
            prepared["records"]["splits"]["train"]["records"] for prepared in results["prepared"].values()
        ],
    }


def _summarize_arm(name: str, runs: list[dict[str, Any]], labels: list[str]) -> dict[str, Any]:
    def over_seeds(read: Callable[[dict[str, Any]], float]) -> list[float]:
        return [read(run["figures"]) for run in runs]

    return {
        "title": ARMS[name].title,
        "share": runs[0]["parameters"]["trainable_share"],
        "seconds": fmean(run["training"]["cpu_seconds"] for run in runs),
        "steps": runs[0]["training"]["steps"],
        "learning_rate": runs[0]["learning_rate"],
        **{recall: percent(over_seeds(lambda figures, recall=recall: figures[recall]["value"])) for recall in RECALLS},
        "macro_auroc": percent(over_seeds(lambda figures: figures["macro_auroc"]["value"])),
        "auroc": {
            label: percent(over_seeds(lambda figures, label=label: figures["auroc"][label]["value"]))
            for label in labels
        },
    }


def compare(results: dict[str, Any], better: str, other: str, figure: str) -> dict[str, Any]:
    """
    One arm against another on the same seeds.

    Args:
        results (`dict`): what `run_experiment` returned.
        better, other (`str`): arms.
        figure (`str`): one of the four recalls.

    Returns:
        `dict`: `mean` and `std` of the difference in points, and the `differences` by seed.
    """
    values = {(run["arm"], run["seed"]): 100 * run["figures"][figure]["value"] for run in results["runs"]}
    seeds = sorted({run["seed"] for run in results["runs"]})
    differences = [values[better, seed] - values[other, seed] for seed in seeds]
    mean, std = mean_std(differences)
    return {"mean": mean, "std": std, "differences": differences}


def claims(results: dict[str, Any]) -> dict[str, Any]:
    """The two claims of the paper, each with its figures and whether it holds here."""
    directions = ("text_to_image_1", "image_to_text_1")
    against_full = {name: compare(results, "adapters", "full", name) for name in directions}
    against_frontal = {name: compare(results, "adapters", "frontal", name) for name in directions}
    share = next(run["parameters"]["trainable_share"] for run in results["runs"] if run["arm"] == "adapters")
    seeds = {run["seed"] for run in results["runs"]}
    return {
        "is_decided": len(seeds) >= MIN_SEEDS,
        "full": against_full,
        "frontal": against_frontal,
        "share": share,
        "full_holds": all(found["mean"] + found["std"] >= 0 for found in against_full.values()),
        "share_holds": share <= TRAINABLE_LIMIT,
        "frontal_holds": all(found["mean"] >= MARGIN for found in against_frontal.values()),
    }


def against(results: dict[str, Any], one: str) -> dict[str, dict[str, Any]]:
    """What every other arm has more than one, on the same seeds: arm → recall → what `compare` gives."""
    others = [name for name in ARMS if name != one and any(run["arm"] == name for run in results["runs"])]
    return {name: {recall: compare(results, name, one, recall) for recall in RECALLS} for name in others}


def learnt_by_heart(results: dict[str, Any]) -> dict[str, dict[str, tuple[float, float]]]:
    """Arm → recall → mean and deviation of what studies that were trained on have more than unseen ones, in points."""
    return {
        name: {
            recall: percent([run["seen"][recall]["value"] - run["figures"][recall]["value"] for run in runs])
            for recall in RECALLS
        }
        for name in ARMS
        if (runs := [run for run in results["runs"] if run["arm"] == name])
    }


def mean_std(values: list[float]) -> tuple[float, float]:
    """Mean and sample standard deviation, 0 of a single value."""
    return fmean(values), stdev(values) if len(values) > 1 else 0.0


def percent(values: list[float]) -> tuple[float, float]:
    """Mean and standard deviation in points."""
    return mean_std([100 * value for value in values])


def render_results(folder: Path) -> str:
    """RESULTS.md, of `phantom.json` and, if they are there, `covid_cxr.json` and `sweep.json` in `folder`."""
    phantom, covid, sweep = (read(folder / name) for name in ("phantom.json", "covid_cxr.json", "sweep.json"))
    _check_arms("phantom.json", phantom, ("adapters", "full", "frontal"))
    return _render(
        "results_template.md.jinja",
        phantom=summarize(phantom),
        claims=claims(phantom),
        learnt_by_heart=learnt_by_heart(phantom),
        against_method=against(phantom, "adapters"),
        covid=summarize(covid) if covid else None,
        sweep=sweep,
    )


def render_reasons(folder: Path) -> str:
    """`reasons.md`, of `reasons.json` and, if it is there, `reasons_longer.json` in `folder`."""
    usual, longer = (read(folder / name) for name in ("reasons.json", "reasons_longer.json"))
    _check_arms("reasons.json", usual, ("full",))
    if longer:
        _check_arms("reasons_longer.json", longer, ("full",))
    return _render(
        "reasons_template.md.jinja",
        usual=summarize(usual),
        against_full=against(usual, "full"),
        learnt_by_heart=learnt_by_heart(usual),
        longer=summarize(longer) if longer else None,
        longer_against_full=against(longer, "full") if longer else None,
    )


def _check_arms(name: str, results: dict[str, Any], needed: tuple[str, ...]) -> None:
    arms = {run["arm"] for run in results["runs"]}
    if missing := [arm for arm in needed if arm not in arms]:
        raise ValueError(f"`{name}` must hold the arms {list(needed)}, got none of {missing}. Run them together.")


def _render(name: str, **values: Any) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["spread"] = lambda value: f"{value[0]:.1f} ± {value[1]:.1f}"
    environment.globals |= {"families": FAMILIES, "fmean": fmean, "arms": ARMS, "recalls": RECALLS}
    return environment.get_template(name).render(values).rstrip() + "\n"


def read(path: Path) -> Any:
    """What a JSON file holds, `None` if it is not there."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    meaning = "folder of the JSON, and of the page of the reasons (default: %(default)s)"
    parser.add_argument("--results", type=Path, default=RESULTS, help=meaning)
    parser.add_argument("--output", type=Path, default=OUTPUT, help="file of the results (default: %(default)s)")
    args = parser.parse_args(argv)
    pages = {}
    with argument_errors(parser):
        if (args.results / "phantom.json").is_file():
            pages[args.output] = render_results(args.results)
        if (args.results / "reasons.json").is_file():
            pages[args.results / "reasons.md"] = render_reasons(args.results)
    if not pages:
        parser.error(
            "`--results` must hold phantom.json or reasons.json, which `python -m evidence.run` writes, got "
            f"{args.results}."
        )
    for path, page in pages.items():
        path.write_text(page, encoding="utf-8")
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
