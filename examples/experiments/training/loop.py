"""The loop: one seed, or several together, from the first epoch to the last."""

import bisect
import collections
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.data import Data
from experiments.signals import Stop
from experiments.training import devices
from experiments.training.checkpoints import Checkpoints
from experiments.training.evaluation import RECALIBRATION_BATCHES, SlowParams, evaluate
from experiments.training.steps import Model, State, init_state

Record = dict[str, Any]

# How far the losses that are looked at may lag behind the steps that are under way.
LAG = 20


class Diverged(Exception):
    """A loss that is no longer a number."""


class Stopped(Exception):
    """The run was asked to stop, and has saved what there is if it has checkpoints.

    Attributes:
      number: of the signal that asked, if one did.
    """

    def __init__(self, message: str, number: int | None = None):
        super().__init__(message)
        self.number = number


@dataclass(frozen=True)
class Run:
    """All that the result of a seed depends on, but the seed.

    Attributes:
      label: its name in messages.
      model: the network with its input.
      dataset: what is learnt.
      tx: the optimizer.
      slow_params: reads the weights to evaluate from optimizer state and params; None if those
        are the params themselves.
      epochs: passes over the training images; the last goes on until the steps are done.
      steps: optimizer steps in all.
      batch_size: examples in a batch, over all devices.
      eval_every: epochs between two evaluations; the first and the last epoch always have one.
      recalibrate: whether the slow weights are evaluated with statistics of their own besides.
      devices: that share a batch; all there are unless others are given.
      steps_per_dispatch: how many steps are compiled into one call.
      gradients_per_step: how many gradients a step takes, for the records.
      more_epochs: the last ones of the epochs, by which a finished run was extended. Each has the
        steps of an epoch, after those that the run had.
    """

    label: str
    model: Model
    dataset: Data
    tx: optax.GradientTransformation
    slow_params: SlowParams | None
    epochs: int
    steps: int
    batch_size: int
    eval_every: int = 1
    recalibrate: bool = False
    devices: Sequence[jax.Device] = field(default_factory=jax.devices)
    steps_per_dispatch: int = 1
    gradients_per_step: int = 1
    more_epochs: int = 0

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in the training images."""
        return self.dataset.train_size // self.batch_size

    @property
    def steps_before(self) -> int:
        """Steps of the run before it was extended."""
        return self.end_of(self.epochs - self.more_epochs)

    def end_of(self, epoch: int) -> int:
        """The step that an epoch ends with."""
        if epoch < self.epochs - self.more_epochs:
            return epoch * self.steps_per_epoch
        return self.steps - (self.epochs - epoch) * self.steps_per_epoch

    def epoch_of(self, step: int) -> int:
        """The epoch of a step, counted from 1 as steps are."""
        return bisect.bisect_left(range(self.epochs), step, key=self.end_of)


class Epoch(NamedTuple):
    """What is known at the end of an epoch.

    Attributes:
      record: results, a function of the run and the seed alone.
      timing: `seconds` of training, of which `waited` for data; `images_per_second`; and beside
        these, in the first epoch of a process, `first_step`: seconds with its compilation.
      state: what the epoch ended with, with a leading axis of seeds if they are several. It is
        given away in the next step, so it holds until the next entry is asked for. None for
        the epochs before the last checkpoint.
    """

    record: Record
    timing: Record
    state: State | None


def train(
    run: Run,
    seeds: Sequence[int],
    *,
    checkpoints: Checkpoints | None = None,
    stop: Stop | None = None,
    start: Callable[[Model, optax.GradientTransformation, int], State] = init_state,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> Iterator[Epoch]:
    """Trains from some seeds together, and yields one entry per epoch and seed.

    Weights, batches and therefore results depend on the seed, not on the optimizer or on
    the other seeds. Epoch 0 is before the first step. With checkpoints the run goes on
    after the last of them, and yields the epochs before it once more, without timings.

    Args:
      run: what to train.
      seeds: of weights, batches and augmentation.
      checkpoints: where to save, and to go on from.
      stop: a request to save and leave.
      start: makes the state before the first step from model, optimizer and seed; another than
        `init_state` may go on from weights that are there, which are given away.
      on_step: is told the step and its mean loss, some steps late so that nobody waits.

    Yields:
      An `Epoch` for each epoch and seed, in this order.

    Raises:
      Diverged: if a loss is not finite.
      Stopped: if `stop` was requested.
      CheckpointError: if a checkpoint cannot be read or written.
    """
    together = len(seeds) > 1
    steps = devices.compile_steps(run.model, run.tx, tuple(run.devices), together=together)
    pools = _pools(run.dataset, steps.put_pool)
    initial = _together([start(run.model, run.tx, seed) for seed in seeds])
    records: list[Record] = []
    done, compiled = 0, False
    if checkpoints is not None and (saved := checkpoints.restore(initial)) is not None:
        done, initial, records = saved
    state = steps.put_state(initial)
    yield from (Epoch(record, {}, state if record["steps"] == done else None) for record in records)

    stream = _batches(run, seeds, start=done)
    pending: collections.deque[tuple[int, jax.Array]] = collections.deque()

    def look(lag: int) -> None:
        """Looks at the losses of all but the last `lag` steps."""
        while len(pending) > lag:
            step, loss = pending.popleft()
            value = float(np.mean(loss))
            if not math.isfinite(value):
                raise Diverged(_diverged(run, seeds, step, checkpoints))
            on_step(step, value)

    def save() -> None:
        if checkpoints is not None:
            look(0)
            checkpoints.save(done, state, records)

    def leave_if_asked() -> None:
        if stop is not None and stop.requested:
            save()
            if checkpoints is not None:
                checkpoints.wait()
            raise Stopped(f"stopped after {done} of {run.steps} steps", stop.number)

    def recalibration() -> Iterator[Any]:
        for batch, _ in zip(
            _batches(run, seeds[:1], start=0), range(RECALIBRATION_BATCHES), strict=False
        ):
            yield steps.put_batch(jax.tree.map(lambda x: x[0], batch))

    for epoch in range(len(records) // len(seeds), run.epochs + 1):
        end = run.end_of(epoch)
        begin, started, waited = done, time.perf_counter(), 0.0
        timing = {}
        while done < end:
            until_due = checkpoints.steps_until_due(done) if checkpoints is not None else None
            count = min(run.steps_per_dispatch, end - done, until_due or end)
            asked = time.perf_counter()
            batches = steps.put_batches(_stacked([next(stream) for _ in range(count)]))
            waited += time.perf_counter() - asked
            state, losses = steps.train(pools["train"], state, batches)
            done += count
            if not compiled:
                jax.block_until_ready(losses)
                timing["first_step"] = time.perf_counter() - started
                compiled, begin, started, waited = True, done, time.perf_counter(), 0.0
            pending.append((done, losses))
            look(LAG)
            if done < end:  # At an epoch's end there is more to save than the state.
                if until_due == count:
                    save()
                leave_if_asked()
        look(0)
        seconds = time.perf_counter() - started
        measured = {}
        if epoch % run.eval_every == 0 or epoch == run.epochs:
            measured = evaluate(
                steps,
                pools,
                run.dataset,
                state,
                run.slow_params,
                recalibration if run.recalibrate else None,
            )
        if epoch > 0:
            taken = end - run.end_of(epoch - 1)
            sums = jax.device_get((state.loss, state.correct))
            measured["batch_loss"], measured["batch_accuracy"] = (
                np.atleast_1d(total) / taken for total in sums
            )
        timing |= {
            "seconds": seconds,
            "waited": waited,
            "images_per_second": (done - begin) * run.batch_size * len(seeds) / seconds,
        }
        new = [
            {
                "seed": seed,
                "epoch": epoch,
                "steps": done,
                "gradients": done * run.gradients_per_step,
            }
            | {name: float(value[n]) for name, value in measured.items()}
            for n, seed in enumerate(seeds)
        ]
        if not all(math.isfinite(record.get("test_loss", 0)) for record in new):
            raise Diverged(_diverged(run, seeds, done, checkpoints))
        records += new
        state = state._replace(loss=state.loss * 0, correct=state.correct * 0)
        save()
        yield from (Epoch(record, timing, state) for record in new)
        if epoch < run.epochs:
            leave_if_asked()
    if checkpoints is not None:
        checkpoints.wait()


def _together(states: Sequence[State]) -> State:
    """One state, or several as one with a leading axis of seeds."""
    return states[0] if len(states) == 1 else jax.tree.map(lambda *x: jnp.stack(x), *states)


def flops_per_step(run: Run) -> float | None:
    """The floating-point operations of a training step, as far as XLA can tell."""
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), _pools(run.dataset, tuple)["train"]
    )
    labels = jax.ShapeDtypeStruct((run.batch_size,), np.int32)
    if shapes:
        return devices.flops_per_step(run.model, run.tx, labels, shapes)
    images = jax.ShapeDtypeStruct((run.batch_size, *run.dataset.image_shape), np.uint8)
    return devices.flops_per_step(run.model, run.tx, (images, labels), ())


def _pools(dataset: Data, put: Callable[[Any], Any]) -> dict[str, Any]:
    """The images and labels on the devices, by split; empty ones where batches bring their own."""
    return {split: put(dataset.pool(split)) for split in ("train", "test")}


def _batches(run: Run, seeds: Sequence[int], start: int) -> Iterator[Any]:
    """Batches with a leading axis of seeds, from step `start` on."""
    streams = [run.dataset.train_batches(seed, run.batch_size, start) for seed in seeds]
    for parts in zip(*streams, strict=True):
        yield jax.tree.map(lambda *x: np.stack(x), *parts)


def _stacked(batches: list[Any]) -> Any:
    """Batches with axes (seed, example) as one with axes (seed, step, example)."""
    return jax.tree.map(lambda *x: np.stack(x, axis=1), *batches)


def _diverged(run: Run, seeds: Sequence[int], step: int, checkpoints: Checkpoints | None) -> str:
    who = f"seed {seeds[0]}" if len(seeds) == 1 else f"one of the seeds {list(seeds)}"
    message = f"{run.label} diverged, from {who} in epoch {run.epoch_of(step)} (step {step})"
    if checkpoints is None:
        return message
    last = checkpoints.last
    return message + ("; no checkpoint" if last is None else f"; the last good checkpoint: {last}")
