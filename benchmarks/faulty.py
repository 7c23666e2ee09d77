"""`examples/main.py` with a fault in one of its processes; `faults.py` starts it.

    python benchmarks/faulty.py '{"fault": "full_disk", "process": 1, "save": 3}' --dataset digits …

The first argument says which fault, in which process, and when. The others are those of `main.py`.
"""

import dataclasses
import datetime
import functools
import itertools
import json
import resource
import signal
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import main as program
import numpy as np
import optax
from experiments import processes, settings, sweep
from experiments.checkpoints import Checkpoints
from experiments.data import Dataset
from experiments.models import MLP, NETWORKS
from experiments.run import Run
from experiments.steps import State

# With this in place of 30 seconds, processes that wait for a killed one do so for less long.
SILENCE = 10


def none(mine: bool) -> None:
    """No fault."""


def full_disk(mine: bool, save: int) -> None:
    """From a save on, files may have a hundred bytes at most, which stands for a full disk."""
    saves, whole = itertools.count(1), Checkpoints.save

    def limited(self: Checkpoints, *given: Any) -> None:
        if mine and next(saves) == save:
            self.wait()
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        whole(self, *given)

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    Checkpoints.save = limited


def slow_data(mine: bool, steps: Sequence[int], seconds: float) -> None:
    """Before some steps the data come late."""

    class Slow(Dataset):
        def train_batches(self, *given: Any) -> Iterator[Any]:
            for step, batch in enumerate(super().train_batches(*given)):
                time.sleep(seconds if mine and step in steps else 0)
                yield batch

    change_runs(lambda run: dataclasses.replace(run, dataset=Slow(**vars(run.dataset))))


def skewed_clock(mine: bool, seconds: float) -> None:
    """The clock, by which logs and files are dated, is wrong by some seconds."""
    if not mine:
        return
    now, skew = time.time, datetime.timedelta(seconds=seconds)

    class Skewed(datetime.datetime):
        @classmethod
        def now(cls, *given: Any) -> datetime.datetime:
            return super().now(*given) + skew

    time.time = lambda: now() + seconds
    settings.datetime = Skewed


def nan_gradients(mine: bool, steps: Sequence[int], how: str) -> None:
    """At some steps an image gives a finite loss and NaN as its gradient.

    Args:
      mine: whether it is this process that gets the image.
      steps: numbers of the steps, from 0.
      how: `guarded` by `optax.apply_if_finite`, `unguarded`, or `left_out`: the gradients are
        finite, and the steps are left out by their numbers.
    """

    class Spoiled(Dataset):
        """Its batches refer, at these steps, to an image of NaN behind the others."""

        def pool(self, split: str) -> tuple[np.ndarray, np.ndarray]:
            images, labels = super().pool(split)
            nothing = np.full_like(images[:1], np.nan)
            return np.concatenate([images, nothing]), np.append(labels, labels[:1])

        def train_batches(self, *given: Any) -> Iterator[np.ndarray]:
            for step, batch in enumerate(super().train_batches(*given), start=given[2]):
                if mine and step in steps:
                    batch = np.array([self.train_size, *batch[1:]], batch.dtype)
                yield batch

    class Spoiling(MLP):
        def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
            bad = jnp.isnan(x).any(axis=(1, 2, 3), keepdims=True)
            logits = super().__call__(jnp.where(bad, 0, x), train=train)
            return spoiled(1.0 if how == "left_out" else jnp.nan, logits, bad.reshape(-1, 1))

    guards = {
        "guarded": functools.partial(optax.apply_if_finite, max_consecutive_errors=len(steps)),
        "unguarded": lambda tx: tx,
        "left_out": functools.partial(leave_out, steps=steps),
    }

    def change(run: Run) -> Run:
        slow = run.slow_params
        inside = slow if how == "unguarded" else lambda state, params: slow(state[-1], params)
        data = Spoiled(**vars(run.dataset))
        return dataclasses.replace(run, dataset=data, tx=guards[how](run.tx), slow_params=inside)

    NETWORKS["mlp"] = Spoiling
    change_runs(change)
    keep_checksums()


def keep_checksums() -> None:
    """Lets each process keep a checksum of its copy of each state that is saved."""
    whole = Checkpoints.save

    def save(self: Checkpoints, step: int, state: State, records: Any) -> None:
        total = 0
        for leaf in jax.tree.leaves((state.params, state.opt_state)):
            total = zlib.crc32(np.asarray(leaf).tobytes(), total)
        with open(f"checksums_{processes.index()}", "a") as file:
            print(step, total, file=file)
        whole(self, step, state, records)

    Checkpoints.save = save


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def spoiled(gradient: float, x: jax.Array, bad: jax.Array) -> jax.Array:
    """Returns x, and has another gradient where it is bad."""
    return x


spoiled.defvjp(
    lambda gradient, x, bad: (x, bad),
    lambda gradient, bad, own: (jnp.where(bad, gradient, own), None),
)


def leave_out(
    inner: optax.GradientTransformation, steps: Sequence[int]
) -> optax.GradientTransformation:
    """Leaves out the steps with these numbers, and all that they would change."""

    def init(params: Any) -> Any:
        return jnp.zeros((), jnp.int32), inner.init(params)

    def update(grads: Any, state: Any, params: Any, **extra: Any) -> Any:
        step, before = state
        out = jnp.isin(step, jnp.asarray(steps))
        updates, after = inner.update(grads, before, params, **extra)
        kept = jax.tree.map(lambda x: jnp.where(out, jnp.zeros_like(x), x), updates)
        return kept, (step + 1, jax.tree.map(functools.partial(jnp.where, out), before, after))

    return optax.GradientTransformationExtraArgs(init, update)


def change_runs(change: Callable[[Run], Run]) -> None:
    """Changes what is trained, after the program has built it."""
    build = sweep.build

    def changed(asked: sweep.Sweep) -> Mapping[str, Run]:
        return {label: change(run) for label, run in build(asked).items()}

    sweep.build = changed


FAULTS = {f.__name__: f for f in (none, full_disk, slow_data, skewed_clock, nan_gradients)}


def main() -> int:
    """Puts the fault in its place, and runs the program."""
    fault, flags = json.loads(sys.argv[1]), sys.argv[2:]
    number = next((flag[13:] for flag in flags if flag.startswith("--process_id=")), "0")
    mine = fault.pop("process", None) == int(number)
    FAULTS[fault.pop("fault")](mine, **fault)
    processes.SILENCE = SILENCE
    sys.argv = ["main.py", *flags]
    return program.main(flags)


if __name__ == "__main__":
    sys.exit(main())
