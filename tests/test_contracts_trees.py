"""Contracts of every transform with the trees of params and states.

Each contract is one test over `transforms_table.TABLE`. It compares with a run of the same
transform alone, or with a path that is written out.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from contracts import (
    avals,
    by_hand,
    every_row,
    rows,
    rows_with_inner,
)
from flax import struct
from flax.core import FrozenDict
from transforms_table import (
    PARAMS,
    STEPS,
    TABLE,
    Run,
    assert_close,
    assert_same_run,
    device_params,
    gradients,
    plain,
    run,
    run_row,
    same,
    sgd,
)

from slrla_jax import (
    declare_moments,
    lookahead,
    multilayer_lookahead,
    slow_params,
    stagewise_prox,
)

# The state as a tree.


@every_row
def test_map_params_sees_every_leaf_like_a_param(row):
    tx = row.build(same)
    state = tx.init(device_params())
    mapped = optax.tree.map_params(
        tx, lambda x: x + 1, state, transform_non_params=lambda x: ("not a param", x)
    )
    expected = jax.tree.map(
        lambda x: x + 1 if x.shape in [(2, 3), (2,)] else ("not a param", x), state
    )
    assert jax.tree.structure(mapped) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, mapped, expected)
    assert any(leaf.shape == (2, 3) for leaf in jax.tree.leaves(state))

    # With an additional tree like the params.
    names = {"w": "of w", "b": "of b"}
    named = optax.tree.map_params(tx, lambda x, name: name, state, names)
    for leaf, name in zip(jax.tree.leaves(state), jax.tree.leaves(named), strict=True):
        assert (
            leaf.shape not in [(2, 3), (2,)] or name == {(2, 3): "of w", (2,): "of b"}[leaf.shape]
        )


@every_row
def test_eval_shape_of_init(row):
    tx = row.build(same)
    concrete = tx.init(device_params())
    abstract = jax.eval_shape(tx.init, device_params())
    assert jax.tree.structure(abstract) == jax.tree.structure(concrete)
    assert avals(abstract) == avals(concrete)


@pytest.mark.parametrize(
    ("row", "dtype"),
    [
        pytest.param(row, dtype, id=f"{dtype}-{row.name}")
        for dtype in ("float32", "bfloat16")
        for row in TABLE
        if not (row.averages and dtype == "bfloat16")
    ],
)
def test_update_keeps_shapes_dtypes_and_weak_types(row, dtype):
    tx = row.build(same)
    params = jax.tree.map(lambda p: jnp.array(p, dtype), PARAMS)
    state = tx.init(params)
    tx, extra = optax.with_extra_args_support(tx), row.extra(params, 0)
    grads = gradients(params, 0)
    updates, later = tx.update(grads, state, params, **extra)
    assert jax.tree.structure(later) == jax.tree.structure(state)
    assert avals(later) == avals(state)
    assert avals(updates) == avals(params)
    updates, later = jax.eval_shape(lambda *args: tx.update(*args, **extra), grads, state, params)
    assert jax.tree.structure(later) == jax.tree.structure(state)
    assert avals(later) == avals(state)
    assert avals(updates) == avals(params)


@every_row
@pytest.mark.parametrize("empty", [{}, (), {"a": ()}], ids=repr)
def test_empty_trees(row, empty):
    tx = optax.with_extra_args_support(row.build(same))
    params, state = empty, tx.init(empty)
    if row.has_slow:
        assert slow_params(state, params) == empty
    for _ in range(3):
        updates, state = tx.update(empty, state, params, **row.extra(params, 0))
        params = optax.apply_updates(params, updates)
        assert params == empty
        if row.has_slow:
            assert slow_params(state, params) == empty


@every_row
def test_leaves_that_are_none(row):
    with_none = run_row(row, row.build(same), {"none": None, **device_params()})
    for tree in (with_none.params, with_none.slow):
        assert tree["none"] is None
    without = {key: with_none.params[key] for key in PARAMS}
    slow = {key: with_none.slow[key] for key in PARAMS}
    assert_same_run(Run(without, slow, None), plain(row))


class Pair(NamedTuple):
    value: Any
    key: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Box:
    value: Any
    idx: Any


@struct.dataclass
class FlaxBox:
    value: Any
    name: Any


CONTAINERS = {
    "all in one": lambda w, b: FrozenDict({"a": Box(Pair([w], ()), FlaxBox({"value": b}, None))}),
    "none": lambda w, b: w,
}


@every_row
@pytest.mark.parametrize("name", CONTAINERS)
def test_containers(row, name):
    leaves = ["w"] if name == "none" else ["w", "b"]

    def contained(tree):
        return CONTAINERS[name](**({"b": None} | tree))

    actual, expected = run_row(row, row.build(same), contained(device_params())), plain(row, leaves)
    assert_close(actual.params, contained(expected.params))
    assert_close(actual.slow, contained(expected.slow))


# The params as numbers.


@every_row
def test_numpy_params(row):
    assert_same_run(by_hand(row, row.build(same), PARAMS, gradients_of_arrays), plain(row))


def gradients_of_arrays(params: Any, i: int) -> Any:
    return jax.tree.map(np.asarray, gradients(params, i))


@every_row
def test_python_floats_as_params(row):
    floats = {"w": 0.5, "b": -2.0}
    arrays = jax.tree.map(lambda x: jnp.array(x, jnp.float32), floats)
    assert_same_run(by_hand(row, row.build(same), floats), run_row(row, row.build(same), arrays))


@rows(lambda row: row.splits)
def test_a_complex_param_behaves_like_two_real_ones(row):
    # Adam's second moment combines both parts of a number, so this uses momentum.
    tx = row.build(lambda inner: sgd())
    real = {"re": jnp.array([0.5, 2.0]), "im": jnp.array([-1.0, 0.25])}
    apart = run_row(row, tx, real)
    together = run_row(row, tx, {"z": real["re"] + 1j * real["im"]})
    assert_close(together.params, {"z": apart.params["re"] + 1j * apart.params["im"]})
    assert_close(together.slow, {"z": apart.slow["re"] + 1j * apart.slow["im"]})


@rows(lambda row: not row.averages)
def test_bfloat16_params(row):
    narrow = run_row(
        row, row.build(same), jax.tree.map(lambda p: jnp.array(p, jnp.bfloat16), PARAMS)
    )
    slow_dtype = jnp.float32 if "slow_dtype" in row.name else jnp.bfloat16
    wide = plain(row)
    expected = jax.tree.map(lambda p: p.astype(jnp.bfloat16), wide.params)
    assert_close(narrow.params, expected, rtol=0.05, atol=0.05)
    expected = jax.tree.map(lambda p: p.astype(slow_dtype), wide.slow)
    assert_close(narrow.slow, expected, rtol=0.05, atol=0.05)


def test_integer_params_are_left_to_the_inner_optimizer():
    # They move by their updates, 1 and 2; integers cannot be interpolated.
    grads = {"int": jnp.array([1, 2]), "float": jnp.array(-1.0)}
    params = {"int": jnp.array([0, 10]), "float": jnp.array(0.0)}
    told = np.array([0, 10]) + np.arange(1, 7)[:, None] * [1, 2]
    at_syncs = [[0, 10], [0, 10], told[2], told[2], told[2], told[5]]
    inner = optax.GradientTransformation(optax.init_empty_state, lambda g, state, p: (g, state))
    for tx in (
        lookahead(inner, 3, 0.5),
        lookahead(inner, 3, 0.5, sync_moments="reset", slow_dtype="float32"),
        multilayer_lookahead(inner, (1, 3), (1.0, 0.5)),
        optax.chain(stagewise_prox(0.25, 3), lookahead(inner, 3, 0.5)),
    ):
        moved = run(tx, params, steps=6, grads=lambda params, i: grads)
        assert moved.params["int"].dtype == moved.slow["int"].dtype == jnp.int32
        np.testing.assert_array_equal(moved.params["int"], told)
        np.testing.assert_array_equal(moved.slow["int"], at_syncs)


# Integers, flags and random keys in the inner optimizer's state.


@rows_with_inner
def test_noise_never_repeats_and_keeps_decaying(row):
    noise = optax.add_noise(0.1, 0.5, jax.random.key(7))

    def seen(tx):
        def observe(state, params):
            _, state = optax.tree.get_all_with_path(state, "AddNoiseState")[0]
            return jax.random.key_data(state.rng_key), state.count

        return by_hand(row, tx, device_params(), observe=observe).slow

    keys, counts = seen(row.build(lambda inner: optax.chain(noise, inner)))
    np.testing.assert_array_equal(keys, seen(optax.chain(noise))[0])
    assert len(np.unique(keys, axis=0)) == STEPS
    np.testing.assert_array_equal(counts, np.arange(1, STEPS + 1))


@rows_with_inner
def test_inner_schedules_are_not_restarted(row):
    def counts(state, params):
        found = optax.tree.get_all_with_path(state, "ScaleByScheduleState")
        return jnp.stack([s.count for _, s in found])

    scaled = optax.scale_by_schedule(lambda count: 0.01 * (count + 1))
    tx = row.build(lambda inner: optax.chain(inner, scaled))
    seen = run(tx, observe=counts).slow
    np.testing.assert_array_equal(
        seen, np.broadcast_to(np.arange(1, STEPS + 1)[:, None], seen.shape)
    )


@declare_moments("flag", "count", "moment")
class MixedState(NamedTuple):
    key: jax.Array
    raw_key: jax.Array
    flag: jax.Array
    count: jax.Array
    moment: Any


def mixed() -> optax.GradientTransformation:
    """Adds one to its moment every step, and does not move the params."""

    def init(params):
        return MixedState(
            key=jax.random.key(1),
            raw_key=jax.random.key_data(jax.random.key(2)),
            flag=jnp.array(False),
            count=jnp.array(0),
            moment=optax.tree.zeros_like(params),
        )

    def update(updates, state, params=None):
        return optax.tree.zeros_like(updates), MixedState(
            key=jax.random.split(state.key)[0],
            raw_key=jax.random.key_data(
                jax.random.split(jax.random.wrap_key_data(state.raw_key))[0]
            ),
            flag=~state.flag,
            count=state.count + 1,
            moment=jax.tree.map(lambda m: m + 1, state.moment),
        )

    return optax.GradientTransformation(init, update)


@pytest.mark.parametrize(
    ("sync_moments", "counts", "moments"),
    [
        ("keep", [1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 5, 6, 7]),
        ("reset", [1, 2, 0, 1, 2, 0, 1], [1, 2, 0, 1, 2, 0, 1]),
        # 3 → 1.5, then 4.5 → 1.5 + (4.5 − 1.5) / 2.
        ("pullback", [1, 2, 3, 4, 5, 6, 7], [1, 2, 1.5, 2.5, 3.5, 3, 4]),
    ],
)
@pytest.mark.parametrize("wrapped", ["alone", "multi_steps", "inject_hyperparams", "masked"])
def test_moments_flags_counts_and_keys_at_a_sync(sync_moments, counts, moments, wrapped):
    around = {
        "alone": lambda inner: inner,
        "multi_steps": lambda inner: optax.MultiSteps(inner, 1).gradient_transformation(),
        "inject_hyperparams": lambda inner: optax.inject_hyperparams(lambda one: inner)(1.0),
        "masked": lambda inner: optax.masked(inner, {"w": True, "b": False}),
    }[wrapped]

    def seen(state, params):
        state = optax.tree.get(state, "MixedState")
        keys = jax.random.key_data(state.key), state.raw_key
        return *keys, state.flag, state.count, state.moment["w"][0, 0]

    def path(tx):
        return run(tx, steps=7, observe=seen).slow

    tx = lookahead(around(mixed()), 3, 0.5, sync_moments=sync_moments)
    *keys, flag, count, moment = path(tx)
    np.testing.assert_array_equal(count, counts)
    np.testing.assert_array_equal(flag, np.array(counts) % 2)
    np.testing.assert_array_equal(moment, moments)
    for key, expected in zip(keys, path(mixed())[:2], strict=True):
        np.testing.assert_array_equal(key, expected)
        assert len(np.unique(key, axis=0)) == 7


# Models that contain more than arrays, and params without a gradient.


@every_row
def test_a_model_that_holds_functions(row):
    """As with Equinox: gradients and state cover only the arrays, the params are the model."""
    functions = {"activation": jnp.tanh, "layers": [None, jnp.sin]}
    nones = {"activation": None, "layers": [None, None]}
    tx = optax.with_extra_args_support(row.build(same))
    model, state = device_params() | functions, tx.init(device_params() | nones)
    expected = plain(row)

    def arrays(model):
        return {name: model[name] for name in PARAMS}

    def extra(model, i):
        given = row.extra(arrays(model), i)
        if "grad_fn" in given:
            given["grad_fn"] = lambda there, k: gradients(arrays(there), i) | nones
            assert model["activation"] is jnp.tanh
        return given

    for i in range(STEPS):
        grads = gradients(arrays(model), i) | nones
        updates, state = tx.update(grads, state, model, **extra(model, i))
        assert updates["layers"] == [None, None]
        model = model | optax.apply_updates(arrays(model), arrays(updates))
        assert_close(arrays(model), jax.tree.map(lambda path, i=i: path[i], expected.params))
        if row.has_slow:
            slow = slow_params(state, model)
            assert slow["activation"] is jnp.tanh
            assert_close(arrays(slow), jax.tree.map(lambda path, i=i: path[i], expected.slow))


@rows(lambda row: row.has_slow or row.name.startswith("stagewise"))
def test_params_that_the_state_was_not_made_for(row):
    """As when frozen params are unfrozen during training but the old state is kept."""
    params = device_params()
    tx = row.build(same)
    frozen = optax.masked(tx, {"w": True, "b": False}).init(params).inner_state
    with pytest.raises(ValueError, match=r"`opt_state` was made for other params.*\['b'\].*init"):
        tx.update(params, frozen, params)
    taller = {"w": jnp.ones((3, 3)), "b": params["b"]}
    with pytest.raises(ValueError, match=r"\['w'\].*\(3, 3\).*\(2, 3\)"):
        tx.update(taller, tx.init(params), taller)


def test_another_optimizers_state_is_named():
    params = jnp.ones(2)
    with pytest.raises(ValueError, match=r"`state` must be the LookaheadState .* got a tuple"):
        lookahead(sgd()).update(params, sgd().init(params), params)


@pytest.mark.parametrize(
    ("params", "updates"),
    [
        ({"w": jnp.ones(2)}, {"w": jnp.ones(2), "more": jnp.ones(2)}),
        ({"w": jnp.ones((3, 2))}, {"w": jnp.ones(2)}),
    ],
)
def test_params_or_updates_of_another_structure(params, updates):
    tx = lookahead(sgd())
    state = tx.init({"w": jnp.ones(2)})
    with pytest.raises(ValueError, match="`opt_state` was made for other params"):
        tx.update(updates, state, params)


def test_a_state_of_narrower_params():
    tx = lookahead(optax.sgd(0.1))
    state = tx.init(jnp.ones(2, jnp.bfloat16))
    wide = jnp.array([1.001, 2.003])
    with pytest.raises(ValueError, match=r"float32 of shape \(2,\), it holds bfloat16"):
        tx.update(wide, state, wide)


def test_strict_promotion_of_dtypes():
    with jax.numpy_dtype_promotion("strict"):
        tx, params = lookahead(optax.sgd(0.5), 2, 0.5), jnp.ones(2)
        state = tx.init(params)
        for _ in range(2):
            updates, state = tx.update(params, state, params)
        assert (slow_params(state, params + updates) == params + updates).all()
