"""What `evidence.run` wrote → RESULTS.md: `python -m evidence.report`.

The words stand in `results_template.md.jinja`; every figure comes from the JSON files.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import jinja2

from evidence.arms import ARMS, FAMILIES
from evidence.measures import RECALLS
from evidence.run import SWEEP, WORK


__all__ = ["compare", "main", "render", "summarize"]

TEMPLATE = Path(__file__).with_name("results_template.md.jinja")
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


def render(work: Path, sweep: Path) -> str:
    """The page, of `phantom.json` in `work`, `reasons.json` and `covid_cxr.json` if they are there, and the sweep."""
    paths = {name: work / f"{name}.json" for name in ("phantom", "reasons", "covid_cxr")}
    found = {name: read(path) for name, path in paths.items() if path.is_file()}
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters["spread"] = lambda value: f"{value[0]:.1f} ± {value[1]:.1f}"
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        phantom=summarize(found["phantom"]),
        claims=claims(found["phantom"]),
        learnt_by_heart=learnt_by_heart(found["phantom"]),
        against_method=against(found["phantom"], "adapters"),
        reasons=summarize(found["reasons"]) if "reasons" in found else None,
        against_full=against(found["reasons"], "full") if "reasons" in found else None,
        learnt_of_reasons=learnt_by_heart(found["reasons"]) if "reasons" in found else None,
        covid=summarize(found["covid_cxr"]) if "covid_cxr" in found else None,
        sweep=read(sweep) if sweep.is_file() else None,
        families=FAMILIES,
        fmean=fmean,
        arms=ARMS,
        recalls=RECALLS,
    )


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=WORK, help="folder of the results (default: %(default)s)")
    parser.add_argument("--sweep", type=Path, default=SWEEP, help="file of the sweep (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="file to write (default: %(default)s)")
    args = parser.parse_args(argv)
    if not (args.work / "phantom.json").is_file():
        parser.error(f"`--work` must hold phantom.json, which `python -m evidence.run` writes, got {args.work}.")
    args.output.write_text(render(args.work, args.sweep).rstrip() + "\n", encoding="utf-8")
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
