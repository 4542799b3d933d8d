"""Run the experiment: `make evidence`, or

    python -m evidence.run --sweep                       # the learning rates, on seeds and a split of their own
    python -m evidence.run                               # PhantomCXR
    python -m evidence.run --corpus covid_cxr --covid-root ../shared/data/covid_cxr
    python -m evidence.run --reasons                     # what keeps adapters from full fine-tuning, on the sweep's
    python -m evidence.run --reasons --pretraining 3     # the same over towers pretrained three times as long
    python -m evidence.report                            # the pages from what these wrote

Every job, a seed's preparation or one arm, runs alone on one thread of one of two worker processes. Results are kept
in `evidence/*.json`, part of the repository; those of a part of the experiment, by `--arms`, `--seeds` or `--quick`,
go to `runs/evidence`.
"""

import argparse
import multiprocessing
import os
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from eval.protocol import positive_int, write_json
from evidence.arms import ARMS, COVID_ARMS, FAMILIES, LONGER_ARMS, PHANTOM_ARMS, REASON_ARMS, Arm
from evidence.jobs import CORPORA, prepare_seed, read_prepared, run_arm
from evidence.measures import RECALLS
from evidence.settings import QUICK, STANDARD, Settings


__all__ = ["main", "run_experiment", "run_sweep"]

WORK = Path("runs/evidence")
RESULTS = Path("evidence")
Job = tuple[Any, ...]  # a function and its arguments


def run_experiment(
    corpus: str,
    arms: Iterable[str],
    settings: Settings,
    work: Path,
    covid_root: Path | None = None,
    workers: int = 2,
    on_validation: bool = False,
    reuse: bool = False,
) -> dict[str, Any]:
    """
    Prepare every seed and train every arm on it.

    Args:
        corpus (`str`): a key of `CORPORA`.
        arms (iterable of `str`): keys of `ARMS`.
        settings ([`Settings`]).
        work (`Path`): folder for what the arms of a seed share.
        covid_root (`Path`, *optional*): folder of the COVID-19 collection.
        workers (`int`): processes.
        on_validation (`bool`): take `settings.validation_seeds`, and that split as the unseen studies.
        reuse (`bool`): take the seeds that an earlier run prepared in `work` with the same settings.

    Returns:
        `dict`: `corpus`, `settings`, `workers`, `seconds`, `prepared` (seed → what it took) and `runs`.
    """
    start = time.monotonic()
    seeds = settings.validation_seeds if on_validation else settings.seeds
    rates = {arm: learning_rate_of(ARMS[arm], settings) for arm in arms}
    plan = [
        (
            (prepare_seed, corpus, seed, settings, work, covid_root, reuse),
            [(run_arm, corpus, seed, arm, settings, work, rate, on_validation) for arm, rate in rates.items()],
        )
        for seed in seeds
    ]
    runs = [result for job, result in _run_jobs(plan, workers) if job[0] is run_arm]
    return {
        "corpus": corpus,
        "settings": asdict(settings),
        "workers": workers,
        "seconds": time.monotonic() - start,
        "prepared": {seed: read_prepared(work, corpus, seed) for seed in seeds},
        "runs": sorted(runs, key=lambda run: (run["seed"], list(ARMS).index(run["arm"]))),
    }


def learning_rate_of(arm: Arm, settings: Settings) -> float:
    """The arm's own, else that of its family."""
    return arm.learning_rate or settings.learning_rates[arm.family]


def run_sweep(settings: Settings, work: Path, workers: int = 2, reuse: bool = False) -> dict[str, Any]:
    """
    Every learning rate of `settings.sweep`, on the validation split of `settings.validation_seeds`.

    Returns:
        `dict`: `seeds`, `seconds`, `steps` and `rates`: family → rate → the mean of the four recalls of every seed.
    """
    start, seeds = time.monotonic(), settings.validation_seeds
    tried = [(FAMILIES[family], rate) for family, rates in settings.sweep.items() for rate in rates]
    plan = [
        (
            (prepare_seed, "phantom", seed, settings, work, None, reuse),
            [(run_arm, "phantom", seed, arm, settings, work, rate, True) for arm, rate in tried],
        )
        for seed in seeds
    ]
    found = {
        (run["arm"], run["learning_rate"], run["seed"]): fmean(run["figures"][name]["value"] for name in RECALLS)
        for job, run in _run_jobs(plan, workers)
        if job[0] is run_arm
    }
    rates = {
        family: {str(rate): [found[FAMILIES[family], rate, seed] for seed in seeds] for rate in rates}
        for family, rates in settings.sweep.items()
    }
    return {"seeds": list(seeds), "seconds": time.monotonic() - start, "steps": settings.steps, "rates": rates}


