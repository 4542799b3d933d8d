"""The engine: a plan of studies to study records on disk. Every corpus goes through [`write_records`].

Splits are written one after the other, patients in the order of the plan, and a patient's records never part: a shard
ends after the patient who makes it full. So the bytes do not depend on the number of workers, and a shard that is
done tells where the next one starts. Unfinished work lies in `OUT/.unfinished`; a run that finds its own there goes on
after the last shard that is done. The records of an earlier run stay until the new ones are complete. A second run on
a folder that one is writing to is an error.
"""

import argparse
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from tqdm import tqdm

from processing.engine.folder_lock import lock_folder
from processing.engine.images import IMAGE_FORMATS
from processing.engine.shards import MAX_SHARD_BYTES, ShardWriter, summarize
from processing.engine.study_builder import PatientRecords
from processing.engine.study_plan import Plan, Study
from processing.engine.unfinished import Segment, Unfinished
from processing.engine.workers import chunk_patients, run_local, run_ray


__all__ = ["BACKENDS", "corpus_parser", "format_summary", "run_corpus", "write_records"]

BACKENDS = {"local": run_local, "ray": run_ray}
UNREADABLE_SHOWN = 100
STUDIES_PER_WORKER = 16  # fewer are done before a worker has started


def write_records(
    plan: Plan,
    output: str | Path,
    num_proc: int = 1,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    backend: str = "local",
) -> dict[str, Any]:
    """
    Make and write the study records of a corpus.

    Args:
        plan ([`Plan`]): the studies; each ends as a record or counted under one reason.
        output (`str` or `Path`): folder to write `data/` and `summary.json` into, made if need be.
        num_proc (`int`, defaults to 1): worker processes. Needs an `if __name__ == "__main__":` in the calling script.
        max_shard_bytes (`int`, defaults to 500 MB): image bytes at which the next file of a split is begun.
        backend (`str`, defaults to `"local"`): "local", or "ray" to do the work of the workers as a Ray Data job.

    Returns:
        `dict`: the summary, also in `summary.json`:
        - **corpus**, **settings**, **versions** -- what was read and how.
        - the plan's `totals`, **studies**, and **images**, the files kept as the frontal or the lateral of a study.
        - **records**, **with_prior**, **with_lateral**, and the same in **splits**.
        - **without_prior** -- reason → records; with `with_prior` it adds up to `records`.
        - **excluded** -- reason → count; the rows and `images` add up to the input's rows, the studies and `records`
          to `studies`.
        - **unreadable** -- the first 100 files that are missing or cannot be decoded.

    Raises:
        `ValueError`: a plan that breaks its own rules, another argument out of range, another run that writes to
            `output`, or no record at all.
    """
    _check_arguments(num_proc, max_shard_bytes, backend)
    splits = plan.by_split()
    with lock_folder(Path(output)):
        return _write_splits(plan, splits, Path(output), num_proc, max_shard_bytes, backend)


def _write_splits(
    plan: Plan,
    splits: Mapping[str, list[list[Study]]],
    output: Path,
    num_proc: int,
    max_shard_bytes: int,
    backend: str,
) -> dict[str, Any]:
    unfinished = Unfinished(output, plan, max_shard_bytes)
    if not unfinished.is_complete(splits):
        segments = {name: unfinished.segments(name) for name in splits}
        with _progress(plan, splits, segments) as progress:
            for name, patients in splits.items():
                start = segments[name][-1].next_patient if segments[name] else 0
                made = _build(plan, patients[start:], num_proc, backend)
                _write_split(unfinished, name, segments[name], made, len(patients), max_shard_bytes, progress)
    segments = {name: unfinished.segments(name) for name in splits}
    try:
        summary = _summarize(plan, unfinished.settings, segments)
    except ValueError:
        unfinished.discard()
        raise
    return unfinished.finish(summary, segments)


def _check_arguments(num_proc: int, max_shard_bytes: int, backend: str) -> None:
    for name, value in (("num_proc", num_proc), ("max_shard_bytes", max_shard_bytes)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"`{name}` must be an integer of at least 1, got {value!r}.")
    if backend not in BACKENDS:
        raise ValueError(f"`backend` must be one of {list(BACKENDS)}, got {backend!r}.")


def _progress(plan: Plan, splits: Mapping[str, list], segments: Mapping[str, list[Segment]]) -> tqdm:
    done = [splits[name][: found[-1].next_patient] for name, found in segments.items() if found]
    initial = sum(map(len, chain.from_iterable(done)))
    return tqdm(total=len(plan.studies), initial=initial, desc=plan.corpus.name, unit="study", delay=2)


