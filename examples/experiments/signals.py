"""SIGINT (Ctrl-C) and SIGTERM as requests to stop, which training grants after its step."""

import os
import signal
from types import FrameType
from typing import Self

from jax.experimental import multihost_utils


class Stop:
    """What asks a program to stop, while it is in a `with` statement.

    The first signal is a request. A second one ends the process at once: what has been saved
    by then is whole, for checkpoints are written elsewhere and renamed.

    Attributes:
      number: the number of the signal that came; None before.
    """

    number: int | None = None
    signals = (signal.SIGINT, signal.SIGTERM)

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self.number is not None

    def __enter__(self) -> Self:
        self._before = [signal.signal(number, self._request) for number in self.signals]
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in zip(self.signals, self._before, strict=True):
            signal.signal(number, before)

    def _request(self, number: int, _: FrameType | None) -> None:
        if self.requested:
            os._exit(128 + number)
        self.number = number
        # Not print, which may be in the middle of a line of its own.
        os.write(2, b"\nstopping after this step; once more to stop at once\n")


class StopTogether(Stop):
    """Stops several processes after the same step, whichever of them is asked.

    SIGTERM is JAX's, which tells all processes and chooses a step that none has taken yet. Ctrl-C
    is passed on as SIGTERM.
    """

    signals = (signal.SIGINT,)

    def __init__(self) -> None:
        self._asked = 0
        self._interrupted = False

    @property
    def requested(self) -> bool:
        """Whether to stop now; all processes must ask equally often."""
        if self.number is None:
            self._asked += 1
            if multihost_utils.reached_preemption_sync_point(self._asked):
                self.number = signal.SIGTERM
        return self.number is not None

    def _request(self, number: int, _: FrameType | None) -> None:
        if self._interrupted:
            os._exit(128 + number)
        self._interrupted = True
        os.kill(os.getpid(), signal.SIGTERM)
