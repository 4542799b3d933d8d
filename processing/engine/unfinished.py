"""What a run has finished so far, so that a killed one goes on: shards and their counts in `OUT/.unfinished`."""

import functools
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import PIL
import pyarrow as pa

from processing.engine.images import SHORT_SIDE
from processing.engine.shards import ROWS_PER_GROUP, find_shards, shard_name, write_summary
from processing.engine.study_builder import PatientRecords
from processing.engine.study_plan import Plan


__all__ = ["Segment", "Unfinished"]

FORMAT_VERSION = 2  # of the records' bytes; a run never goes on after shards of another version


@dataclass
class Segment:
    """The patients of one shard: what they became, and the number of the patient who is next in the split."""

    split: str
    index: int
    next_patient: int
    num_images: int = 0
    excluded: Counter = field(default_factory=Counter)
    without_prior: Counter = field(default_factory=Counter)
    unreadable: list[str] = field(default_factory=list)
    counts: Counter = field(default_factory=Counter)

    def add(self, patient: PatientRecords) -> None:
        """Count one more patient."""
        self.next_patient += 1
        self.num_images += patient.num_images
        self.excluded.update(patient.excluded)
        self.without_prior.update(patient.without_prior)
        self.unreadable += patient.unreadable


class Unfinished:
    """
    The folder of unfinished work below `output`. Work of another plan, or of other settings, is thrown away.

    Args:
        output (`Path`): folder of the records.
        plan ([`Plan`]): what is being written.
        max_shard_bytes (`int`): where shards end.
    """

    def __init__(self, output: Path, plan: Plan, max_shard_bytes: int):
        versions = {"records": FORMAT_VERSION, "pillow": PIL.__version__, "pyarrow": pa.__version__}
        image = {"format": plan.corpus.image_format.upper(), "short_side": SHORT_SIDE}
        self.settings = {"settings": dict(plan.corpus.settings), "images_as": image, "versions": versions}
        self.output, self.folder = output, output / ".unfinished"
        fingerprint = _fingerprint(plan, [self.settings, max_shard_bytes, ROWS_PER_GROUP])
        self.found = self.folder / "plan.sha256"
        if not self.found.is_file() or self.found.read_text() != fingerprint:
            self.discard()
            self.folder.mkdir(parents=True)
            self.found.write_text(fingerprint)

    def segments(self, split: str) -> list[Segment]:
        """The finished segments of a split, in order, up to the first that is not there."""
        done: list[Segment] = []
        while (path := self.shard_path(self.next_segment(split, done)).with_suffix(".json")).is_file():
            done.append(_read_segment(path))
        return done

    def is_complete(self, splits: Mapping[str, Sequence]) -> bool:
        """Whether every patient is done, and only the files have to be put in place."""
        found = {name: self.segments(name) for name in splits}
        ends = {name: segments[-1].next_patient if segments else 0 for name, segments in found.items()}
        return all(ends[name] == len(patients) for name, patients in splits.items())

    def next_segment(self, split: str, done: Sequence[Segment]) -> Segment:
        """The segment after the last of `done`."""
        return Segment(split, done[-1].index + 1, done[-1].next_patient) if done else Segment(split, 0, 0)

    def shard_path(self, segment: Segment) -> Path:
        """Where the records of a segment are written until all are done."""
        return self.folder / f"{segment.split}-{segment.index:05d}.parquet"

    def save(self, segment: Segment, counts: Counter) -> None:
        """Mark a segment as finished, in one step that a kill cannot halve."""
        segment.counts = counts
        path = self.shard_path(segment).with_suffix(".json")
        path.with_suffix(".tmp").write_text(json.dumps(vars(segment)), encoding="utf-8")
        os.replace(path.with_suffix(".tmp"), path)

    def discard(self) -> None:
        """Throw the unfinished work away. What a kill leaves of it is not taken over, since its plan goes first."""
        self.found.unlink(missing_ok=True)
        if self.folder.exists():
            shutil.rmtree(self.folder)

    def finish(self, summary: dict[str, Any], segments: Mapping[str, list[Segment]]) -> dict[str, Any]:
        """
        Put the shards in place of those of an earlier run. A second call after a kill does the rest.

        Raises:
            `ValueError`: a shard is neither unfinished nor in place; nothing is removed then.
        """
        data = self.output / "data"
        data.mkdir(exist_ok=True)
        places = {}
        for split, of_split in segments.items():
            full = [segment for segment in of_split if segment.counts["records"]]
            places |= {self.shard_path(s): data / shard_name(split, i, len(full)) for i, s in enumerate(full)}
        moved = {place for path, place in places.items() if not path.exists()}
        lost = sorted(path.name for path, place in places.items() if place in moved and not place.exists())
        if lost:
            raise ValueError(
                f"`output` must hold every shard of the run, but {self.folder} lacks {lost}; remove it to begin anew."
            )
        for old in set(find_shards(data)) - moved:
            old.unlink()
        for path, place in places.items():
            if place not in moved:
                os.replace(path, place)
        write_summary(summary, self.output)
        self.discard()
        return summary


def _read_segment(path: Path) -> Segment:
    fields = json.loads(path.read_text(encoding="utf-8"))
    counters = {name: Counter(fields[name]) for name in ("excluded", "without_prior", "counts")}
    return Segment(**fields | counters)


def _fingerprint(plan: Plan, settings: Any) -> str:
    corpus = plan.corpus
    calls = [_name_call(call) for call in (corpus.read_report, corpus.read_image)]
    root = str(Path(corpus.root).resolve())
    rules = [corpus.time_unit, corpus.empty_report, corpus.needs_report]
    digest = hashlib.sha256(repr([corpus.name, root, rules, calls, settings]).encode())
    for study in plan.studies:
        digest.update(repr(study).encode())
    return digest.hexdigest()


def _name_call(call: Callable | None) -> str:
    """A name that stays the same in the next process, unlike the `repr` of a function."""
    if isinstance(call, functools.partial):
        return f"{_name_call(call.func)}{call.args}{sorted(call.keywords.items())}"
    return "" if call is None else f"{call.__module__}.{getattr(call, '__qualname__', type(call).__qualname__)}"
