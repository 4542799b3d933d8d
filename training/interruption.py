"""SIGTERM, as schedulers send it before they take a machine away: remembered, and acted on after the step."""

import signal
from types import FrameType, TracebackType


class StopSignal:
    """`received` turns true when SIGTERM comes while the `with` block runs; the process goes on."""

    def __init__(self):
        self.received = False

    def __enter__(self) -> "StopSignal":
        self._previous = signal.signal(signal.SIGTERM, self._receive)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        signal.signal(signal.SIGTERM, self._previous)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = True


__all__ = ["StopSignal"]
