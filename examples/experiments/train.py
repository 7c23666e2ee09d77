"""The training loop: one seed, or several together, from the first epoch to the last."""

import collections
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import devices
from experiments.checkpoints import Checkpoints, NoCheckpoints
from experiments.evaluation import RECALIBRATION_BATCHES, evaluate
from experiments.run import Run
from experiments.signals import Stop
from experiments.steps import Model, State, init_state

Record = dict[str, Any]
OnStep = Callable[[int, float], None]

# The losses that are looked at may lag behind the steps under way by so many dispatches.
LAG = 20
# A run whose loss exceeds this has diverged: guessing among a thousand classes costs 7.
HOPELESS = 1e6


class Diverged(Exception):
    """The loss is not finite, or hopelessly large."""


class Stopped(Exception):
    """The run was asked to stop, and its state is saved if it has checkpoints.

    Attributes:
      number: of the signal that asked, if one did.
      saved: whether there is a checkpoint to resume from.
    """

    def __init__(self, message: str, number: int | None, saved: bool):
        super().__init__(message)
        self.number, self.saved = number, saved


class Epoch(NamedTuple):
    """What is known at the end of an epoch.

    Attributes:
      record: results, a function of the run and the seed alone.
      timing: `seconds` of training, `waited` for data among them; `images_per_second`; and, in
        the first epoch of a process, `first_step`: seconds until the first step was compiled
        and taken. Empty for an epoch that was restored from a checkpoint.
      state: that of all seeds that are trained together; None for a restored epoch whose state
        is gone. It is overwritten by the next step, so look at it or copy it before the next
        epoch is asked for.
    """

    record: Record
    timing: dict[str, float]
    state: State | None


def ignore(step: int, loss: float) -> None:
    """Ignores a step."""


