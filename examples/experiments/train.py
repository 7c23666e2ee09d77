"""Training: one seed, or several together, from the first epoch to the last.

`run_of` builds what a configuration asks for, and `train` is the loop.
"""

import bisect
import collections
import functools
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import devices, models
from experiments.checkpoints import Checkpoints, NoCheckpoints
from experiments.config import Config, SettingError
from experiments.data import Data
from experiments.evaluation import RECALIBRATION_BATCHES, SlowParams, evaluate
from experiments.optimizers import OPTIMIZERS
from experiments.schedules import Stages, stages_of, with_milestones_that_fit
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


@dataclass(frozen=True)
class Run:
    """Everything that the result of a seed depends on, except the seed.

    Attributes:
      label: its name in messages.
      model: the network and its input.
      dataset: the training and test images.
      tx: the optimizer.
      stages: learning rates and lengths; together they are the steps of the run.
      epochs: passes over the training images; the last one lasts until the steps are done.
      batch_size: examples in a batch, over all devices.
      slow_params: reads the weights to evaluate from optimizer state and params; None if those
        are the params themselves.
      eval_every: epochs between two evaluations; the first and the last epoch always have one.
      recalibrate: whether the slow weights are also evaluated with recalibrated statistics.
      gradients_per_step: how many gradients a step takes, for the records.
      more_epochs: how many of the epochs extend a run that was finished without them. Each of
        these has the steps of an epoch, and they come after all steps of the run.
      devices: which share a batch; all there are unless others are given.
      steps_per_dispatch: how many steps are compiled into one call.
    """

    label: str
    model: Model
    dataset: Data
    tx: optax.GradientTransformation
    stages: Stages
    epochs: int
    batch_size: int
    slow_params: SlowParams | None = None
    eval_every: int = 1
    recalibrate: bool = False
    gradients_per_step: int = 1
    more_epochs: int = 0
    devices: Sequence[jax.Device] = field(default_factory=jax.devices)
    steps_per_dispatch: int = 1

    @property
    def steps(self) -> int:
        """Training steps in all."""
        return self.stages.steps

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in the training images."""
        return self.dataset.train_size // self.batch_size

    @property
    def steps_before(self) -> int:
        """Steps of the run before it was extended."""
        return self.end_of(self.epochs - self.more_epochs)

    def end_of(self, epoch: int) -> int:
        """Returns the step with which an epoch ends."""
        if epoch < self.epochs - self.more_epochs:
            return epoch * self.steps_per_epoch
        return self.steps - (self.epochs - epoch) * self.steps_per_epoch

    def epoch_of(self, step: int) -> int:
        """Returns the epoch of a step, both counted from 1."""
        return bisect.bisect_left(range(self.epochs), step, key=self.end_of)

    def learning_rate(self, step: int) -> float:
        """Returns the learning rate of a step, counted from 1."""
        return float(self.stages.schedule(max(step - 1, 0)))

    def evaluated(self, epoch: int) -> bool:
        """Says whether an epoch ends with an evaluation."""
        return epoch % self.eval_every == 0 or epoch == self.epochs


def run_of(
    config: Config,
    dataset: Data,
    *,
    label: str = "",
    more_epochs: int = 0,
    on: Sequence[jax.Device] | None = None,
) -> Run:
    """Builds what a configuration asks for.

    Args:
      config: the configuration.
      dataset: its data set, with as many training images as it says.
      label: a name for messages.
      more_epochs: epochs by which a finished run is extended, in its last stage.
      on: the devices that share a batch; None for all.

    Raises:
      SettingError: if the batch size, the network, the stages or the sync period do not fit the
        data and the length of the run.
    """
    on = jax.devices() if on is None else on
    if not 0 < config.batch_size <= dataset.train_size:
        raise SettingError(
            "batch_size",
            f"must be from 1 to {dataset.train_size}, the number of training images, "
            f"got {config.batch_size}",
        )
    if config.batch_size % len(on):
        raise SettingError(
            "batch_size", f"must be a multiple of the {len(on)} devices, got {config.batch_size}"
        )
    model = _model(config.model, dataset, config.bf16, config.input_norm)
    try:
        model.check()
    except ValueError as error:
        raise SettingError("model", f"{config.model}: {error}") from error
    optimizer = OPTIMIZERS[config.optimizer]
    per_epoch = dataset.train_size // config.batch_size
    gradients = optimizer.gradients(config)
    steps = config.epochs * per_epoch // (gradients if config.equal == "gradients" else 1)
    if steps == 0:
        raise SettingError(
            "epochs",
            f"{config.epochs} with {per_epoch} batches each are too few for a step of "
            f"{optimizer.label}, which takes {gradients} gradients",
        )
    if config.fit_milestones:
        config = with_milestones_that_fit(config, steps, per_epoch)
    stages = stages_of(config, steps, per_epoch)
    longest = max(config.each_stage("sync_period"))
    if "sync_period" in optimizer.settings and longest > stages.steps:
        raise SettingError(
            "sync_period", f"a run of {stages.steps} steps never syncs with a period of {longest}"
        )
    return Run(
        label=label or optimizer.label,
        model=model,
        dataset=dataset,
        tx=optimizer.make(config, stages),
        stages=stages.longer(more_epochs * per_epoch),
        epochs=-(-steps // per_epoch) + more_epochs,
        batch_size=config.batch_size,
        slow_params=optimizer.slow_params,
        eval_every=config.eval_every,
        recalibrate=config.recalibrate
        and optimizer.slow_params is not None
        and model.has_statistics,
        gradients_per_step=gradients,
        more_epochs=more_epochs,
        devices=on,
        steps_per_dispatch=devices.steps_per_dispatch(),
    )


@functools.lru_cache(maxsize=8)  # Entries of a sweep share a model, and its compiled evaluation.
def _model(name: str, dataset: Data, bf16: bool, input_norm: bool) -> Model:
    dtype = jnp.bfloat16 if bf16 else None
    make = functools.partial(
        models.NETWORKS[name], dataset.image_shape, dataset.classes, dtype=dtype
    )
    return Model(make, dataset, input_norm, name)


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


def evaluated_weights(run: Run, state: State) -> tuple[Any, Any]:
    """Returns the params to evaluate, with Lookahead the slow ones, and the statistics."""
    if run.slow_params is None:
        return state.params, state.stats
    return run.slow_params(state.opt_state, state.params), state.stats


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
    compiled = devices.compile_steps(run.model, run.tx, tuple(run.devices), together=len(seeds) > 1)
    pools = {split: compiled.put_pool(run.dataset.pool(split)) for split in ("train", "test")}
    state = _together([start(run.model, run.tx, seed) for seed in seeds])
    done, state, records = checkpoints.restore(state) or (0, state, [])
    state = compiled.put_state(state)
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
    """Yields batches with a leading axis of seeds, from step `start` on."""
    streams = [run.dataset.train_batches(seed, run.batch_size, start) for seed in seeds]
    for parts in zip(*streams, strict=True):
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
