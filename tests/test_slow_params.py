"""Reading the slow weights from any optimizer state, at any point of the cycle."""

import dataclasses
import functools
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from flax import linen, nnx
from flax.core import FrozenDict
from flax.training import train_state
from transforms_table import PARAMS, STEPS, assert_close, at_steps, gradients, quick_jit, run

from slrla_jax import (
    lookahead,
    multilayer_lookahead,
    slow_params,
    slrla_sgd,
    snoo,
    stagewise_prox,
)

INNER = optax.sgd(0.1)
INF = jnp.inf


@functools.cache
def alone():
    """A run of `lookahead(INNER, 3, 0.5)` from `PARAMS`, with its slow weights tracked by hand."""
    path, slow = [], []
    params = theta = PARAMS
    for i in range(STEPS):
        params = jax.tree.map(lambda p, g: p - 0.1 * np.asarray(g), params, gradients(params, i))
        if i % 3 == 2:
            params = theta = jax.tree.map(lambda t, p: t + 0.5 * (p - t), theta, params)
        path.append(params)
        slow.append(theta)
    return tuple(jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees) for trees in (path, slow))


def down_a_slope(tx, steps, params=0.0):
    """The params and slow weights after every step along a constant gradient of one."""
    seen = run(tx, jnp.array(params), steps, grads=lambda params, i: jnp.ones_like(params))
    return np.asarray(seen.params), np.asarray(seen.slow)


def everywhere(tree):
    return jax.tree.map(lambda _: True, tree)


PLACES = {
    "alone": lambda tx: tx,
    "chain": lambda tx: optax.chain(optax.clip_by_global_norm(INF), tx),
    "chain in chain": lambda tx: optax.chain(optax.identity(), optax.chain(tx, optax.identity())),
    "named_chain": lambda tx: optax.named_chain(("clip", optax.clip(INF)), ("it", tx)),
    "masked": lambda tx: optax.masked(tx, everywhere),
    "multi_transform": lambda tx: optax.multi_transform(
        {"it": tx}, lambda params: jax.tree.map(lambda _: "it", params)
    ),
    "partition": lambda tx: optax.partition({"it": tx}, {"w": "it", "b": "it"}),
    "inject_hyperparams": lambda tx: optax.inject_hyperparams(lambda unused: tx)(1.0),
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
    "conditionally_transform": lambda tx: optax.conditionally_transform(tx, lambda step: True),
    "MultiSteps": lambda tx: optax.MultiSteps(tx, 1).gradient_transformation(),
    "masked in chain in MultiSteps": lambda tx: optax.MultiSteps(
        optax.chain(optax.identity(), optax.masked(tx, everywhere)), 1
    ).gradient_transformation(),
}


@pytest.mark.parametrize("place", PLACES)
def test_in_every_wrapper(place):
    seen = run(PLACES[place](lookahead(INNER, 3, 0.5)))
    assert_close((seen.params, seen.slow), alone())


@pytest.mark.parametrize("place", PLACES)
def test_of_two_loops_in_every_wrapper(place):
    """Without momentum, the same weights as those of Lookahead."""
    seen = run(PLACES[place](snoo(INNER, 3, 0.5, 0.0)))
    assert_close((seen.params, seen.slow), alone())


