"""The steps compiled for the devices there are.

Devices share a batch by `jax.jit` over a mesh: the compiler splits the work, and batch
normalisation sees the whole batch. Several seeds may be trained together, with a leading axis
in all that belongs to a seed.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.training.steps import (
    Batch,
    Model,
    Pool,
    State,
    Tree,
    eval_step,
    init_state,
    statistics_step,
    train_steps,
)

AXIS = "devices"


class Steps(NamedTuple):
    """Compiled steps, with the ways onto the devices and back.

    Attributes:
      count: number of devices, which batches are shared by.
      train: `train_steps` from pool, state and batches on; the state is donated.
      evaluate: `eval_step` from pool, params, stats, batch and counted on.
      statistics: `statistics_step` from pool, params, stats, batch and number on.
      put_state: a state, with a leading axis of seeds if there are several, as `train` takes it.
      put_pool: images and labels for all devices.
      put_batches: batches with leading axes (seed, step, example) as `train` takes them.
      put_batch: one batch, or what belongs to it, with a leading axis of examples.
      get_sums: what `evaluate` returns as sums over all devices, with an axis of seeds.
    """

    count: int
    train: Callable[[Pool, State, Batch], tuple[State, jax.Array]]
    evaluate: Callable[..., tuple[jax.Array, jax.Array]]
    statistics: Callable[..., Tree]
    put_state: Callable[[State], State]
    put_pool: Callable[[Pool], Pool]
    put_batches: Callable[[Batch], Batch]
    put_batch: Callable[[Batch], Batch]
    get_sums: Callable[[Tree], Any]


def seeds_together_are_faster() -> bool:
    """Whether several seeds are trained faster together than one after the other.

    On GPU and TPU they share the overhead of a step. On CPU `vmap` makes of each
    convolution a grouped one, and the seeds together take twice as long.
    """
    return jax.default_backend() != "cpu"


def steps_per_dispatch() -> int:
    """How many steps one call to the devices does.

    Accelerators would wait for Python between short steps. XLA's convolutions on CPU are
    several times slower inside a loop.
    """
    return 1 if jax.default_backend() == "cpu" else 10


def flops_per_step(
    model: Model, tx: optax.GradientTransformation, batch: Batch, pool: Pool
) -> float | None:
    """The floating-point operations of a training step, as XLA counts them before it optimises.

    Args:
      model: what is trained.
      tx: the optimizer.
      batch: shapes and dtypes of a batch.
      pool: shapes and dtypes of the images and labels that it names.

    Returns:
      A number, or None where XLA has none.
    """
    state = jax.eval_shape(lambda: init_state(model, tx, 0))
    batches = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), batch)
    cost = jax.jit(functools.partial(train_steps, model, tx)).lower(pool, state, batches)
    return (cost.cost_analysis() or {}).get("flops")


@functools.lru_cache(maxsize=1)  # The seeds of a run share the steps, and compile them once.
def compile_steps(
    model: Model,
    tx: optax.GradientTransformation,
    devices: tuple[jax.Device, ...],
    *,
    together: bool,
) -> Steps:
    """The steps for some devices, which share each batch."""
    mesh = Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))
    everywhere = NamedSharding(mesh, P())
    train = functools.partial(train_steps, model, tx)
    if together:
        train = jax.vmap(train, in_axes=(None, 0, 0))
    evaluate, statistics = _evaluation(model, together)

    def put_batches(batches: Batch) -> Batch:
        spec = P(None, None, AXIS) if together else P(None, AXIS)
        own = jax.tree.map(lambda x: x if together else x[0], batches)
        return jax.device_put(own, NamedSharding(mesh, spec))

    return Steps(
        count=len(devices),
        train=jax.jit(train, donate_argnums=1, out_shardings=everywhere),
        evaluate=evaluate,
        statistics=statistics,
        put_state=lambda state: jax.device_put(state, everywhere),
        put_pool=lambda pool: jax.device_put(pool, everywhere),
        put_batches=put_batches,
        put_batch=lambda batch: jax.device_put(batch, NamedSharding(mesh, P(AXIS))),
        get_sums=lambda sums: jax.tree.map(np.atleast_1d, jax.device_get(sums)),
    )


@functools.cache  # The optimizers of one comparison share a model, and then these.
def _evaluation(model: Model, together: bool) -> tuple[Callable[..., Any], ...]:
    evaluate = functools.partial(eval_step, model)
    statistics = functools.partial(statistics_step, model)
    if together:
        evaluate = jax.vmap(evaluate, in_axes=(None, 0, 0, None, None))
        statistics = jax.vmap(statistics, in_axes=(None, 0, 0, None, None))
    return jax.jit(evaluate), jax.jit(statistics)
