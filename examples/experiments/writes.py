"""Orbax's writes, where several processes write one checkpoint.

A process that cannot write its part, as on a full disk, waits in Orbax's threads for the others,
and these for it, for ten minutes. But it logs the error at once.
"""

import logging
from collections.abc import Callable

from experiments.checkpoints import CheckpointError


class _Failures(logging.Handler):
    def __init__(self, call: Callable[[CheckpointError], None]):
        super().__init__(logging.ERROR)
        self._call = call

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and "orbax" in record.pathname:
            reason = str(record.exc_info[1]).strip().partition("\n")[0]
            self._call(CheckpointError(f"a checkpoint cannot be written: {reason}"))


def on_failure(call: Callable[[CheckpointError], None]) -> None:
    """Lets a function be called as soon as a write has failed, in the thread that writes.

    What else Orbax logs, it raises too.
    """
    log = logging.getLogger("absl")
    log.propagate = False
    log.handlers = [_Failures(call)]