def test_between_two_steps_of_multi_steps():
    tx = optax.MultiSteps(lookahead(INNER, 3, 0.5), 2)
    seen = run(
        tx.gradient_transformation(),
        steps=2 * STEPS,
        grads=lambda params, i: gradients(params, i // 2),
    )
    params, slow = alone()
    assert_close(at_steps(seen, np.arange(1, 2 * STEPS, 2))[:2], (params, slow))
    between = at_steps(seen, np.arange(2, 2 * STEPS, 2))
    assert_close(between.slow, jax.tree.map(lambda path: path[:-1], slow))


def test_before_the_first_step_they_are_the_params():
    params = {"w": jnp.array([1.0, 2.0])}
    state = lookahead(INNER).init(params)
    np.testing.assert_array_equal(slow_params(state, params)["w"], [1, 2])
    # Also if the params have been changed since.
    changed = {"w": jnp.array([3.0, 4.0])}
    np.testing.assert_array_equal(slow_params(state, changed)["w"], [3, 4])


def test_changed_params_after_a_sync_and_within_a_cycle():
    tx, params = lookahead(optax.sgd(1.0), 2, 0.5), jnp.array(0.0)
    state = tx.init(params)
    for _ in range(2):
        updates, state = tx.update(jnp.ones(()), state, params)
        params = optax.apply_updates(params, updates)
    assert slow_params(state, params) == params == -1
    assert slow_params(state, jnp.array(5.0)) == 5
    updates, state = tx.update(jnp.ones(()), state, jnp.array(5.0))
    assert slow_params(state, jnp.array(4.0)) == 5
    assert slow_params(state, jnp.array(9.0)) == 5


def test_groups_with_different_settings():
    params = {"w": PARAMS["w"], "b": PARAMS["b"], "c": np.ones(3, np.float32)}
    groups = {
        "w": lookahead(optax.sgd(0.1), 2, 0.5),
        "b": lookahead(optax.adam(0.1), 3, 0.3),
        "c": optax.sgd(0.2),
    }
    tx = optax.partition(groups, {"w": "w", "b": "b", "c": "c"})
    seen = run(tx, {name: jnp.array(p) for name, p in params.items()})
    for name in ("w", "b"):
        apart = run(groups[name], {name: jnp.array(params[name])})
        assert_close(seen.params[name], apart.params[name])
        assert_close(seen.slow[name], apart.slow[name])
    np.testing.assert_array_equal(seen.slow["c"], seen.params["c"])


def test_leaves_outside_every_lookahead_are_those_of_the_params():
    params = {"a": jnp.ones(2), "b": [jnp.ones(3), None], "c": jnp.arange(2), "d": np.ones(2)}
    labels = {"a": "slow", "b": "fast", "c": "frozen", "d": "fast"}
    tx = optax.partition(
        {"slow": lookahead(INNER), "fast": INNER, "frozen": optax.set_to_zero()}, labels
    )
    state = tx.init(params)
    updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
    params = optax.apply_updates(params, updates)
    params["d"] = np.zeros(2)
    slow = slow_params(state, params)
    assert slow["b"][1] is None
    for ours, theirs in (
        (slow["b"][0], params["b"][0]),
        (slow["c"], params["c"]),
        (slow["d"], params["d"]),
    ):
        np.testing.assert_array_equal(ours, theirs)
        assert type(ours) is type(theirs)
        assert ours is not theirs
    np.testing.assert_array_equal(slow["a"], 1)
    np.testing.assert_allclose(params["a"], 0.9)

    masked = optax.masked(lookahead(INNER), {"a": True, "b": False, "c": False, "d": False})
    slow = slow_params(masked.init(params), params)
    np.testing.assert_array_equal(slow["b"][0], params["b"][0])


# Params that another transformation has rearranged.


@pytest.mark.parametrize("place", ["alone", "chain", "MultiSteps"])
def test_inside_flatten(place):
    for tx in (lookahead(INNER, 3, 0.5), snoo(INNER, 3, 0.5, 0.0)):
        seen = run(PLACES[place](optax.flatten(tx)))
        assert_close((seen.params, seen.slow), alone())


def test_inside_flatten_in_the_dtypes_of_the_params():
    params = {"w": jnp.ones((2, 3), jnp.bfloat16), "b": jnp.zeros(2)}
    state = optax.flatten(lookahead(INNER)).init(params)
    assert_close(slow_params(state, params), params)
    narrow = {"w": params["w"], "b": jnp.zeros(2, jnp.bfloat16)}
    state = optax.flatten(lookahead(INNER, slow_dtype="float32")).init(narrow)
    dtypes = jax.tree.map(lambda leaf: leaf.dtype.name, slow_params(state, narrow))
    assert dtypes == {"w": "float32", "b": "float32"}


def test_inside_flatten_replicated_by_vmap():
    tx = optax.flatten(lookahead(optax.sgd(1.0), 2, 0.5))

    def train(start):
        params = {"w": jnp.full((2, 3), start), "b": jnp.zeros(4)}
        state = tx.init(params)
        for _ in range(3):
            updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
            params = optax.apply_updates(params, updates)
        return params, state

    params, state = jax.vmap(train)(jnp.array([0.0, 5.0]))
    slow = slow_params(state, params)
    np.testing.assert_array_equal(slow["w"], np.full((2, 2, 3), [[[-1.0]], [[4.0]]]))
    np.testing.assert_array_equal(slow["b"], np.full((2, 4), -1.0))


def test_inside_split_real_and_imaginary():
    start = {"z": jnp.array([1 + 2j, -3j]), "real": jnp.array([0.5, 2.0])}

    def grads(params, i):
        return jax.tree.map(lambda p: p * (1 + i), params)

    inside = optax.contrib.split_real_and_imaginary(lookahead(INNER, 3, 0.5))
    expected = run(lookahead(INNER, 3, 0.5), start, grads=grads)
    assert_close(run(inside, start, grads=grads)[:2], expected[:2])


class KeyValue(NamedTuple):
    key: Any
    value: Any


class Value(NamedTuple):
    value: Any


@pytest.mark.parametrize(
    ("made_for", "read_with"),
    [
        (KeyValue, lambda key, value: {"key": key, "value": value}),
        (lambda key, value: {"key": key, "value": value}, KeyValue),
        (lambda a, b: [Value(a), b], lambda a, b: [{"value": a}, b]),
        (lambda a, b: [Value(a), b], lambda a, b: [a, Value(b)]),
    ],
)
def test_a_field_called_value_is_a_field(made_for, read_with):
    a, b = jnp.ones(2), jnp.zeros(3)
    params = made_for(a, b)
    _, state = lookahead(INNER).update(params, lookahead(INNER).init(params), params)
    assert_close(slow_params(state, read_with(a + 1, b + 1)), read_with(a, b))


# Nested lookaheads.

BY_HAND = lookahead(lookahead(optax.sgd(1.0), 2, 0.5), 4, 0.5)


@pytest.mark.parametrize(
    "tx",
    [
        BY_HAND,
        multilayer_lookahead(optax.sgd(1.0), (2, 2), (0.5, 0.5)),
        optax.chain(optax.identity(), BY_HAND),
        lookahead(optax.chain(lookahead(optax.sgd(1.0), 2, 0.5), optax.identity()), 4, 0.5),
        lookahead(
            optax.MultiSteps(lookahead(optax.sgd(1.0), 2, 0.5), 1).gradient_transformation(), 4, 0.5
        ),
    ],
    ids=["by hand", "multilayer", "in a chain", "chain between", "MultiSteps between"],
)
def test_the_outermost_of_nested_lookaheads_counts(tx):
    params, slow = down_a_slope(tx, 8)
    np.testing.assert_array_equal(params, [-1, -1, -2, -1, -2, -2, -3, -2])
    np.testing.assert_array_equal(slow, [0, 0, 0, -1, -1, -1, -1, -2])


def test_the_outermost_of_nested_lookaheads_counts_where_it_applies():
    inner = lookahead(optax.sgd(1.0), 2, 0.5)
    outer = lookahead(optax.masked(inner, {"a": True, "b": False}), 4, 0.5)
    state = outer.init({"a": jnp.zeros(1), "b": jnp.zeros(1)})
    params = {"a": jnp.full(1, 7.0), "b": jnp.full(1, 8.0)}
    _, state = outer.update({"a": jnp.ones(1), "b": jnp.ones(1)}, state, params)
    slow = slow_params(state, {"a": jnp.zeros(1), "b": jnp.zeros(1)})
    assert_close(slow, params)


# Flax.


def test_from_linens_train_state():
    model = linen.Dense(2)
    inputs = jax.random.normal(jax.random.key(1), (4, 3))
    params = model.init(jax.random.key(0), inputs)["params"]
    tx = optax.chain(optax.identity(), lookahead(INNER, 3, 0.5))
    state = train_state.TrainState.create(apply_fn=model.apply, params=params, tx=tx)
    expected = run(lookahead(INNER, 3, 0.5), params)
    for i in range(4):
        state = state.apply_gradients(grads=gradients(state.params, i))
        slow = slow_params(state.opt_state, state.params)
        now = jax.tree.map(lambda path, i=i: path[i], expected.slow)
        assert_close(slow, now)
        np.testing.assert_allclose(
            state.apply_fn({"params": slow}, inputs), inputs @ now["kernel"] + now["bias"], 1e-5
        )


class Net(nnx.Module):
    """Two layers of params, and a statistic that is not a param."""

    def __init__(self, rngs: nnx.Rngs):
        self.layers = nnx.List([nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)])
        self.calls = nnx.BatchStat(jnp.zeros(()))

    def __call__(self, x):
        for layer in self.layers:
            x = jnp.tanh(layer(x))
        return x


