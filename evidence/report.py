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
from scipy.stats import t

from eval.protocol import argument_errors
from evidence.arms import ARMS, FAMILIES
from evidence.measures import RECALLS
from evidence.run import RESULTS


__all__ = ["compare", "main", "render_reasons", "render_results", "summarize"]

OUTPUT = Path("RESULTS.md")
DIRECTIONS = ("text_to_image_1", "image_to_text_1")
# Arm → points of R@1 that the method is to be ahead of it; the paper has more than 4 over the best CLIP-style method.
MARGINS = {"full": 0.0, "clip": 4.0, "frontal": 5.0}
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
        `dict`: `mean` and `std` of the difference in points, the `differences` by seed, and `interval`: the 95 % one
            of their mean by Student's t, `None` of a single seed.
    """
    values = {(run["arm"], run["seed"]): 100 * run["figures"][figure]["value"] for run in results["runs"]}
    seeds = sorted({run["seed"] for run in results["runs"]})
    differences = [values[better, seed] - values[other, seed] for seed in seeds]
    mean, std = mean_std(differences)
    return {"mean": mean, "std": std, "differences": differences, "interval": _t_interval(differences)}


def _t_interval(values: list[float]) -> tuple[float, float] | None:
    if len(values) < 2:
        return None
    mean, std = mean_std(values)
    reach = float(t.ppf(0.975, len(values) - 1)) * std / len(values) ** 0.5
    return mean - reach, mean + reach


def claims(results: dict[str, Any]) -> dict[str, Any]:
    """The claims of the paper that can be asked here: `share`, and arm → its `margin` in points of R@1, `found` by
    direction what [`compare`] gives of the method against it, and the `verdict`."""
    share = next(run["parameters"]["trainable_share"] for run in results["runs"] if run["arm"] == "adapters")
    present = {run["arm"] for run in results["runs"]}
    against_arms = {}
    for arm, margin in MARGINS.items():
        if arm in present:
            found = {name: compare(results, "adapters", arm, name) for name in DIRECTIONS}
            against_arms[arm] = {"margin": margin, "found": found, "verdict": verdict_of(found, margin)}
    return {"share": share, "share_holds": share <= TRAINABLE_LIMIT, "against": against_arms}


def verdict_of(found: dict[str, dict[str, Any]], margin: float) -> str:
    """
    Whether the method is ahead by a margin, in every direction.

    Args:
        found (`dict`): direction → what [`compare`] gives.
        margin (`float`): in points.

    Returns:
        `str`: `"holds"` if every interval lies at or above the margin, `"does not hold"` if one lies below it, else,
            and of fewer than `MIN_SEEDS` seeds, `"not decided"`.
    """
    if any(len(one["differences"]) < MIN_SEEDS for one in found.values()):
        return "not decided: too few seeds"
    if any(one["interval"][1] < margin for one in found.values()):
        return "does not hold"
    return "holds" if all(one["interval"][0] >= margin for one in found.values()) else "not decided"


def repeats(sweep: dict[str, Any] | None, reasons: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    """What both ran: arm → `rate`, and the mean recall of every seed, in points, in the `sweep` and the `reasons`."""
    found: dict[str, dict[str, Any]] = {}
    for run in (reasons or {"runs": []})["runs"]:
        arm, rate = run["arm"], str(run["learning_rate"])
        family = next((name for name, one in FAMILIES.items() if one == arm), None)
        of_sweep = (sweep or {"rates": {}})["rates"].get(family, {}).get(rate)
        if of_sweep and run["seed"] in sweep["seeds"]:
            row = found.setdefault(arm, {"rate": rate, "sweep": [], "reasons": []})
            row["sweep"].append(100 * of_sweep[sweep["seeds"].index(run["seed"])])
            row["reasons"].append(100 * fmean(run["figures"][name]["value"] for name in RECALLS))
    return found


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
        repeats=repeats(sweep, read(folder / "reasons.json")),
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
