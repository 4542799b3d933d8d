"""Peak memory of a run and of its workers, as the kernel counts it (Linux)."""

import os
import threading
from pathlib import Path
from types import TracebackType


__all__ = ["PeakMemory"]


class PeakMemory:
    """
    Samples the memory of this process and all below it while a `with` block runs.

    `peak` is the highest sum of their proportional set sizes in bytes: a page that several processes share counts
    once. With `anonymous`, files that are mapped do not count: the share of a library grows whenever another process
    that uses it ends.
    """

    def __init__(self, interval: float = 0.2, anonymous: bool = False):
        self.interval, self.peak, self.stop = interval, 0, threading.Event()
        self.field = "Pss_Anon" if anonymous else "Pss"
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "PeakMemory":
        self.peak = measure_tree(os.getpid(), self.field)
        self.thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop.set()
        self.thread.join()

    def _watch(self) -> None:
        while not self.stop.wait(self.interval):
            self.peak = max(self.peak, measure_tree(os.getpid(), self.field))


def measure_tree(pid: int, field: str = "Pss") -> int:
    """Proportional set size in bytes of a process and all below it; one that ends meanwhile counts nothing."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = [child for task in tasks for child in (task / "children").read_text().split()]
    except OSError:
        return 0
    own = 1024 * int(text.split(f"\n{field}:")[1].split()[0])
    return own + sum(measure_tree(int(child), field) for child in children)
