"""Pseudo-gradients that are sent in bfloat16 or int8, with error feedback."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import references
from hypothesis import given, settings
from hypothesis import strategies as st
from replicas import (
    AXIS,
    COLLECTIVE,
    INITIAL,
    INNER,
    NOISE,
    SIZE,
    STEPS,
    K,
    R,
    assert_same_bits,
    computations,
    every_way,
    flat,
    numbers_in_collectives,
    slope,
    trained,
)
from transforms_table import quick_jit
from x64 import enable_x64

from slrla_jax import diloco, two_loop
from slrla_jax._compression import averaged

ROUNDED = {"bfloat16": references.rounded_to_bfloat16, "int8": references.rounded_to_int8}
every_dtype = pytest.mark.parametrize("dtype", ROUNDED)

# The chunks of b, which is padded to 16, and of w, whose rows are divided by 8.
CHUNKS = [
    [np.arange(12)[c::R] for c in range(R)],
    [12 + np.arange(24).reshape(3, 8)[:, c] for c in range(R)],
]


@functools.cache
def by_hand(dtype):
    """Fast and slow weights, and the residuals at the end, from a loop over the replicas."""
    mean = references.CompressedMean(CHUNKS, ROUNDED[dtype])
    fast, slow = references.diloco(
        lambda v, s, r: slope(v, NOISE[s, r]),
        *(0.1, K, INITIAL, [references.Momentum() for _ in range(R)], 0.7, 0.9, STEPS),
        mean=mean,
    )
    return fast, slow, np.array(mean.residuals)


@every_dtype
@every_way
def test_replicas_follow_a_loop_over_them(way, dtype):
    """Also where they are equal, bit-for-bit, and in what they have yet to send."""
    tx = diloco(INNER["momentum"][0](), AXIS, K, pseudo_gradient_dtype=dtype)
    fast, slow, residuals = by_hand(dtype)
    for n, params, state, theta in trained(tx, way, "automatic"):
        np.testing.assert_allclose(flat(params), fast[n - 1], rtol=1e-4, atol=2e-5)
        expected = slow[n - 1] if way != "pmap" else np.stack([slow[n - 1]] * R)
        np.testing.assert_allclose(flat(theta), expected, rtol=1e-4, atol=2e-5)
        for leaf in jax.tree.leaves((state.cycle_start_params, state.outer_state)):
            shards = [np.asarray(shard.data) for shard in leaf.addressable_shards]
            for shard in shards:
                assert_same_bits(shard, shards[0])
    np.testing.assert_allclose(flat(state.residual), residuals, atol=2e-5)
    assert np.abs(residuals).max() > 1e-3


# What is sent

BYTES = {"f32": 4, "u16": 2, "s8": 1}
TIMES = {"all-reduce": 2, "all-gather": 1, "all-to-all": 1}  # in a ring


def bytes_sent(text):
    """What one replica sends in a program, by dtype."""
    sent = dict.fromkeys(BYTES, 0)
    for (kind, dtype), numbers in numbers_in_collectives(text).items():
        sent[dtype] += TIMES[kind] * (R - 1) / R * numbers * BYTES[dtype]
    return sent


@pytest.mark.parametrize("way", ["shard_map", "vmap"])
def test_a_sync_sends_a_half_or_a_quarter_of_the_bytes(way):
    """And with int8 a scale for each chunk. b is padded to 16 numbers."""
    text = {
        dtype: computations(
            diloco(optax.sgd(0.1), AXIS, None, pseudo_gradient_dtype=dtype), way, True
        )[1]
        for dtype in (None, *ROUNDED)
    }
    share, padded, chunks = 2 * (R - 1) / R, SIZE + 4, 2 * R
    assert bytes_sent(text[None]) == {"f32": share * 4 * SIZE, "u16": 0, "s8": 0}
    assert bytes_sent(text["bfloat16"]) == {"f32": 0, "u16": share * 2 * padded, "s8": 0}
    assert bytes_sent(text["int8"]) == {"f32": share * 4 * chunks, "u16": 0, "s8": share * padded}


def test_other_steps_send_nothing():
    tx = diloco(optax.sgd(0.1), AXIS, None, pseudo_gradient_dtype="int8")
    assert not re.search(COLLECTIVE, computations(tx, "shard_map", False)[1])


# Nothing is lost


@functools.cache
def mean_of(dtype, axis_name="r"):
    """The mean and the residuals of trees of shape (R, …), mapped without devices."""

    def leaf(s, e):
        return averaged(s, e, s, axis_name, dtype)

    return quick_jit(jax.vmap(leaf, axis_name=axis_name, out_axes=(None, 0)))


LEAVES = {"scalar": (), "few": (3,), "rows": (16, 5), "empty": (0, 4)}


@st.composite
def pseudo_gradients(draw):
    """Those of three syncs, of all magnitudes and with zeros among them."""
    replicas = draw(st.sampled_from([1, 3, 8]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))

    def leaf(shape):
        shape = (3, replicas, *shape)
        x = rng.normal(size=shape) * 10.0 ** rng.uniform(-6, 3, shape) * rng.integers(0, 2, shape)
        return np.float32(x)

    tree = {name: leaf(shape) for name, shape in LEAVES.items()}
    return tree | {"complex": leaf((4,)) + 1j * leaf((4,))}


@every_dtype
@settings(max_examples=15, deadline=None)
@given(pseudo_gradients())
def test_what_is_not_delivered_is_in_the_residuals(dtype, syncs):
    e = jax.tree.map(lambda x: np.zeros_like(x[0]), syncs)
    total = dict.fromkeys(syncs, 0.0)
    for sync in range(3):
        mean, e = mean_of(dtype)({name: s[sync] for name, s in syncs.items()}, e)
        for name, s in syncs.items():
            total[name] += np.asarray(mean[name], complex)
            wanted = s[: sync + 1].astype(complex).mean(axis=1).sum(axis=0)
            left = np.mean(e[name], axis=0)
            atol = 1e-5 * np.abs(s).max(initial=0)
            np.testing.assert_allclose(total[name] + left, wanted, rtol=0, atol=atol)
            # And it is little: half a unit of int8 from each of two roundings, or less.
            assert np.abs(left).max(initial=0) <= np.abs(s).max(initial=0) / 100


def test_a_small_component_is_delivered_in_the_long_run():
    """Beside a large one it is rounded to 0 every time, and only feedback keeps it."""
    small = 1e-3
    s = jnp.broadcast_to(jnp.tile(jnp.array([1.0, small]), (8, 1)).T, (4, 2, 8))
    e, total = jnp.zeros_like(s), 0
    first, _ = mean_of("int8")(s, e)
    np.testing.assert_array_equal(first[1], 0)
    for _ in range(100):
        mean, e = mean_of("int8")(s, e)
        total += mean
    np.testing.assert_allclose(total[0], 100, rtol=1e-5)
    np.testing.assert_allclose(total[1], 100 * small, atol=1 / 127)


# Limits


@pytest.mark.parametrize("size", [0, 1e-37])
def test_nothing_is_divided_by_a_scale_near_zero(size):
    """Numbers too small for one wait in the residuals."""
    s = np.full((2, 4), size, np.float32)
    with jax.debug_nans(True), jax.debug_infs(True):
        mean, left = jax.vmap(lambda s: averaged(s, 0 * s, s, "r", "int8"), axis_name="r")(s)
    np.testing.assert_array_equal(mean, 0)
    np.testing.assert_array_equal(left, s)


@every_dtype
def test_one_replica_sends_nothing_and_rounds_nothing(dtype):
    s = np.float32(np.random.default_rng(0).normal(size=(1, 5, 16)))
    mean, left = mean_of(dtype)(s, np.zeros_like(s))
    np.testing.assert_array_equal(mean, s[0])
    np.testing.assert_array_equal(left, 0)


@every_dtype
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_bad_number_arrives_and_does_not_come_back(dtype, bad):
    """On one replica it makes the mean bad on all, with int8 in the whole chunk, once."""
    s = np.random.default_rng(0).normal(size=(R, 5, 16)).astype(np.float32)
    good, _ = mean_of(dtype)(s, np.zeros_like(s))
    s[3, 2, 7] = bad
    mean, left = mean_of(dtype)(s, np.zeros_like(s))
    touched = np.zeros((5, 16), bool)
    touched[2, 7] = True
    if dtype == "int8":
        touched[:, 7] = touched[:, 15] = True  # every eighth column is in the chunk
    assert not np.isfinite(np.asarray(mean)[touched]).any()
    np.testing.assert_array_equal(np.asarray(mean)[~touched], np.asarray(good)[~touched])
    assert np.isfinite(left).all()


def test_replicas_along_two_axes():
    """They send the same as replicas along one."""
    s = np.float32(np.random.default_rng(0).normal(size=(R, 5, 16)))
    one = mean_of("int8")(s, np.zeros_like(s))

    def leaf(s, e):
        return averaged(s, e, s, ("x", "y"), "int8")

    both = jax.vmap(
        jax.vmap(leaf, axis_name="y", out_axes=(None, 0)), axis_name="x", out_axes=(None, 0)
    )
    two = jax.jit(both)(*(x.reshape(2, 4, 5, 16) for x in (s, np.zeros_like(s))))
    np.testing.assert_array_equal(two[0], one[0])
    np.testing.assert_allclose(two[1].reshape(s.shape), one[1], atol=1e-6)


# Dtypes and leaves


@every_dtype
def test_narrow_params(dtype):
    """The residual is in float32, and has what the rounding of the mean to bfloat16 takes."""
    rng = np.random.default_rng(0)
    s = jnp.asarray(rng.normal(size=(R, 16)), jnp.bfloat16)
    tx = diloco(optax.sgd(0.1), AXIS, pseudo_gradient_dtype=dtype)
    assert tx.init(s[0]).residual.dtype == jnp.float32
    e = np.float32(1e-3 * rng.normal(size=(R, 16)))
    mean, left = mean_of(dtype)(s, e)
    assert (mean.dtype, left.dtype) == (jnp.bfloat16, jnp.float32)
    wanted = (np.float32(s) + e).mean(axis=0)
    np.testing.assert_allclose(np.float32(mean) + left.mean(axis=0), wanted, atol=1e-6)


@every_dtype
def test_wide_params(dtype):
    with enable_x64():
        s = np.random.default_rng(0).normal(size=(R, 16))
        mean, left = mean_of(dtype)(s, np.zeros_like(s))
        assert (mean.dtype, left.dtype) == (jnp.float64, jnp.float64)
        np.testing.assert_allclose(mean + left.mean(axis=0), s.mean(axis=0), atol=1e-15)


def test_leaves_without_an_update_are_not_sent():
    """Nor integers, which have no residual."""
    params = {"count": jnp.array(3), "frozen": jnp.ones(4), "w": jnp.ones(4)}
    tx = diloco(optax.sgd(0.5), "r", None, pseudo_gradient_dtype="bfloat16")
    state = tx.init(params)
    assert state.residual["count"] is None

    def step(slope):
        updates = {"count": jnp.array(1), "frozen": None, "w": slope}
        return tx.update(updates, state, params, sync=True)[1]

    slopes = jnp.arange(8.0).reshape(2, 4)
    program = str(jax.make_jaxpr(step, axis_env=[("r", 2)])(slopes[0]))
    assert (program.count("= all_to_all"), program.count("= all_gather")) == (1, 1)
    state = quick_jit(jax.vmap(step, axis_name="r"))(slopes)
    np.testing.assert_array_equal(state.cycle_start_params["frozen"], np.ones((2, 4)))
    np.testing.assert_array_equal(state.residual["frozen"], np.zeros((2, 4)))
    # s = 0.5 (2, 3, 4, 5), which bfloat16 represents; θ ← 1 − 0.7 (0.9 s + s)
    theta = 1 - 0.7 * 1.9 * np.array([1.0, 1.5, 2.0, 2.5])
    np.testing.assert_allclose(state.cycle_start_params["w"], [theta] * 2, rtol=1e-6)


def test_the_residual_is_where_the_slow_weights_are():
    """In their dtype, and in the memory of the host."""
    params = jnp.ones(4, jnp.bfloat16)
    tx = two_loop(
        *(optax.sgd(0.5), optax.sgd(1.0), None),
        axis_name="r",
        pseudo_gradient_dtype="int8",
        slow_dtype="float32",
        memory_kind="pinned_host",
    )
    state = tx.init(params)

    @quick_jit
    @functools.partial(jax.vmap, axis_name="r")
    def step(slope):
        return tx.update(slope, state, params, sync=True)[1]

    after = step(jnp.array([[2.0, 4.0, 6.0, 8.0], [0.0, 2.0, 4.0, 6.0]], jnp.bfloat16))
    for x in (state.residual, after.residual, after.cycle_start_params):
        assert (x.dtype, x.sharding.memory_kind) == (jnp.float32, "pinned_host")
    delivered = 1 - np.asarray(after.cycle_start_params)[0]
    left = np.asarray(after.residual).mean(axis=0)
    np.testing.assert_allclose(delivered + left, [0.5, 1.5, 2.5, 3.5], atol=1e-6)


# What is refused


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8", "int4", 8, "few"])
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(ValueError, match=rf"`pseudo_gradient_dtype` must be .*got {dtype!r}"):
        diloco(optax.sgd(0.1), AXIS, pseudo_gradient_dtype=dtype)


def test_dtypes_may_be_given_in_every_way():
    for dtype in (jnp.bfloat16, jnp.dtype("bfloat16"), np.int8, "int8"):
        diloco(optax.sgd(0.1), AXIS, pseudo_gradient_dtype=dtype)


def test_without_replicas_nothing_is_sent():
    with pytest.raises(ValueError, match=r"`pseudo_gradient_dtype` = 'int8'.*`axis_name`.*None"):
        two_loop(optax.sgd(0.1), optax.sgd(1.0), 5, pseudo_gradient_dtype="int8")


def test_a_state_for_another_dtype_is_refused():
    plain, compressed = (
        diloco(optax.sgd(0.1), AXIS, None, pseudo_gradient_dtype=dtype) for dtype in (None, "int8")
    )
    params = {"w": jnp.ones(3)}
    assert plain.init(params).residual is None
    with pytest.raises(ValueError, match=r"None it needs none .*params\['w'\], it holds one of"):
        plain.update(params, compressed.init(params), params, sync=False)
    with pytest.raises(ValueError, match=r"'int8' it needs one of shape \(3,\) .*it holds none"):
        compressed.update(params, plain.init(params), params, sync=False)
    state = compressed.init(params)
    state = state._replace(residual={"w": jnp.zeros((1, 3))})
    with pytest.raises(ValueError, match=r"one of shape \(3,\) .*it holds one of shape \(1, 3\)"):
        compressed.update(params, state, params, sync=False)
