"""The copies of the params in a state: their number, their dtypes, and their rounding."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from x64 import enable_x64

from slrla_jax import (
    LookaheadState,
    Stage,
    StagewiseProxState,
    TwoLoopState,
    lookahead,
    multilayer_lookahead,
    slow_params,
    slrla,
    slrla_sgd,
    snoo,
    stagewise_prox,
)


def dtypes_of(state):
    """The dtypes of the slow weights of all layers, and of the anchors."""
    kinds = (LookaheadState, StagewiseProxState, TwoLoopState)
    slow, anchors = [], []
    for node in jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, kinds)):
        if isinstance(node, (LookaheadState, TwoLoopState)):
            inside = dtypes_of(node.inner_state)
            slow += [node.cycle_start_params.dtype.name, *inside[0]]
            anchors += inside[1]
        elif isinstance(node, StagewiseProxState):
            anchors.append(node.anchor_params.dtype.name)
    return slow, anchors


STAGES = [Stage(2, 1.0, beta=0.5, sync_period=2, slow_step_size=0.5), Stage(1, 1.0, beta=1.0)]
WITHOUT_BETA = [Stage(2, 1.0), Stage(1, 0.5)]
FLOAT = "float32"
HALF = "bfloat16"


@pytest.mark.parametrize(
    ("build", "slow", "anchors"),
    [
        (lambda **d: lookahead(optax.sgd(1.0), 2, **d), 1, 0),
        (lambda **d: multilayer_lookahead(optax.sgd(1.0), (2, 2, 2), (0.5,) * 3, **d), 3, 0),
        (lambda **d: slrla(optax.sgd, STAGES, **d), 1, 1),
        (lambda **d: slrla(optax.sgd, STAGES, decoupled=True, **d), 1, 1),
        (lambda **d: slrla(optax.sgd, WITHOUT_BETA, **d), 1, 0),
        (lambda **d: slrla(optax.sgd, WITHOUT_BETA, decoupled=True, **d), 1, 0),
        (lambda **d: slrla_sgd(1.0, **d), 1, 0),
        (lambda **d: slrla_sgd(1.0, anchor_period=3, **d), 1, 1),
        (lambda **d: snoo(optax.sgd(1.0), 2, **d), 1, 0),
        (lambda **d: snoo(snoo(optax.sgd(1.0), 2, **d), 4, **d), 2, 0),
    ],
    ids=[
        *("lookahead", "multilayer", "slrla", "slrla-decoupled", "slrla-without-beta"),
        *("slrla-decoupled-without-beta", "slrla_sgd-shared", "slrla_sgd-own"),
        *("snoo", "snoo-snoo"),
    ],
)
def test_copies_are_in_the_dtype_that_is_asked_for(build, slow, anchors):
    half, single = jnp.ones(2, HALF), jnp.ones(2, FLOAT)

    def expect(tx, params, *wanted):
        state = tx.init(params)
        assert dtypes_of(state) == wanted
        for _ in range(3):
            updates, state = tx.update(jnp.full_like(params, 0.25), state, params)
            params = optax.apply_updates(params, updates)
            assert dtypes_of(state) == wanted

    expect(build(), half, [HALF] * slow, [HALF] * anchors)
    expect(build(slow_dtype=FLOAT), half, [FLOAT] * slow, [HALF] * anchors)
    if anchors:
        expect(build(anchor_dtype=HALF), single, [FLOAT] * slow, [HALF] * anchors)


def test_plain_zeros_of_numpy_need_no_anchor_either():
    stages = [Stage(2, 1.0, beta=np.float32(0)), Stage(1, 0.5, beta=np.int64(0))]
    assert dtypes_of(slrla(optax.sgd, stages).init(jnp.ones(2))) == ([FLOAT], [])


def test_slow_weights_of_complex_params():
    params = jnp.ones(2, "complex64")
    assert dtypes_of(lookahead(optax.sgd(1.0), slow_dtype=FLOAT).init(params))[0] == ["complex64"]
    with enable_x64(True):
        tx = lookahead(optax.sgd(1.0), slow_dtype="float64")
        assert dtypes_of(tx.init(params))[0] == ["complex128"]
        assert slow_params(tx.init(params), params).dtype == "complex128"


@pytest.mark.parametrize(
    "build",
    [
        lambda: slrla(optax.sgd, [Stage(2, 1.0, 0.5, 4, 1.0)], anchor_dtype=HALF),
        lambda: slrla(optax.sgd, [Stage(2, 1.0, 0.5, 4, 1.0)], anchor_dtype=HALF, decoupled=True),
        lambda: slrla_sgd(1.0, 0.5, 8, 4, 1.0, momentum=None, anchor_dtype=HALF),
        lambda: optax.chain(stagewise_prox(0.5, 8, anchor_dtype=HALF), optax.sgd(1.0)),
    ],
    ids=["slrla", "slrla-decoupled", "slrla_sgd", "stagewise_prox"],
)
def test_a_narrow_anchor_pulls_towards_its_rounded_value(build):
    """In bfloat16, 1 + 2⁻¹⁰ rounds to 1: each step without gradient goes half way there."""
    tx, params = build(), jnp.array(1 + 2.0**-10)
    state, expected = tx.init(params), 1 + 2.0**-10
    for _ in range(5):
        updates, state = tx.update(jnp.array(0.0), state, params)
        params = optax.apply_updates(params, updates)
        expected -= 0.5 * (expected - 1)
        assert params == expected


def test_layers_in_float32_move_where_bfloat16_would_not():
    """Each of two layers keeps a tenth of a tenth of 2⁻⁸, as in an equivalent NumPy loop."""
    tx = multilayer_lookahead(optax.sgd(2.0**-8), (1, 1), (0.5, 0.1), slow_dtype=FLOAT)
    params = jnp.array(1.0, HALF)
    state = tx.init(params)
    for _ in range(100):
        updates, state = tx.update(jnp.ones_like(params), state, params)
        params = optax.apply_updates(params, updates)
    # Without rounding this would be 1 − 100 · 2⁻⁸ / 20; both layers round as they go.
    assert slow_params(state, params) < 0.99