@pytest.mark.parametrize("chained", [False, True])
def test_from_an_nnx_optimizer(chained):
    model = Net(nnx.Rngs(0))
    inputs = jax.random.normal(jax.random.key(1), (4, 3))
    tx = lookahead(optax.adam(0.1), 3, 0.5)
    optimizer = nnx.Optimizer(
        model, optax.chain(optax.clip(INF), tx) if chained else tx, wrt=nnx.Param
    )
    start = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    expected = run(tx, start).slow

    for i in range(-1, 4):
        if i >= 0:
            optimizer.update(model, gradients(nnx.state(model, nnx.Param), i))
        now = jax.tree.map(lambda path, i=i: path[i], expected) if i >= 0 else start

        params = nnx.state(model, nnx.Param)
        slow = slow_params(optimizer.opt_state, params)
        assert jax.tree.structure(slow) == jax.tree.structure(params)
        assert_close(nnx.to_pure_dict(slow), now)

        pure = nnx.as_pure(params)
        slow_of_pure = slow_params(nnx.as_pure(optimizer.opt_state), pure)
        assert jax.tree.structure(slow_of_pure) == jax.tree.structure(pure)
        half_pure = slow_params(optimizer.opt_state, pure)
        for tree in (slow_of_pure, half_pure):
            assert_close(jax.tree.leaves(tree), jax.tree.leaves(now))

        graphdef, _, rest = nnx.split(model, nnx.Param, ...)
        hidden = jnp.tanh(inputs @ now["layers"][0]["kernel"] + now["layers"][0]["bias"])
        outputs = jnp.tanh(hidden @ now["layers"][1]["kernel"] + now["layers"][1]["bias"])
        np.testing.assert_allclose(nnx.merge(graphdef, slow, rest)(inputs), outputs, 1e-5, 1e-6)


