"""main.py with a network so small that a test can train it, and that has BatchNorm.

With `STOP_AT=N` process 1 asks to be stopped after its N-th step.
"""

import os
import signal
import sys

import main
from experiments import processes, signals
from experiments.models import NETWORKS
from flax import nnx


class Tiny(nnx.Module):
    def __init__(self, image_shape, classes, *, dtype=None, rngs):
        self.hidden = nnx.Linear(image_shape[0] * image_shape[1], 16, dtype=dtype, rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.head = nnx.Linear(16, classes, rngs=rngs)

    def __call__(self, x, *, train):
        x = self.hidden(x.reshape(len(x), -1))
        return self.head(nnx.relu(self.norm(x, use_running_average=not train)))


class Stopping(signals.StopTogether):
    @property
    def requested(self):
        if processes.index() == 1 and self._asked == int(os.environ["STOP_AT"]):
            os.kill(os.getpid(), signal.SIGTERM)
        return super().requested


if __name__ == "__main__":
    NETWORKS["tiny"] = Tiny
    if "STOP_AT" in os.environ:
        from experiments import sweep

        sweep.StopTogether = Stopping
    sys.exit(main.main())
