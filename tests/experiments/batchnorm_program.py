"""main.py with a network so small that a test can train it, and that has BatchNorm.

With `STOP_AT=N` process 1 asks to be stopped after its N-th step, as by Ctrl-C. With `SILENCE=S`
the processes give up one that is silent for S seconds. With `RESTORED` each keeps the arrays that
it has restored from a checkpoint, and with `SEEN` the labels of the images that a stream has given
it, in a file of its own.
"""

import math
import os
import signal
import sys

import jax
import jax.numpy as jnp
import main as program
import numpy as np
from experiments import data, processes, signals, sweep
from experiments.checkpoints import Checkpoints
from experiments.data import stream
from experiments.models import NETWORKS
from flax import nnx


class Tiny(nnx.Module):
    def __init__(self, image_shape, classes, *, dtype=None, rngs):
        self.hidden = nnx.Linear(math.prod(image_shape), 16, dtype=dtype, rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.head = nnx.Linear(16, classes, rngs=rngs)

    def __call__(self, x, *, train):
        x = self.hidden(x.reshape(len(x), -1))
        return self.head(nnx.relu(self.norm(x, use_running_average=not train)))


class Stopping(signals.StopTogether):
    @property
    def requested(self):
        if processes.index() == 1 and self._asked == int(os.environ["STOP_AT"]):
            os.kill(os.getpid(), signal.SIGINT)
        return super().requested


class Kept(Checkpoints):
    def restore(self, *given):
        if found := super().restore(*given):
            leaves = jax.tree_util.tree_leaves_with_path(found[1])
            arrays = {_name(path): np.asarray(_data(leaf)) for path, leaf in leaves}
            np.savez(f"restored_{processes.index()}.npz", **arrays)
        return found


def _name(path):
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _data(leaf):
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf


class Seen(data.Stream):
    def train_batches(self, *given):
        with open(f"seen_{processes.index()}.txt", "a") as file:
            for images, labels in super().train_batches(*given):
                print(*labels, file=file, flush=True)
                yield images, labels


def seen(folder):
    return Seen(**vars(stream.imagenet(folder)) | {"workers": 0})


def main(argv=None):
    NETWORKS["tiny"] = Tiny
    if "STOP_AT" in os.environ:
        sweep.StopTogether = Stopping
    if "SILENCE" in os.environ:
        processes.SILENCE = int(os.environ["SILENCE"])
    if "SEEN" in os.environ:
        data.DATASETS["imagenet2012"] = seen
    if "RESTORED" in os.environ:
        sweep.Checkpoints = Kept
    return program.main(argv)


if __name__ == "__main__":
    sys.exit(main())
