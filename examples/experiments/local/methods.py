"""How workers keep together: by their gradients, or by an outer step now and then.

To add a way, write a function of the configuration and the inner optimizer, and add a row.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import optax

from experiments.config import Config
from experiments.devices import AXIS
from experiments.optimizers import inner_of
from experiments.schedules import Stages
from slrla_jax import diloco, stagewise_prox

# What a worker can send: its pseudo-gradient as it is, or in fewer bits with error feedback.
SENT = ("float32", "bfloat16", "int8")


@dataclass(frozen=True)
class LocalConfig(Config):
    """The settings of a run by workers; those of `Config`, with `optimizer` a name in `METHODS`.

    A batch is that of all workers together. `inner` is the optimizer that each worker has, with
    `momentum` and `weight_decay`; `sync_period` is k, and `outer_learning_rate` and
    `outer_momentum` are η and μ of the outer step. With `beta` the worker's params are pulled
    towards those at the start of the cycle.

    Attributes:
      workers: how many there are, R.
      split: how the training examples are divided among them, a name in `shards.SPLITS`.
      send: the dtype in which pseudo-gradients are sent, one of `SENT`.
    """

    workers: int = 4
    split: str = "even"
    send: str = "float32"


@dataclass(frozen=True)
class Method:
    """A row of the registry.

    Attributes:
      label: its name in tables and plots.
      make: returns the transformation of a worker, from configuration and inner optimizer.
    """

    label: str
    make: Callable[[LocalConfig, optax.GradientTransformation], optax.GradientTransformation]


def averaging_gradients(
    config: LocalConfig, inner: optax.GradientTransformation
) -> optax.GradientTransformation:
    """The inner optimizer on the mean of all workers' gradients, so that its state is common."""
    del config
    mean = optax.stateless(lambda gradients, params: jax.lax.pmean(gradients, AXIS))
    return optax.chain(mean, inner)


def outer_steps(
    config: LocalConfig, inner: optax.GradientTransformation
) -> optax.GradientTransformation:
    """DiLoCo around the inner optimizer, which with β stays close to the start of the cycle."""
    if not (isinstance(config.beta, float) and config.beta == 0):
        inner = optax.chain(stagewise_prox(config.beta, stage_length=config.sync_period), inner)
    return diloco(
        inner,
        AXIS,
        sync_period=None,
        learning_rate=config.outer_learning_rate,
        momentum=config.outer_momentum,
        pseudo_gradient_dtype=None if config.send == "float32" else config.send,
    )


METHODS: dict[str, Method] = {
    "data_parallel": Method("data parallel", averaging_gradients),
    "local": Method("local", outer_steps),
}


def transformation(config: LocalConfig, stages: Stages) -> optax.GradientTransformationExtraArgs:
    """Returns the transformation of a worker; `update` must run where the workers are mapped."""
    tx = METHODS[config.optimizer].make(config, inner_of(config)(stages.schedule))
    return optax.with_extra_args_support(tx)