def _build(
    plan: Plan, patients: Sequence[Sequence[Study]], num_proc: int, backend: str
) -> Iterator[tuple[int, PatientRecords]]:
    """Number of studies and what they became, patient by patient."""
    num_proc = min(num_proc, 1 + sum(map(len, patients)) // STUDIES_PER_WORKER)
    made = chain.from_iterable(BACKENDS[backend](plan.corpus, chunk_patients(patients), num_proc))
    return zip(map(len, patients), made, strict=True)


def _write_split(
    unfinished: Unfinished,
    split: str,
    done: list[Segment],
    made: Iterator[tuple[int, PatientRecords]],
    num_patients: int,
    max_shard_bytes: int,
    progress: tqdm,
) -> None:
    segment = unfinished.next_segment(split, done)
    if segment.next_patient == num_patients:
        return
    writer = ShardWriter(unfinished.shard_path(segment))
    for num_studies, patient in made:
        for record in patient.records:
            writer.write(record)
        segment.add(patient)
        progress.update(num_studies)
        if writer.num_bytes >= max_shard_bytes or segment.next_patient == num_patients:
            writer.close()
            unfinished.save(segment, writer.counts)
            segment = unfinished.next_segment(split, [segment])
            writer = ShardWriter(unfinished.shard_path(segment))


def _summarize(plan: Plan, settings: Mapping[str, Any], segments: Mapping[str, list[Segment]]) -> dict[str, Any]:
    found = list(chain.from_iterable(segments.values()))
    excluded = sum((segment.excluded for segment in found), Counter(plan.excluded))
    without_prior = sum((segment.without_prior for segment in found), Counter())
    left_out = sum(count for reason, count in plan.excluded.items() if reason.startswith("study: "))
    counts = {name: sum((segment.counts for segment in of_split), Counter()) for name, of_split in segments.items()}
    totals = {
        "corpus": plan.corpus.name,
        **settings,
        **plan.totals,
        "studies": len(plan.studies) + left_out,
        "images": sum(segment.num_images for segment in found),
        "without_prior": dict(sorted(without_prior.items())),
        "unreadable": list(chain.from_iterable(segment.unreadable for segment in found))[:UNREADABLE_SHOWN],
    }
    return summarize(counts, excluded, totals)


def format_summary(summary: Mapping[str, Any]) -> str:
    """Lines for people, of the summary that `write_records` returns."""
    rows = f"{summary['rows']} rows, " if "rows" in summary else ""
    lines = [f"{rows}{summary['studies']} studies"]
    lines += ["{records} records, {with_prior} with a prior, {with_lateral} with a lateral".format_map(summary)]
    lines += [f"  {name}: {counts['records']}" for name, counts in summary["splits"].items()]
    for title, key in (("without a prior", "without_prior"), ("left out", "excluded")):
        lines += [f"{title}:" if summary[key] else f"{title}: nothing"]
        lines += [f"  {reason}: {count}" for reason, count in summary[key].items()]
    return "\n".join(lines)


def corpus_parser(module: str, description: str) -> argparse.ArgumentParser:
    """The arguments that every corpus' command takes; a module may add its own.

    Args:
        module (`str`): name of the corpus module, as in `python -m processing.<module>`.
        description (`str`): what it reads, how it must lie, and what becomes of it.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m processing.{module}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--root", required=True, help="folder of the corpus")
    parser.add_argument("--output", required=True, help="folder for data/<split>-*.parquet and summary.json")
    parser.add_argument("--num-proc", type=int, default=os.cpu_count(), help="worker processes (default: all cores)")
    parser.add_argument("--max-shard-bytes", type=int, default=MAX_SHARD_BYTES, help="of a file (default: 500 MB)")
    meaning = "of the images: png, or tiff without compression, larger but faster to train from (default: %(default)s)"
    parser.add_argument("--image-format", choices=list(IMAGE_FORMATS), default="png", help=meaning)
    parser.add_argument("--backend", choices=list(BACKENDS), default="local", help="where the workers run")
    return parser


def run_corpus(
    parser: argparse.ArgumentParser,
    make_plan: Callable[[argparse.Namespace], Plan],
    arguments: Sequence[str] | None = None,
) -> None:
    """Run a corpus' command: plan, write, print the counts; bad input ends it with a message and exit status 1.

    Args:
        parser (`ArgumentParser`): from [`corpus_parser`].
        make_plan (callable): the parsed arguments to a [`Plan`].
        arguments (sequence of `str`, *optional*): the command line; `sys.argv` by default.
    """
    options = parser.parse_args(arguments)
    try:
        plan = make_plan(options)
        plan = replace(plan, corpus=replace(plan.corpus, image_format=options.image_format))
        summary = write_records(plan, options.output, options.num_proc, options.max_shard_bytes, options.backend)
        print(format_summary(summary))
    except (ImportError, OSError, ValueError) as error:
        parser.exit(1, f"error: {error}\n")