# The returned tree.


class Pair(NamedTuple):
    value: Any
    name: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Box:
    value: Any
    key: Any


@pytest.mark.parametrize(
    "params",
    [
        {"w": jnp.ones(2), "b": {"c": jnp.zeros(1)}},
        (jnp.ones(2), [jnp.zeros(1), ()]),
        FrozenDict({"w": jnp.ones(2), "b": FrozenDict({"c": jnp.zeros(1)})}),
        Pair(jnp.ones(2), Pair(jnp.zeros(1), jnp.ones(3))),
        {"value": jnp.ones(2), "w": {"value": jnp.zeros(1), "key": jnp.ones(3)}},
        Box(Box(jnp.ones(2), jnp.zeros(1)), {"value": jnp.ones(3)}),
        [Box(jnp.ones(2), None), None, Pair({}, jnp.ones(()))],
        jnp.ones(2),
        {},
    ],
    ids=[
        *("dict", "tuple and list", "FrozenDict", "NamedTuple", "dict of values", "dataclass"),
        *("mixed", "leaf", "empty"),
    ],
)
def test_in_the_containers_of_the_params(params):
    tx = lookahead(INNER)
    state = tx.init(params)
    grads = jax.tree.map(jnp.ones_like, params)
    updates, state = tx.update(grads, state, params)
    slow = slow_params(state, optax.apply_updates(params, updates))
    assert jax.tree.structure(slow) == jax.tree.structure(params)
    assert_close(slow, params)


def test_the_params_may_have_other_containers_than_at_init():
    # As when a checkpoint library or Flax returns a tree in its own containers.
    params = {"a": jnp.ones(2), "b": [jnp.zeros(1), jnp.ones(3)]}
    state = lookahead(INNER).init(params)
    _, state = lookahead(INNER).update(jax.tree.map(jnp.ones_like, params), state, params)
    other = FrozenDict({"a": jnp.full(2, 5.0), "b": (jnp.full(1, 5.0), jnp.full(3, 5.0))})
    slow = slow_params(state, other)
    assert jax.tree.structure(slow) == jax.tree.structure(other)
    assert_close(jax.tree.leaves(slow), jax.tree.leaves(params))


def test_numpy_and_python_params():
    tx, params = lookahead(INNER), {"a": np.ones(2, np.float32), "b": 2.0}
    _, state = tx.update({"a": np.ones(2, np.float32), "b": 1.0}, tx.init(params), params)
    slow = slow_params(state, {"a": np.zeros(2, np.float32), "b": 0.0})
    np.testing.assert_array_equal(slow["a"], 1)
    assert slow["b"] == 2


