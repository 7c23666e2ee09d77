"""The cycle of a worker, and two ways to run those of all workers.

    state, loss = over_devices(cycle, own, mesh)(pool, state, batches)
    state, loss = on_one_device(cycle, own, workers)(pool, state, batches)

A state is that of any training (`steps.State`), in which the leaves that are each worker's own have
a leading axis of workers. All others are common to them.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from experiments import devices
from experiments.devices import AXIS, Steps
from experiments.local.methods import LocalConfig, transformation
from experiments.schedules import stages_of
from experiments.steps import Batch, Model, Pool, State, Tree, init_state, train_step
from slrla_jax import TwoLoopState, slow_params

# Settings that may differ between runs of one compiled program. What is 0 is left out of it.
TRACED = ("learning_rate", "outer_learning_rate", "outer_momentum", "beta")

ANY = 0.5
OWN = ("inner_state", "residual")

Traced = dict[str, Any]
Cycle = Callable[[Traced, Pool, State, Batch], tuple[State, jax.Array]]


def cycle(
    model: Model, tx: optax.GradientTransformation, pool: Pool, state: State, batches: Batch
) -> tuple[State, jax.Array]:
    """Takes the steps of a cycle, the last of which syncs, where the workers are mapped.

    Args:
      model: the network.
      tx: as `methods.transformation` makes it.
      pool: images and labels that batches refer to.
      state: that of a worker. Params, and everything else but its own part of the optimizer's
        state, are those of all.
      batches: the worker's own, with a leading axis of steps.

    Returns:
      The new state, whose params are the slow weights θ, if there are any; and the mean loss over
      steps and workers.
    """
    before = state
    state = state._replace(key=jax.random.fold_in(state.key, jax.lax.axis_index(AXIS)))
    plain, syncing = (
        functools.partial(train_step, model, with_sync(tx, sync), pool) for sync in (False, True)
    )
    steps = len(jax.tree.leaves(batches)[0])
    if steps > 1:  # XLA would compile an empty loop, too.
        state, _ = jax.lax.scan(plain, state, jax.tree.map(lambda x: x[:-1], batches))
    state, _ = syncing(state, jax.tree.map(lambda x: x[-1], batches))
    loss, correct = jax.lax.pmean((state.loss, state.correct), AXIS)
    params = state.params
    if isinstance(state.opt_state, TwoLoopState):
        params = slow_params(state.opt_state, params)
    state = state._replace(params=params, key=before.key, loss=loss, correct=correct)
    return state, (loss - before.loss) / steps


def with_sync(
    tx: optax.GradientTransformationExtraArgs, sync: bool
) -> optax.GradientTransformationExtraArgs:
    """Returns the transformation with its `sync` given."""
    return optax.GradientTransformationExtraArgs(tx.init, functools.partial(tx.update, sync=sync))


def own_part(state: State) -> Tree:
    """Says of each leaf of a state whether it is each worker's own.

    That are the inner state, and the residual of what is sent in few bits.
    """
    own = jax.tree.map(lambda _: False, state)
    if isinstance(state.opt_state, TwoLoopState):
        mine = {name: getattr(state.opt_state, name) for name in OWN}
        mine = jax.tree.map(lambda _: True, mine)
        own = own._replace(opt_state=own.opt_state._replace(**mine))
    return own


def on_one_device(cycle: Cycle, own: Tree, workers: int) -> Cycle:
    """Returns the cycle of all workers by `jax.vmap`, from batches of all of them."""
    axes = jax.tree.map(lambda mine: 0 if mine else None, own)
    mapped = jax.vmap(cycle, in_axes=(None, None, axes, 1), out_axes=(axes, None), axis_name=AXIS)

    def divided(x: jax.Array) -> jax.Array:
        return x.reshape(len(x), workers, -1, *x.shape[2:])

    return lambda traced, pool, state, batches: mapped(
        traced, pool, state, jax.tree.map(divided, batches)
    )


def over_devices(cycle: Cycle, own: Tree, mesh: Mesh | AbstractMesh) -> Cycle:
    """Returns the cycle of all workers by `jax.shard_map`, each on a device of a mesh.

    Without `check_vma` gradients are a worker's own, as under vmap. That what is common comes
    out equal is checked there, by `out_axes`, for the same function.
    """
    specs = jax.tree.map(lambda mine: P(AXIS) if mine else P(), own)

    def worker(traced: Traced, pool: Pool, state: State, batches: Batch) -> tuple[State, jax.Array]:
        state = jax.tree.map(lambda mine, x: x[0] if mine else x, own, state)
        state, loss = cycle(traced, pool, state, batches)
        return jax.tree.map(lambda mine, x: x[None] if mine else x, own, state), loss

    return jax.shard_map(
        worker,
        mesh=mesh,
        in_specs=(P(), P(), specs, P(None, AXIS)),
        out_specs=(specs, P()),
        check_vma=False,
    )


def divided_settings(config: LocalConfig) -> tuple[LocalConfig, Traced]:
    """Returns what a program is compiled for, and the settings that it takes as arguments."""
    values = {name: getattr(config, name) for name in TRACED}
    traced = {name: np.float32(value) for name, value in values.items() if value != 0}
    return replace(config, **dict.fromkeys(traced, ANY)), traced


def cycle_of(model: Model, config: LocalConfig, steps: int) -> Cycle:
    """Returns the cycle of a run of so many steps, from the settings that are traced."""

    def one(traced: Traced, *others: Any) -> tuple[State, jax.Array]:
        whole = replace(config, **traced)
        return cycle(model, transformation(whole, stages_of(whole, steps, epoch=1)), *others)

    return one


def state_of(model: Model, config: LocalConfig, steps: int) -> State:
    """Returns shapes and dtypes of a worker's state."""
    tx = transformation(config, stages_of(config, steps, epoch=1))
    return jax.eval_shape(lambda: init_state(model, tx, 0))


@functools.lru_cache(maxsize=4)  # Runs that differ in what is traced share them.
def compile_cycles(
    model: Model, config: LocalConfig, steps: int, on: Sequence[jax.Device]
) -> tuple[Cycle, Steps]:
    """Compiles the cycles of all workers, each on a device or all on one.

    Args:
      model: the network.
      config: with any values of the settings that are traced.
      steps: of the run.
      on: the devices.

    Returns:
      The cycles, which the state is donated to; and `devices.Steps` without them, in which a
      state is transferred with its own part for each worker.
    """
    own = own_part(state_of(model, config, steps))
    mesh = Mesh(np.array(on), (AXIS,), axis_types=(AxisType.Auto,))
    one = cycle_of(model, config, steps)
    alone = len(on) == 1
    cycles = on_one_device(one, own, config.workers) if alone else over_devices(one, own, mesh)
    shardings = jax.tree.map(lambda mine: NamedSharding(mesh, P(AXIS) if mine else P()), own)

    def spread(state: State) -> State:
        def copies(x: jax.Array) -> jax.Array:
            return jnp.broadcast_to(x, (config.workers, *x.shape))

        return jax.tree.map(lambda mine, x: copies(x) if mine else x, own, state)

    around = devices.compile_steps(model, optax.identity(), tuple(on), together=False)
    compiled = jax.jit(cycles, donate_argnums=2, out_shardings=(shardings, None))
    return compiled, around._replace(put_state=jax.jit(spread, out_shardings=shardings))