def _run_jobs(plan: list[tuple[Job, list[Job]]], workers: int) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Run the first job of every pair, and after it those that follow it; give each with its result as it ends."""
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as pool:
        running: dict[Future, tuple[Job, list[Job]]] = {pool.submit(*job): (job, after) for job, after in plan}
        try:
            while running:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    (job, after), result = running.pop(future), future.result()
                    running |= {pool.submit(*next_job): (next_job, []) for next_job in after}
                    print(f"{_describe(job)}: {len(running)} jobs left", flush=True)
                    yield job, result
        finally:  # after an error, not the hours of those that wait
            pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    torch.set_num_threads(1)


def _describe(job: Job) -> str:
    function, corpus, seed, *rest = job
    if function is prepare_seed:
        return f"{corpus}, seed {seed}: prepared"
    return f"{corpus}, seed {seed}: {rest[0]} at {rest[3]:g}"


def main(argv: list[str] | None = None) -> None:
    args = _parse(argv)
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore"}
    os.environ |= {"HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}
    multiprocessing.get_context("forkserver").set_forkserver_preload([run_arm.__module__])
    settings, work = _settings(args), args.work
    output = _output(args)
    if args.sweep:
        write_json(run_sweep(settings, work, args.workers, args.reuse), output)
        return
    if args.pretraining > 1:
        work = work / f"pretraining_{args.pretraining}"
    results = run_experiment(
        args.corpus, _arms(args), settings, work, args.covid_root, args.workers, args.reasons, args.reuse
    )
    write_json(results, output)
    print(f"{len(results['runs'])} runs in {results['seconds'] / 60:.1f} min: {output}")


def _settings(args: argparse.Namespace) -> Settings:
    settings = QUICK if args.quick else STANDARD
    if args.seeds:
        settings = replace(settings, seeds=tuple(args.seeds), validation_seeds=tuple(args.seeds))
    return settings.with_longer_pretraining(args.pretraining)


def _arms(args: argparse.Namespace) -> tuple[str, ...]:
    if args.arms:
        return tuple(args.arms)
    if args.reasons:
        return REASON_ARMS if args.pretraining == 1 else LONGER_ARMS
    return PHANTOM_ARMS if args.corpus == "phantom" else COVID_ARMS


def _output(args: argparse.Namespace) -> Path:
    # A part of the experiment does not take the place of the whole, which the repository keeps.
    folder = args.work if args.quick or args.arms or args.seeds else RESULTS
    if args.sweep:
        return folder / "sweep.json"
    if args.reasons:
        return folder / ("reasons.json" if args.pretraining == 1 else "reasons_longer.json")
    return folder / f"{args.corpus}.json"


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", choices=CORPORA, default="phantom", help="default: %(default)s")
    parser.add_argument("--covid-root", type=Path, help="folder of the COVID-19 collection, for its corpus")
    parser.add_argument("--arms", nargs="+", choices=ARMS, metavar="ARM", help=f"these alone, of {', '.join(ARMS)}")
    parser.add_argument("--seeds", nargs="+", type=int, help="in place of those of the settings")
    purpose = parser.add_mutually_exclusive_group()
    purpose.add_argument("--sweep", action="store_true", help="try the learning rates instead")
    purpose.add_argument(
        "--reasons", action="store_true", help="ask what keeps adapters from full fine-tuning instead"
    )
    longer = "with `--reasons`: so many times the steps of pretraining of both towers (default: %(default)s)"
    parser.add_argument("--pretraining", type=positive_int, default=1, metavar="FACTOR", help=longer)
    parser.add_argument("--reuse", action="store_true", help="take seeds prepared before with these settings")
    parser.add_argument("--quick", action="store_true", help="two steps of everything, to try the path")
    parser.add_argument("--work", type=Path, default=WORK, help="folder to write (default: %(default)s)")
    parser.add_argument("--workers", type=positive_int, default=2, help="processes (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.corpus != "phantom" and (args.sweep or args.reasons):
        parser.error(f"`--sweep` and `--reasons` take `--corpus phantom` alone, got {args.corpus}.")
    if args.pretraining > 1 and not args.reasons:
        parser.error(f"`--pretraining` goes with `--reasons` alone, got {args.pretraining}.")
    if args.sweep and args.arms:
        parser.error(f"`--sweep` tries arms of its own, got `--arms` {' '.join(args.arms)}.")
    if args.corpus == "covid_cxr" and args.covid_root is None:
        parser.error("`--covid-root` must be the folder of the collection for `--corpus covid_cxr`, got none.")
    return args


if __name__ == "__main__":
    main()