def test_leaves_are_in_the_slow_dtype_if_it_is_set():
    def bfloat16(x):
        return jnp.array(x, jnp.bfloat16)

    tx = optax.partition(
        {
            "wide": lookahead(optax.sgd(2.0**-7), 2, 0.5, slow_dtype="float32"),
            "own": lookahead(INNER, 2, 0.5),
            "fast": INNER,
        },
        {"a": "wide", "b": "own", "c": "fast", "d": "wide"},
    )
    params = {"a": bfloat16([1]), "b": bfloat16([1]), "c": bfloat16([1]), "d": jnp.arange(2)}
    state = tx.init(params)
    dtypes = {"a": jnp.float32, "b": jnp.bfloat16, "c": jnp.bfloat16, "d": jnp.int32}
    exact = []
    for _ in range(5):
        assert jax.tree.map(lambda x: x.dtype, slow_params(state, params)) == dtypes
        grads = jax.tree.map(lambda p: jnp.ones_like(p) * (p.dtype == jnp.bfloat16), params)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        exact.append(slow_params(state, params)["a"].item())
        assert params["a"].dtype == jnp.bfloat16
    # Eight bits represent every multiple of 2⁻⁸ below 1; a step is two of them, and a cycle
    # ends half way along two steps.
    assert exact == [1, 1 - 2 * 2**-8, 1 - 2 * 2**-8, 1 - 4 * 2**-8, 1 - 4 * 2**-8]


def test_bits_that_the_params_lose_stay_in_the_slow_weights():
    tx = lookahead(optax.sgd(2.0**-7), 1, 0.125, slow_dtype="float32")
    params = jnp.array(1.0, jnp.bfloat16)
    state = tx.init(params)
    theta = p = np.float32(1)
    for _ in range(8):
        updates, state = tx.update(jnp.ones_like(params), state, params)
        params = optax.apply_updates(params, updates)
        theta = theta + np.float32(0.125) * (p - np.float32(2.0**-7) - theta)
        p = theta.astype(jnp.bfloat16).astype(np.float32)
        assert slow_params(state, params) == theta
        assert params == p
    assert theta != p


# Errors.


def test_a_state_that_was_restored_without_its_target():
    params = {"w": jnp.ones(2)}
    state = optax.chain(optax.identity(), lookahead(optax.adam(0.1))).init(params)
    plain = [{}, {name: getattr(state[1], name) for name in state[1]._fields}]
    with pytest.raises(ValueError, match=re.escape("with `tx.init(params)` as the target")):
        slow_params(plain, params)


def test_a_state_without_a_lookahead_is_named():
    with pytest.raises(ValueError, match=r"holds no lookahead.*got a ScaleByAdamState"):
        slow_params(optax.scale_by_adam().init(jnp.ones(2)), jnp.ones(2))


@pytest.mark.parametrize("tx", [optax.adam(0.1), optax.identity(), stagewise_prox(0.1, 5)])
def test_no_lookahead(tx):
    params = jnp.ones(2)
    with pytest.raises(ValueError, match="`opt_state` holds no lookahead"):
        slow_params(tx.init(params), params)


def test_two_lookaheads_side_by_side():
    both = optax.chain(lookahead(INNER), lookahead(INNER))
    params = {"layer": {"w": jnp.ones(2)}}
    with pytest.raises(
        ValueError, match=re.escape("two lookaheads") + ".*" + re.escape("params['layer']['w']")
    ):
        slow_params(both.init(params), params)

    # If they cover different leaves, there is no ambiguity.
    params = {"w": jnp.ones(2), "b": jnp.zeros(3)}
    apart = optax.chain(
        optax.masked(lookahead(INNER), {"w": True, "b": False}),
        optax.masked(slrla_sgd(0.1), {"w": False, "b": True}),
    )
    assert_close(slow_params(apart.init(params), params), params)

    overlapping = optax.chain(
        optax.masked(lookahead(INNER), {"w": True, "b": True}),
        optax.masked(slrla_sgd(0.1), {"w": False, "b": True}),
    )
    with pytest.raises(ValueError, match=re.escape("params['b']")):
        slow_params(overlapping.init(params), params)


