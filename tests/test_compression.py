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
from jax.sharding import PartitionSpec as P
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
    computations,
    every_way,
    flat,
    mesh,
    slope,
    step_of,
    trained,
    tree,
)
from transforms_table import quick_jit
from x64 import enable_x64

from slrla_jax import diloco, slow_params, two_loop
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


def assert_same_bits(x, y):
    np.testing.assert_array_equal(np.asarray(x).view(np.uint32), np.asarray(y).view(np.uint32))


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
