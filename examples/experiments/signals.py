"""SIGINT (Ctrl-C) and SIGTERM as requests to stop, which training grants after its step."""

import os
import signal
from types import FrameType
from typing import Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """What asks a program to stop, while it is in a `with` statement.

    The first signal is a request. A second one ends the process at once: what has been saved
    by then is whole, for checkpoints are written elsewhere and renamed.

    Attributes:
      number: the number of the signal that came; None before.
    """

    number: int | None = None

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self.number is not None

    def __enter__(self) -> Self:
        self._before = [signal.signal(number, self._request) for number in SIGNALS]
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in zip(SIGNALS, self._before, strict=True):
            signal.signal(number, before)

    def _request(self, number: int, _: FrameType | None) -> None:
        if self.requested:
            os._exit(128 + number)
        self.number = number
        # Not print, which may be in the middle of a line of its own.
        os.write(2, b"\nstopping after this step; once more to stop at once\n")