@pytest.mark.parametrize(
    ("given", "fragments"),
    [
        ({"w": jnp.ones((3, 2)), "b": jnp.ones(4)}, ["(2, 3)", "params['w']", "(3, 2)"]),
        ({"w": jnp.ones((2, 3)), "b": jnp.ones(())}, ["(4,)", "params['b']", "()"]),
        ({"w": jnp.ones((2, 3))}, ["(4,)", "params['b']", "nothing"]),
        ({"w": {"kernel": jnp.ones((2, 3))}, "b": jnp.ones(4)}, ["(2, 3)", "params['w']"]),
        ({"v": jnp.ones((2, 3)), "b": jnp.ones(4)}, ["(2, 3)", "params['w']", "nothing"]),
        ({"w": jnp.ones((5, 2, 3)), "b": jnp.ones((5, 4))}, ["(4,)", "params['b']", "(5, 4)"]),
        ({}, ["params['b']"]),
    ],
)
def test_params_of_another_tree(given, fragments):
    state = lookahead(INNER).init({"w": jnp.ones((2, 3)), "b": jnp.ones(4)})
    with pytest.raises(ValueError, match="`params` is not the tree") as error:
        slow_params(state, given)
    for fragment in fragments:
        assert fragment in str(error.value)


# Compiled, replicated and batched.


def test_under_jit():
    params = {name: jnp.array(p) for name, p in PARAMS.items()}
    tx = optax.chain(optax.identity(), lookahead(INNER, 3, 0.5))
    # A separate function, because compilations of the same function share a cache.
    update, read = quick_jit(tx.update), quick_jit(lambda *arguments: slow_params(*arguments))
    state = tx.init(params)
    for i in range(4):
        updates, state = update(gradients(params, i), state, params)
        params = optax.apply_updates(params, updates)
        now = jax.tree.map(lambda path, i=i: path[i], alone()[1])
        assert_close(read(state, params), now)
        assert_close(slow_params(state, params), now)
    assert read._cache_size() == 1


def test_replicated_by_pmap():
    n = jax.device_count()
    assert n > 1
    tx = optax.chain(optax.identity(), lookahead(INNER, 3, 0.5))
    params = jax.tree.map(lambda p: jnp.stack([p] * n), PARAMS | {"scalar": np.float32(1)})
    state = jax.pmap(tx.init)(params)

    @jax.pmap
    def step(params, state):
        updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
        return optax.apply_updates(params, updates), state

    for moved in (0, 0, 0, 0.15, 0.15):
        slow = slow_params(state, params)
        for name, start in (PARAMS | {"scalar": np.float32(1)}).items():
            assert slow[name].shape == (n, *start.shape)
            np.testing.assert_allclose(slow[name], np.stack([start - np.float32(moved)] * n), 1e-5)
        params, state = step(params, state)

    one = jax.tree.map(lambda x: x[0], (state, params))
    assert_close(slow_params(*one), jax.tree.map(lambda x: x[0], slow))
    with pytest.raises(ValueError, match="`params` is not the tree"):
        slow_params(state, one[1])


def test_vmapped_over_seeds_at_different_points_of_the_cycle():
    periods = [1, 2, 3, 4]

    def train(k, start):
        tx = lookahead(optax.sgd(1.0), k, 0.5)
        params = {"w": jnp.full((4, 2), start), "scalar": start}
        state = tx.init(params)
        for _ in range(5):
            updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
            params = optax.apply_updates(params, updates)
        return params, state

    starts = jnp.array([0.0, 10.0, 20.0, 30.0])
    params, state = quick_jit(jax.vmap(train))(jnp.array(periods), starts)
    slow = slow_params(state, params)
    # Five, two, one and one cycles of k steps, half of which remain.
    moved = np.array([2.5, 2, 1.5, 2])
    np.testing.assert_array_equal(slow["scalar"], starts - moved)
    np.testing.assert_array_equal(slow["w"], jnp.tile((starts - moved)[:, None, None], (1, 4, 2)))
    # The fast weights continue while a cycle is not over.
    np.testing.assert_array_equal(params["scalar"], starts - moved - np.array([0, 1, 2, 1]))
    one_by_one = jax.vmap(slow_params)(state, params)
    assert_close(slow, one_by_one)


def test_vmapped_by_two_axes():
    def train(k, start):
        tx = lookahead(optax.sgd(1.0), k, 0.5)
        params = {"w": jnp.full((3,), start)}
        state = tx.init(params)
        for _ in range(3):
            updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
            params = optax.apply_updates(params, updates)
        return params, state

    over_starts = jax.vmap(train, (None, 0))
    over_both = quick_jit(jax.vmap(over_starts, (0, None)))
    params, state = over_both(jnp.array([2, 3]), jnp.array([0.0, 5.0, 7.0]))
    slow = slow_params(state, params)["w"]
    expected = np.array([[0, 5, 7]]) - np.array([[1], [1.5]])
    np.testing.assert_array_equal(slow, np.repeat(expected[..., None], 3, -1))
