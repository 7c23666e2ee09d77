"""Several devices: replicated params train as on one device, also beside a sharded state."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P
from transforms_table import assert_close, quick_jit

from slrla_jax import (
    Stage,
    adabound,
    adagrad_norm,
    adaloss,
    lookahead,
    lookbehind,
    multilayer_lookahead,
    slow_params,
    slrla,
    slrla_sgd,
    snoo,
    two_loop,
)

STEPS = 8
DEVICES = 8
BATCH = "batch"

STAGES = [Stage(1, 0.1, 0.5, 3, 0.5), Stage(2, 0.05, 1.5, 2, 0.8)]


def sgd(learning_rate=0.1):
    return optax.sgd(learning_rate, momentum=0.9)


TRANSFORMS = {
    "lookahead": lambda: lookahead(sgd(), 3, 0.5),
    "lookahead-pullback": lambda: lookahead(optax.adam(0.05), 3, 0.5, sync_moments="pullback"),
    "multilayer_lookahead": lambda: multilayer_lookahead(
        sgd(), (2, 2), (0.5, 0.6), sync_moments="reset"
    ),
    "slrla": lambda: slrla(sgd, STAGES),
    "slrla-decoupled": lambda: slrla(optax.adam, STAGES, decoupled=True),
    "slrla_sgd-shared": lambda: slrla_sgd(0.1, 0.4, None, 3, 0.5),
    "slrla_sgd-own": lambda: slrla_sgd(0.1, 0.4, 4, 3, 0.5),
    "snoo": lambda: snoo(sgd(), 3, 0.5, 0.6),
}

every_transform = pytest.mark.parametrize("name", TRANSFORMS)


@pytest.fixture(autouse=True, scope="module")
def eight_devices():
    assert jax.device_count() == DEVICES, "see tests/conftest.py"


def mesh_of(shape, axes, axis_type):
    return jax.make_mesh(shape, axes, axis_types=(axis_type,) * len(axes))


@functools.cache
def data():
    """Params, and one global batch of inputs and targets for each step."""
    keys = jax.random.split(jax.random.key(0), 3)
    params = {"w": 0.3 * jax.random.normal(keys[0], (8, 4)), "b": jnp.zeros(4)}
    inputs = jax.random.normal(keys[1], (STEPS, 16, 8))
    targets = jax.random.normal(keys[2], (STEPS, 16, 4))
    return jax.tree.map(np.asarray, (params, inputs, targets))


def fresh_params():
    return jax.tree.map(jnp.array, data()[0])


def loss(params, inputs, targets):
    return jnp.mean((jnp.tanh(inputs @ params["w"] + params["b"]) - targets) ** 2)


def train(step, tx, params, place=lambda batch: batch, state=None):
    """The params and slow weights after every step, on the host."""
    state = tx.init(params) if state is None else state
    seen = []
    for inputs, targets in zip(*data()[1:], strict=True):
        params, state = step(params, state, place(inputs), place(targets))
        seen.append(jax.device_get((params, slow_params(state, params))))
    return seen


def step_of(tx, mean=lambda grads: grads, wrt=lambda params: params):
    def step(params, state, inputs, targets):
        grads = mean(jax.grad(loss)(wrt(params), inputs, targets))
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


@functools.cache
def on_one_device(name):
    tx = TRANSFORMS[name]()
    return train(quick_jit(step_of(tx)), tx, fresh_params())


def assert_as_on_one_device(seen, name):
    for now, expected in zip(seen, on_one_device(name), strict=True):
        assert_close(now, expected, rtol=1e-4, atol=2e-6)


@every_transform
def test_the_steps_cover_several_syncs(name):
    # The other tests compare with these runs, so they must have syncs and steps in between.
    syncs = sum((params["w"] == slow["w"]).all() for params, slow in on_one_device(name))
    assert 2 <= syncs < STEPS


# One global batch over replicated params.


@pytest.mark.parametrize(
    "name",
    ["lookahead", "multilayer_lookahead", "slrla", "slrla_sgd-shared", "slrla_sgd-own", "snoo"],
)
def test_pmap(name):
    tx = TRANSFORMS[name]()

    def mean(grads):
        return jax.lax.pmean(grads, BATCH)

    def replicated(x):
        return np.stack([x] * DEVICES)

    def split(batch):
        return batch.reshape(DEVICES, -1, *batch.shape[1:])

    params, state = jax.tree.map(replicated, (data()[0], tx.init(fresh_params())))
    seen = train(jax.pmap(step_of(tx, mean), axis_name=BATCH), tx, params, split, state)
    for device in range(DEVICES):
        assert_as_on_one_device(jax.tree.map(lambda x, i=device: x[i], seen), name)


@every_transform
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_named_sharding(name, axis_type):
    tx = TRANSFORMS[name]()
    mesh = mesh_of((DEVICES,), (BATCH,), axis_type)

    def split(batch):
        return jax.device_put(batch, NamedSharding(mesh, P(BATCH)))

    with jax.set_mesh(mesh):
        params = jax.device_put(data()[0], NamedSharding(mesh, P()))
        seen = train(quick_jit(step_of(tx)), tx, params, split)
    assert_as_on_one_device(seen, name)


@every_transform
def test_shard_map(name):
    tx = TRANSFORMS[name]()
    mesh = mesh_of((DEVICES,), (BATCH,), AxisType.Auto)

    def wrt(params):
        # Gradients with respect to unvarying params would be summed over the axis.
        return jax.tree.map(lambda p: jax.lax.pcast(p, BATCH, to="varying"), params)

    def mean(grads):
        return jax.lax.pmean(grads, BATCH)

    step = quick_jit(
        jax.shard_map(
            step_of(tx, mean, wrt),
            mesh=mesh,
            in_specs=(P(), P(), P(BATCH), P(BATCH)),
            out_specs=(P(), P()),
        )
    )
    assert_as_on_one_device(train(step, tx, fresh_params()), name)


# Sharded states.

SHARDED_STATES = TRANSFORMS | {
    "lookahead-reset": lambda: lookahead(optax.adam(0.05), 3, 0.5, sync_moments="reset"),
    "lookahead-slow_dtype": lambda: lookahead(sgd(), 3, 0.5, slow_dtype="float32"),
    "snoo-slow_dtype": lambda: snoo(sgd(), 3, 0.5, 0.5, slow_dtype="float32"),
    "two_loop-adam": lambda: two_loop(sgd(), optax.adam(0.05), 3, sync_moments="reset"),
    "traced α": lambda: lookahead(sgd(), 3, lambda step: 1.0 - 0.5 * (step < 20)),
    "lookbehind": lambda: lookbehind(sgd(), 2, 0.1, 0.5, adaptive_rho=True),
    "adabound": lambda: adabound(0.05, weight_decay=0.01),
    "adaloss": lambda: adaloss(0.05, momentum=0.9),
    "adagrad_norm": lambda: adagrad_norm(0.05, momentum=0.9),
}


@pytest.mark.parametrize("name", SHARDED_STATES)
def test_a_sharded_state_beside_replicated_params(name):
    """ZeRO-1, with the Explicit axes that `jax.make_mesh` has by default."""
    tx = optax.with_extra_args_support(SHARDED_STATES[name]())
    dtype = "bfloat16" if "slow_dtype" in name else "float32"
    mesh = mesh_of((DEVICES,), ("x",), AxisType.Explicit)

    def train(params, state):
        for _ in range(4):
            grads = jax.tree.map(jnp.sin, params)
            extra = {"value": 1.0, "grad_fn": lambda p, i: jax.tree.map(jnp.sin, p)}
            updates, state = quick_jit(lambda g, s, p, e=extra: tx.update(g, s, p, **e))(
                grads, state, params
            )
            params = optax.apply_updates(params, updates)
        return params, state

    params = jax.tree.map(lambda p: jnp.asarray(p, dtype), data()[0])
    expected, _ = train(params, tx.init(params))
    with jax.set_mesh(mesh):
        params = jax.device_put(params, NamedSharding(mesh, P()))

        def sharded(leaf):
            return jax.sharding.reshard(leaf, P("x") if leaf.ndim == 2 else P())

        state = jax.tree.map(sharded, tx.init(params))
        where = jax.tree.map(lambda leaf: leaf.sharding, state)
        moved, state = train(params, state)
        assert jax.tree.map(lambda leaf: leaf.sharding, state) == where
        if "slow" in name or name in TRANSFORMS:
            jax.block_until_ready(slow_params(state, moved))
    rtol = 0.02 if dtype == "bfloat16" else 1e-5
    assert_close(jax.device_get(moved), jax.device_get(expected), rtol=rtol, atol=1e-6)


def test_init_on_one_of_the_devices():
    device = jax.devices()[3]
    params = jax.device_put(data()[0], device)
    state = lookahead(sgd()).init(params)
    for leaf in jax.tree.leaves(state.cycle_start_params):
        assert leaf.sharding == SingleDeviceSharding(device)
