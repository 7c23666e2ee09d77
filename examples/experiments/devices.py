"""The steps, compiled for the available devices.

Devices share a batch by `jax.jit` over a mesh: the compiler splits the work, and BatchNorm sees
the whole batch. Where they belong to several processes, each of these transfers its own part of a
batch. Several seeds may be trained together; whatever belongs to a seed then has a leading axis.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.steps import (
    Batch,
    Model,
    Pool,
    State,
    Tree,
    eval_step,
    init_state,
    statistics_step,
    train_step,
)

AXIS = "devices"


class Steps(NamedTuple):
    """Compiled steps, and functions that transfer to the devices and back.

    Attributes:
      count: number of devices that share a batch, those of all processes together.
      train: takes pool, state and batches to a new state and losses; the state is donated.
      evaluate: `eval_step` of pool, params, stats, batch and counted.
      statistics: `statistics_step` of pool, params, stats, batch and number.
      put_state: transfers a state, with a leading axis of seeds if there are several.
      put_pool: transfers images and labels to all devices.
      put_batches: transfers batches with leading axes (seed, step, example) for `train`; each
        process has its part of the examples.
      put_batch: transfers one batch, or an array beside it, with a leading axis of examples;
        each process has its part of these.
      get_sums: transfers the sums of `evaluate` back, with an axis of seeds.
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
    """Says whether several seeds are trained faster together than one after the other.

    On GPU and TPU they share the overhead of a step. On CPU `vmap` turns each convolution into
    a grouped one, and the seeds take twice as long together.
    """
    return jax.default_backend() != "cpu"


def steps_per_dispatch() -> int:
    """Returns how many steps one call to the devices takes.

    Accelerators would wait for Python between short steps. On CPU, XLA's convolutions are
    several times slower inside a loop.
    """
    return 1 if jax.default_backend() == "cpu" else 10


@functools.lru_cache(maxsize=1)  # The seeds of a run have the same.
def flops_per_step(model: Model, tx: optax.GradientTransformation, batch_size: int) -> float | None:
    """Returns the floating-point operations of a training step, as XLA counts them unoptimised.

    None where XLA has no number.
    """

    def shaped(*arrays: np.ndarray) -> Pool:
        return tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays)

    pool = shaped(*model.dataset.pool("train"))
    batch: Batch = jax.ShapeDtypeStruct((batch_size,), np.int32)
    if not pool:  # Batches have images of their own.
        images = jax.ShapeDtypeStruct((batch_size, *model.dataset.image_shape), np.uint8)
        batch = images, batch
    state = jax.eval_shape(lambda: init_state(model, tx, 0))
    step = jax.jit(functools.partial(train_step, model, tx))
    return (step.lower(pool, state, batch).cost_analysis() or {}).get("flops")


def several(
    step: Callable[[Pool, State, Batch], tuple[State, jax.Array]],
    pool: Pool,
    state: State,
    batches: Batch,
) -> tuple[State, jax.Array]:
    """Takes a step for each of the batches, which have a leading axis; returns all losses."""
    if len(jax.tree.leaves(batches)[0]) == 1:
        # No loop around a single step: XLA's convolutions on CPU are slow inside one.
        state, loss = step(pool, state, jax.tree.map(lambda x: x[0], batches))
        return state, loss[None]
    return jax.lax.scan(functools.partial(step, pool), state, batches)


@functools.lru_cache(maxsize=1)  # The seeds of a run share the steps, and compile them once.
def compile_steps(
    model: Model,
    tx: optax.GradientTransformation,
    devices: tuple[jax.Device, ...],
    *,
    together: bool,
) -> Steps:
    """Compiles the steps for some devices, which share each batch."""
    mesh = Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))
    everywhere = NamedSharding(mesh, P())
    from_all_processes = jax.make_array_from_process_local_data
    train = functools.partial(several, functools.partial(train_step, model, tx))
    if together:
        train = jax.vmap(train, in_axes=(None, 0, 0))
    evaluate, statistics = _evaluation(model, together)

    def put_batches(batches: Batch) -> Batch:
        spec = P(None, None, AXIS) if together else P(None, AXIS)
        own = jax.tree.map(lambda x: x if together else x[0], batches)
        return from_all_processes(NamedSharding(mesh, spec), own)

    def put_state(state: State) -> State:
        if everywhere.is_fully_addressable:
            return jax.device_put(state, everywhere)
        # Equal states of several processes become one.
        return jax.jit(lambda whole: whole, out_shardings=everywhere)(state)

    return Steps(
        count=len(devices),
        train=jax.jit(train, donate_argnums=1, out_shardings=everywhere),
        evaluate=evaluate,
        statistics=statistics,
        put_state=put_state,
        put_pool=lambda pool: from_all_processes(everywhere, pool),
        put_batches=put_batches,
        put_batch=lambda batch: from_all_processes(NamedSharding(mesh, P(AXIS)), batch),
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
