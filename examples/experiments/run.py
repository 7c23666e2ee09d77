"""A run: everything that training needs, built from a configuration and its data."""

import bisect
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments import devices, models, processes
from experiments.config import Config, SettingError
from experiments.data import Data, Dataset, Names, Text
from experiments.devices import Steps
from experiments.evaluation import SlowParams
from experiments.optimizers import OPTIMIZERS
from experiments.schedules import Stages, stages_of, with_milestones_that_fit
from experiments.steps import Model, State


@dataclass(frozen=True)
class Run:
    """Everything that the result of a seed depends on, except the seed.

    Attributes:
      label: its name in messages.
      model: the network and its input.
      dataset: the training and test images.
      tx: the optimizer.
      stages: learning rates and lengths; together they are the steps of the run.
      epochs: spans of equally many steps; the last one lasts until the steps are done.
      steps_per_epoch: those of a span; of whole batches in the training images, unless the
        configuration says otherwise.
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
    steps_per_epoch: int
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

    def batches(self, seed: int, start: int) -> Iterator[Any]:
        """Yields this process's part of the batches of a seed, from step `start` on."""
        index, count = processes.share()
        size = self.batch_size // count
        return self.dataset.train_batches(seed, size, start, index, count)

    def compiled(self, *, together: bool) -> Steps:
        """Returns the compiled steps; of several seeds `together`, if there are."""
        return devices.compile_steps(self.model, self.tx, tuple(self.devices), together=together)

    def flops_per_step(self) -> float | None:
        """Returns the floating-point operations of a step, or None where they are not known."""
        return devices.flops_per_step(self.model, self.tx, self.batch_size)


def images_of(dataset: Data) -> Dataset:
    """Returns the data set, for programs that need images in memory.

    Raises:
      SettingError: if its examples are no images, or do not fit into memory.
    """
    if not isinstance(dataset, Dataset) or dataset.unit != "images":
        raise SettingError("dataset", f"must be of images in memory, got {dataset.name}")
    return dataset


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
            f"must be from 1 to {dataset.train_size}, the number of training {dataset.unit}, "
            f"got {config.batch_size}",
        )
    if config.batch_size % len(on):
        raise SettingError(
            "batch_size", f"must be a multiple of the {len(on)} devices, got {config.batch_size}"
        )
    if isinstance(dataset, Text | Names) and config.model not in models.OF_TEXT:
        raise SettingError(
            "model",
            f"{config.model} sees images, and {dataset.name} is text, for "
            f"{', '.join(models.OF_TEXT)}",
        )
    model = _model(config.model, dataset, config.bf16, config.input_norm)
    try:
        model.check()
    except ValueError as error:
        raise SettingError("model", f"{config.model}: {error}") from error
    optimizer = OPTIMIZERS[config.optimizer]
    per_epoch = config.epoch_steps or dataset.train_size // config.batch_size
    gradients = optimizer.gradients(config)
    steps = config.epochs * per_epoch // (gradients if config.equal == "gradients" else 1)
    if steps == 0:
        raise SettingError(
            "epochs",
            f"{config.epochs} of {per_epoch} steps each are too few for a step of "
            f"{optimizer.label}, which takes {gradients} gradients",
        )
    if config.fit_milestones:
        config = with_milestones_that_fit(config, steps, per_epoch)
    stages = stages_of(config, steps, per_epoch)
    if more_epochs and config.annealing != "none":
        raise SettingError(
            "more_epochs", "a run at whose end the learning rate is 0 cannot be extended"
        )
    longest = optimizer.longest_period(config)
    if longest > stages.steps:
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
        steps_per_epoch=per_epoch,
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


def evaluated_weights(run: Run, state: State) -> tuple[Any, Any]:
    """Returns the params to evaluate, with Lookahead the slow ones, and the statistics."""
    if run.slow_params is None:
        return state.params, state.stats
    return run.slow_params(state.opt_state, state.params), state.stats


@functools.lru_cache(maxsize=8)  # Entries of a sweep share a model, and its compiled evaluation.
def _model(name: str, dataset: Data, bf16: bool, input_norm: bool) -> Model:
    dtype = jnp.bfloat16 if bf16 else None
    make = functools.partial(
        models.NETWORKS[name], dataset.image_shape, dataset.classes, dtype=dtype
    )
    return Model(make, dataset, input_norm, name)
