"""Runs the per-patient function over a plan, in order: in this process, in many, or as a Ray Data job."""

import pickle
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from itertools import islice
from pathlib import Path
from typing import Any

from processing.engine.study_builder import PatientRecords, build_patient
from processing.engine.study_plan import Corpus, Study
from processing.engine.worker_pool import WorkerDiedError, WorkerPool


__all__ = ["Chunk", "chunk_patients", "map_ordered", "run_local", "run_ray"]

STUDIES_PER_CHUNK = 16
CHUNKS_AHEAD = 3  # per worker: enough that none waits, few enough that finished ones do not pile up

Chunk = Sequence[Sequence[Study]]


def chunk_patients(patients: Iterable[Sequence[Study]]) -> Iterator[Chunk]:
    """Patients in lots of about 16 studies, the unit that is sent to a worker."""
    chunk, size = [], 0
    for studies in patients:
        chunk.append(studies)
        size += len(studies)
        if size >= STUDIES_PER_CHUNK:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def build_chunk(corpus: Corpus, chunk: Chunk) -> list[PatientRecords]:
    """What a worker does."""
    return [build_patient(corpus, studies) for studies in chunk]


def run_local(corpus: Corpus, chunks: Iterable[Chunk], num_proc: int = 1) -> Iterator[list[PatientRecords]]:
    """
    Build the records chunk by chunk, on this machine.

    Args:
        corpus ([`Corpus`]): of the studies.
        chunks (iterable of chunks): from [`chunk_patients`].
        num_proc (`int`): worker processes; with 1 the work is done in this process.

    Yields:
        `list` of [`PatientRecords`]: one list per chunk, in the order of the chunks whatever `num_proc` is. If a file
        kills the process that reads it, its patient is left out and counted, and the others are not.

    Raises:
        `ChildProcessError`: the system killed the worker that had a patient to itself, or workers do not start.
        `ValueError`: a `corpus` that cannot be sent to workers.
    """
    if num_proc == 1:
        yield from (build_chunk(corpus, chunk) for chunk in chunks)
        return
    _check_picklable(corpus)
    chunks, pending = iter(chunks), deque()
    with WorkerPool(num_proc) as pool:
        while True:
            for chunk in islice(chunks, CHUNKS_AHEAD * num_proc - len(pending)):
                pending.append((chunk, pool.submit(build_chunk, corpus, chunk)))
            if not pending:
                return
            yield _result_of(pool, corpus, *pending.popleft())


def _result_of(pool: WorkerPool, corpus: Corpus, chunk: Chunk, future: Future) -> list[PatientRecords]:
    try:
        return future.result()
    except WorkerDiedError:
        return [_build_apart(pool, corpus, studies) for studies in chunk]


def _check_picklable(corpus: Corpus) -> None:
    """Told here, before a file is read and in the words of the caller."""
    try:
        pickle.dumps(corpus)
    except (AttributeError, TypeError, pickle.PicklingError) as error:
        raise ValueError(
            "`corpus` must be picklable to be sent to workers, so its `read_report` and `read_image` must be "
            f"functions of a module: {error}"
        ) from error


def _build_apart(pool: WorkerPool, corpus: Corpus, studies: Sequence[Study]) -> PatientRecords:
    try:
        return pool.submit(build_patient, corpus, studies).result()
    except WorkerDiedError as error:
        if error.exit_code == -signal.SIGKILL:
            raise ChildProcessError(
                "The system killed workers, as it does when memory runs out: take a smaller `num_proc`. The last one "
                f"read the studies {[study.study_id for study in studies]}."
            ) from error
        files = [file for study in studies for file in (*study.frontals, *study.laterals)]
        lost = PatientRecords(unreadable=[file.shown_as or file.path for file in files])
        lost.excluded["study: a file of the patient kills the process that reads it"] = len(studies)
        lost.excluded["row: a file of the patient kills the process that reads it"] = len(files)
        return lost


def map_ordered(function: Callable[[Any], Any], items: Iterable[Any], num_proc: int) -> Iterator[Any]:
    """Apply a function of a module to items in worker processes; results in order, few items held at once."""
    if num_proc == 1:
        yield from map(function, items)
        return
    pending: deque[Future] = deque()
    with WorkerPool(num_proc) as pool:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > num_proc:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def run_ray(corpus: Corpus, chunks: Iterable[Chunk], num_proc: int = 1) -> Iterator[list[PatientRecords]]:
    """
    The same as [`run_local`] as a Ray Data job, for a corpus that outgrows one machine.

    The root of the corpus must be seen by every node. A cluster is found as `ray.init()` finds it; `num_proc` only
    sets the size of the local one that is started where there is none.
    """
    try:
        import ray
    except ImportError as error:
        raise ImportError("`backend` 'ray' needs Ray: `pip install 'modeling-alta[ray]'`.") from error
    if not ray.is_initialized():
        root = Path(__file__).parents[2]
        packages = [str(root / name) for name in ("processing", "modeling_alta")]
        ray.init(num_cpus=num_proc, include_dashboard=False, runtime_env={"py_modules": packages})
    ray.data.DataContext.get_current().execution_options.preserve_order = True
    chunks = ray.data.from_items([{"task": pickle.dumps((corpus, chunk))} for chunk in chunks])
    for row in chunks.map(_run_task).iter_rows():
        yield pickle.loads(row["result"])


def _run_task(row: dict[str, bytes]) -> dict[str, bytes]:
    return {"result": pickle.dumps(build_chunk(*pickle.loads(row["task"])))}