def train(
    run: Run,
    seeds: Sequence[int],
    *,
    checkpoints: Checkpoints | None = None,
    stop: Stop | None = None,
    start: Callable[[Model, optax.GradientTransformation, int], State] = init_state,
    on_step: OnStep = ignore,
) -> Iterator[Epoch]:
    """Trains a run from a seed, or from several seeds together.

    Args:
      run: what is trained.
      seeds: one, or several that share each dispatch to the devices.
      checkpoints: where the run is saved, and resumed from.
      stop: is asked after each dispatch whether to stop.
      start: makes the state before the first step. The state is donated, so a `start` that
        begins with existing weights must copy them.
      on_step: receives each step and its mean loss, some steps late so that the devices do not
        wait for it.

    Yields:
      An `Epoch` for each epoch and seed, in this order; epoch 0 is before the first step.

    Raises:
      Diverged: if a loss is not finite, or hopelessly large.
      Stopped: if `stop` was requested.
      CheckpointError: if a checkpoint cannot be read or written.
    """
    checkpoints = checkpoints or NoCheckpoints()
    compiled = run.compiled(together=len(seeds) > 1)
    pools = {split: compiled.put_pool(run.dataset.pool(split)) for split in run.dataset.splits}
    state = _together([start(run.model, run.tx, seed) for seed in seeds])
    state = compiled.put_state(state)
    done, state, records = checkpoints.restore(state) or (0, state, [])
    yield from (Epoch(record, {}, state if record["steps"] == done else None) for record in records)

    stream = _batches(run, seeds, start=done)
    losses, clock = Losses(run, seeds, checkpoints, on_step), Clock()
    for epoch in range(len(records) // len(seeds), run.epochs + 1):
        end = run.end_of(epoch)
        clock.start()
        while done < end:
            count = min(run.steps_per_dispatch, end - done, checkpoints.steps_until_due(done))
            with clock.waiting():
                batches = compiled.put_batches(_stacked([next(stream) for _ in range(count)]))
            state, loss = compiled.train(pools["train"], state, batches)
            done += count
            losses.add(done, loss)
            clock.count(count * run.batch_size * len(seeds), loss)
            if done < end:  # At the end of an epoch there is more to save than the state.
                if checkpoints.due(done):
                    losses.check()
                    checkpoints.save(done, state, records)
                if stop is not None and stop.requested:
                    losses.check()
                    checkpoints.save(done, state, records)
                    raise _stopped(run, done, stop, checkpoints)
        losses.check()
        timing = clock.read()

        measured = {}
        if run.evaluated(epoch):
            some = _recalibration(run, seeds[0], compiled) if run.recalibrate else None
            measured = evaluate(compiled, pools, run.dataset, state, run.slow_params, some)
        if epoch > 0:
            measured |= _batch_means(state, end - run.end_of(epoch - 1))
        new = [
            {
                "seed": seed,
                "epoch": epoch,
                "steps": done,
                "gradients": done * run.gradients_per_step,
                "learning_rate": run.learning_rate(done),
                "stage": run.stages.stage_of(done),
            }
            | {name: float(value[n]) for name, value in measured.items()}
            for n, seed in enumerate(seeds)
        ]
        if any(_hopeless(record.get("test_loss", 0.0)) for record in new):
            raise Diverged(_diverged(run, seeds, done, checkpoints))
        records += new
        state = state._replace(loss=state.loss * 0, correct=state.correct * 0)
        checkpoints.save(done, state, records)
        yield from (Epoch(record, timing, state) for record in new)
        if stop is not None and stop.requested and epoch < run.epochs:
            raise _stopped(run, done, stop, checkpoints)
    checkpoints.wait()


class Losses:
    """The losses of the steps under way, looked at some steps late.

    Args:
      run: what is trained.
      seeds: from which seeds.
      checkpoints: where the last good state is, if the run diverges.
      on_step: receives each step and its mean loss.
    """

    def __init__(
        self,
        run: Run,
        seeds: Sequence[int],
        checkpoints: Checkpoints,
        on_step: OnStep,
    ):
        self._run, self._seeds, self._checkpoints = run, seeds, checkpoints
        self._on_step = on_step
        self._pending: collections.deque[tuple[int, jax.Array]] = collections.deque()

    def add(self, step: int, loss: jax.Array) -> None:
        """Adds the losses up to a step, and looks at all but the newest ones."""
        self._pending.append((step, loss))
        self._look(LAG)

    def check(self) -> None:
        """Waits for all losses and looks at them.

        Raises:
          Diverged: if one is not finite, or hopelessly large.
        """
        self._look(0)

    def _look(self, lag: int) -> None:
        while len(self._pending) > lag:
            step, losses = self._pending.popleft()
            loss = float(np.mean(losses))
            if _hopeless(loss):
                raise Diverged(_diverged(self._run, self._seeds, step, self._checkpoints))
            self._on_step(step, loss)


class Clock:
    """Measures the seconds of an epoch, without those in which the first step is compiled."""

    def __init__(self) -> None:
        self._first_step: float | None = None

    def start(self) -> None:
        """Begins an epoch."""
        self._started, self._waited, self._images = time.perf_counter(), 0.0, 0
        self._timing: dict[str, float] = {}

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Measures what is spent on waiting for data."""
        asked = time.perf_counter()
        yield
        self._waited += time.perf_counter() - asked

    def count(self, images: int, loss: jax.Array) -> None:
        """Counts the images of a dispatch; the first dispatch is measured by itself."""
        if self._first_step is None:
            jax.block_until_ready(loss)
            self._first_step = time.perf_counter() - self._started
            self.start()
            self._timing["first_step"] = self._first_step
        else:
            self._images += images

    def read(self) -> dict[str, float]:
        """Returns the timing of the epoch."""
        seconds = time.perf_counter() - self._started
        return self._timing | {
            "seconds": seconds,
            "waited": self._waited,
            "images_per_second": self._images / seconds,
        }


def _together(states: Sequence[State]) -> State:
    """Makes of several states one with a leading axis of seeds."""
    return states[0] if len(states) == 1 else jax.tree.map(lambda *x: jnp.stack(x), *states)


def _batches(run: Run, seeds: Sequence[int], start: int) -> Iterator[Any]:
    """Yields this process's part of batches with a leading axis of seeds, from step `start` on."""
    for parts in zip(*(run.batches(seed, start) for seed in seeds), strict=True):
        yield jax.tree.map(lambda *x: np.stack(x), *parts)


def _stacked(batches: list[Any]) -> Any:
    """Makes of batches with axes (seed, example) one with axes (seed, step, example)."""
    return jax.tree.map(lambda *x: np.stack(x, axis=1), *batches)


def _recalibration(run: Run, seed: int, compiled: devices.Steps) -> Callable[[], Iterator[Any]]:
    """Returns what makes an iterator over the batches that statistics are recalibrated on."""

    def batches() -> Iterator[Any]:
        stream = itertools.islice(_batches(run, [seed], start=0), RECALIBRATION_BATCHES)
        for batch in stream:
            yield compiled.put_batch(jax.tree.map(lambda x: x[0], batch))

    return batches


def _batch_means(state: State, steps: int) -> dict[str, np.ndarray]:
    """Mean loss and accuracy of the batches of an epoch of so many steps."""
    sums = jax.device_get((state.loss, state.correct))
    loss, accuracy = (np.atleast_1d(total) / steps for total in sums)
    return {"batch_loss": loss, "batch_accuracy": accuracy}


def _hopeless(loss: float) -> bool:
    return not math.isfinite(loss) or loss > HOPELESS


def _diverged(run: Run, seeds: Sequence[int], step: int, checkpoints: Checkpoints) -> str:
    who = f"seed {seeds[0]}" if len(seeds) == 1 else f"one of the seeds {list(seeds)}"
    if step == 0:
        return f"{run.label}, {who}: the loss is not finite before the first step; see the data"
    message = f"{run.label} diverged, from {who} in epoch {run.epoch_of(step)} (step {step})"
    last = checkpoints.last
    return message if last is None else f"{message}; the last good checkpoint: {last}"


def _stopped(run: Run, done: int, stop: Stop, checkpoints: Checkpoints) -> Stopped:
    checkpoints.wait()
    message = f"stopped after {done} of {run.steps} steps"
    return Stopped(message, stop.number, checkpoints.last is not None)
