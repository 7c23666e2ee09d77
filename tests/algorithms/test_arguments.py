"""Arguments that the transforms accept, and the errors for all others."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from transforms_table import quick_jit
from x64 import enable_x64

from slrla_jax import (
    Stage,
    adabound,
    adagrad_norm,
    adaloss,
    asam,
    diloco,
    lookahead,
    lookbehind,
    multilayer_lookahead,
    sam,
    slow_params,
    slrla,
    slrla_sgd,
    snoo,
    stagewise_prox,
    two_loop,
)

INNER = optax.sgd(1.0)
INF, NAN = float("inf"), float("nan")


def name_of(value):
    """A name that is the same in every process, unlike the repr of a function."""
    return getattr(value, "__name__", repr(value))


def a_schedule(count):
    return 0.5


def rejects(build, *fragments):
    """Asserts a ValueError whose message names the argument and the value."""
    with pytest.raises(ValueError, match=".*".join(map(re.escape, fragments))):
        build()


NOT_PERIODS = [0, -1, 2.5, NAN, -INF, "5", [5], np.array([5, 5]), jnp.array([2, 2]), 1j]
NOT_STEP_SIZES = [0, 0.0, -0.1, 1.1, NAN, INF, "0.5", None, [0.5], np.array([0.5, 0.5])]
NOT_BETAS = [-0.1, NAN, INF, -INF, "0.4", None, np.array("0.4")]
NOT_LENGTHS = [0, -5, 2.5, NAN, "5", None, a_schedule]


@pytest.mark.parametrize("value", NOT_PERIODS, ids=repr)
def test_sync_period(value):
    rejects(lambda: lookahead(INNER, value), "`sync_period`", f"got {value!r}")
    rejects(lambda: slrla_sgd(0.1, sync_period=value), "`sync_period`", f"got {value!r}")
    rejects(
        lambda: multilayer_lookahead(INNER, (5, value), (0.8, 0.8)),
        "`sync_periods[1]`",
        f"got {value!r}",
    )
    rejects(lambda: Stage(5, 0.1, sync_period=value), "`sync_period`", f"got {value!r}")
    rejects(lambda: two_loop(INNER, INNER, value), "`sync_period`", f"got {value!r}")
    rejects(lambda: snoo(INNER, value), "`sync_period`", f"got {value!r}")
    rejects(lambda: diloco(INNER, "x", value), "`sync_period`", f"got {value!r}")


def test_a_period_of_none_is_for_manual_syncs_of_all_layers():
    for build in (
        lambda: lookahead(INNER, None),
        lambda: slrla_sgd(0.1, sync_period=None),
        lambda: multilayer_lookahead(INNER, None, (0.8, 0.8)),
        lambda: two_loop(INNER, INNER, None),
        lambda: snoo(INNER, None),
        lambda: diloco(INNER, "x", None),
    ):
        build()
    rejects(lambda: multilayer_lookahead(INNER, (5, None)), "`sync_periods[1]`", "got None")
    rejects(lambda: Stage(5, 0.1, sync_period=None), "`sync_period`", "got None")


@pytest.mark.parametrize("value", NOT_STEP_SIZES, ids=repr)
def test_slow_step_size(value):
    rejects(lambda: lookahead(INNER, 5, value), "`slow_step_size`", f"got {value!r}")
    rejects(lambda: slrla_sgd(0.1, slow_step_size=value), "`slow_step_size`", f"got {value!r}")
    rejects(
        lambda: multilayer_lookahead(INNER, (5, 5), (value, 0.8)),
        "`slow_step_sizes[0]`",
        f"got {value!r}",
    )
    rejects(lambda: Stage(5, 0.1, slow_step_size=value), "`slow_step_size`", f"got {value!r}")


@pytest.mark.parametrize("value", NOT_BETAS, ids=repr)
def test_beta(value):
    rejects(lambda: stagewise_prox(value, 5), "`beta`", f"got {value!r}")
    rejects(lambda: stagewise_prox(value, [5, 5]), "`beta`", f"got {value!r}")
    rejects(lambda: stagewise_prox([0.1, value], [5, 5]), "`beta[1]`", f"got {value!r}")
    rejects(lambda: slrla_sgd(0.1, value), "`beta`", f"got {value!r}")
    rejects(lambda: slrla_sgd(0.1, value, anchor_period=7), "`beta`", f"got {value!r}")
    rejects(lambda: Stage(5, 0.1, beta=value), "`beta`", f"got {value!r}")


@pytest.mark.parametrize("value", NOT_LENGTHS, ids=name_of)
def test_lengths(value):
    rejects(lambda: stagewise_prox(0.1, value), "`stage_length`", f"{value!r}")
    rejects(lambda: stagewise_prox(0.1, [5, value]), "`stage_length[1]`", f"{value!r}")
    rejects(lambda: stagewise_prox([0.1, 0.2], value), "`stage_length`", f"{value!r}")
    if value is not None:
        rejects(lambda: slrla_sgd(0.1, anchor_period=value), "`anchor_period`", f"{value!r}")
    rejects(lambda: Stage(value, 0.1), "`cycles`", f"{value!r}")


def test_infinity_is_not_a_number_of_steps():
    rejects(lambda: lookahead(INNER, INF), "`sync_period`", "got inf")
    rejects(lambda: multilayer_lookahead(INNER, (5, INF)), "`sync_periods[1]`", "got inf")
    rejects(lambda: stagewise_prox(0.1, INF), "`stage_length`", "got inf")
    rejects(lambda: stagewise_prox(0.1, [5, INF]), "`stage_length", "inf")
    rejects(lambda: Stage(INF, 0.1), "`cycles`", "got inf")


def test_lengths_that_sum_to_too_much():
    rejects(lambda: stagewise_prox(0.1, [2**30, 2**30]), "`stage_length`", "got [1073741824,")
    rejects(lambda: slrla(optax.sgd, [Stage(2**30, 0.1)]), "`stages[0]`", f"got {5 * 2**30}")
    # An int32 can count to here.
    assert stagewise_prox(0.1, [2**30, 2**30 - 1]).init(jnp.ones(1)).steps_taken == 0


def test_a_stages_numbers_are_not_schedules():
    rejects(lambda: Stage(a_schedule, 0.1), "`cycles`", repr(a_schedule))
    rejects(lambda: Stage(5, 0.1, beta=a_schedule), "`beta`", repr(a_schedule))
    rejects(lambda: Stage(5, 0.1, sync_period=a_schedule), "`sync_period`", repr(a_schedule))
    rejects(lambda: Stage(5, 0.1, slow_step_size=a_schedule), "`slow_step_size`", repr(a_schedule))
    rejects(lambda: stagewise_prox([a_schedule], [5]), "`beta[0]`", repr(a_schedule))


@pytest.mark.parametrize(
    ("build", "fragments"),
    [
        (lambda: stagewise_prox([0.1, 0.2], [5]), ("`beta` = [0.1, 0.2]", "`stage_length` = [5]")),
        (lambda: stagewise_prox([0.1], (5, 6)), ("`beta` = [0.1]", "`stage_length` = (5, 6)")),
        (
            lambda: stagewise_prox(np.array([0.1]), [5, 6]),
            ("`beta` = array([0.1])", "`stage_length` = [5, 6]"),
        ),
        (
            lambda: multilayer_lookahead(INNER, (5, 5), (0.8,)),
            ("`sync_periods` = (5, 5)", "`slow_step_sizes` = (0.8,)"),
        ),
        (
            lambda: multilayer_lookahead(INNER, (5,)),
            ("`sync_periods` = (5,)", "`slow_step_sizes` = (0.8, 0.8)"),
        ),
    ],
)
def test_lists_of_unequal_length(build, fragments):
    rejects(build, *fragments)


@pytest.mark.parametrize("empty", [[], (), np.array([])], ids=repr)
def test_empty_lists(empty):
    rejects(lambda: stagewise_prox(0.1, empty), "`stage_length`", f"got {empty!r}")
    rejects(lambda: stagewise_prox(empty, empty), "`stage_length`", f"got {empty!r}")
    rejects(lambda: slrla_sgd(0.1, anchor_period=empty), "`anchor_period`", f"got {empty!r}")
    rejects(lambda: multilayer_lookahead(INNER, empty, empty), "`sync_periods`", f"got {empty!r}")
    rejects(lambda: slrla(optax.sgd, list(empty)), "`stages`", "got []")


@pytest.mark.parametrize("value", ["restart", "", None, True, 0])
def test_sync_moments(value):
    stages = [Stage(5, 0.1)]
    rejects(lambda: lookahead(INNER, sync_moments=value), "`sync_moments`", f"got {value!r}")
    rejects(
        lambda: multilayer_lookahead(INNER, sync_moments=value), "`sync_moments`", f"got {value!r}"
    )
    rejects(
        lambda: slrla(optax.sgd, stages, sync_moments=value), "`sync_moments`", f"got {value!r}"
    )
    rejects(lambda: slrla_sgd(0.1, sync_moments=value), "`sync_moments`", f"got {value!r}")


@pytest.mark.parametrize("value", ["int32", "bool", "complex64", "float64", np.float64, jnp.int8])
def test_dtypes_that_copies_cannot_have(value):
    stages = [Stage(5, 0.1, beta=0.1)]
    got = f"got {value!r}"
    rejects(lambda: lookahead(INNER, slow_dtype=value), "`slow_dtype`", got)
    rejects(lambda: multilayer_lookahead(INNER, slow_dtype=value), "`slow_dtype`", got)
    rejects(lambda: slrla(optax.sgd, stages, slow_dtype=value), "`slow_dtype`", got)
    rejects(lambda: slrla(optax.sgd, stages, anchor_dtype=value), "`anchor_dtype`", got)
    rejects(lambda: slrla_sgd(0.1, slow_dtype=value), "`slow_dtype`", got)
    rejects(lambda: slrla_sgd(0.1, anchor_dtype=value), "`anchor_dtype`", got)
    rejects(lambda: stagewise_prox(0.1, 5, anchor_dtype=value), "`anchor_dtype`", got)


def test_float64_copies_with_x64():
    with enable_x64(True):
        params = {"w": jnp.ones(2, jnp.float32)}
        state = lookahead(INNER, slow_dtype="float64").init(params)
        assert slow_params(state, params)["w"].dtype == jnp.float64


@pytest.mark.parametrize(
    ("slow_dtype", "dtype"),
    [
        ("bfloat16", "float32"),
        (jnp.float16, "float32"),
        ("float16", "bfloat16"),
        (jnp.bfloat16, "float16"),
        ("bfloat16", "complex64"),
    ],
)
@pytest.mark.parametrize(
    "build",
    [
        lambda slow_dtype: lookahead(INNER, slow_dtype=slow_dtype),
        lambda slow_dtype: multilayer_lookahead(INNER, slow_dtype=slow_dtype),
        lambda slow_dtype: slrla(optax.sgd, [Stage(5, 0.1)], slow_dtype=slow_dtype),
        lambda slow_dtype: slrla_sgd(0.1, slow_dtype=slow_dtype),
        lambda slow_dtype: slrla_sgd(0.1, anchor_period=7, slow_dtype=slow_dtype),
        lambda slow_dtype: two_loop(INNER, INNER, 5, slow_dtype=slow_dtype),
        lambda slow_dtype: snoo(INNER, slow_dtype=slow_dtype),
        lambda slow_dtype: diloco(INNER, "x", slow_dtype=slow_dtype),
    ],
    ids=[
        *("lookahead", "multilayer_lookahead", "slrla", "slrla_sgd-shared", "slrla_sgd-own"),
        *("two_loop", "snoo", "diloco"),
    ],
)
def test_slow_weights_narrower_than_a_param(build, slow_dtype, dtype):
    params = {"integers": jnp.arange(3), "layer": {"w": jnp.ones(2, dtype)}}
    name = jnp.dtype(slow_dtype).name
    where = f"got {name} for params['layer']['w'] of {dtype}"
    rejects(lambda: build(slow_dtype).init(params), "`slow_dtype`", where)
    rejects(lambda: jax.eval_shape(build(slow_dtype).init, params), "`slow_dtype`", where)


@pytest.mark.parametrize(
    ("slow_dtype", "dtype", "copied"),
    [
        (None, "bfloat16", "bfloat16"),
        ("bfloat16", "bfloat16", "bfloat16"),
        ("float32", "bfloat16", "float32"),
        ("float32", "float16", "float32"),
        ("float32", "float32", "float32"),
        ("float32", "complex64", "complex64"),
        ("bfloat16", "int32", "int32"),
    ],
)
def test_slow_weights_wide_enough(slow_dtype, dtype, copied):
    params = jnp.ones(2, dtype)
    assert lookahead(INNER, slow_dtype=slow_dtype).init(params).cycle_start_params.dtype == copied


@pytest.mark.parametrize(
    ("anchor_dtype", "dtype", "copied"),
    [
        (None, "float32", "float32"),
        ("bfloat16", "float32", "bfloat16"),
        ("bfloat16", "int8", "int8"),
    ],
)
def test_anchors_may_be_narrower(anchor_dtype, dtype, copied):
    tx = stagewise_prox(0.1, 5, anchor_dtype=anchor_dtype)
    params = jnp.ones(2, dtype)
    state = tx.init(params)
    assert state.anchor_params.dtype == copied
    _, state = tx.update(params, state, params)
    assert state.anchor_params.dtype == copied


@pytest.mark.parametrize(
    "tx",
    [
        lookahead(INNER),
        multilayer_lookahead(INNER),
        stagewise_prox(0.1, 5),
        slrla(optax.sgd, [Stage(5, 0.1, beta=0.1)]),
        slrla(optax.sgd, [Stage(5, 0.1, beta=0.1)], decoupled=True),
        slrla_sgd(0.1),
        slrla_sgd(0.1, anchor_period=7),
        two_loop(INNER, INNER, 5),
        diloco(INNER, "x"),
    ],
)
def test_update_needs_the_params(tx):
    state = tx.init(jnp.ones(2))
    rejects(lambda: tx.update(jnp.ones(2), state), "`params`", "got None")
    rejects(lambda: tx.update(jnp.ones(2), state, None), "`params`", "got None")


# Complete optimizers, stages and learning rates.


@pytest.mark.parametrize("inner", [optax.adam, None, "adam", 0.1], ids=name_of)
def test_inner_is_a_transformation(inner):
    called = "call adam with its settings" if callable(inner) else ""
    for make in (lookahead, multilayer_lookahead, sam, asam, lookbehind, snoo):
        rejects(lambda make=make: make(inner), "`inner`", "optax.sgd(0.1)", repr(inner), called)
    rejects(lambda: diloco(inner, "x"), "`inner`", "optax.sgd(0.1)", repr(inner), called)
    rejects(lambda: two_loop(INNER, inner, 5), "`outer`", "optax.sgd(0.1)", repr(inner), called)


@pytest.mark.parametrize("value", [0, -0.1, NAN, INF, "0.8", None, [0.8]], ids=repr)
def test_learning_rate_of_the_outer_step(value):
    rejects(lambda: snoo(INNER, 5, value), "`learning_rate`", f"got {value!r}")
    rejects(lambda: diloco(INNER, "x", 5, value), "`learning_rate`", f"got {value!r}")


@pytest.mark.parametrize("value", [1.0, -0.1, NAN, "0.9", None, a_schedule], ids=name_of)
def test_momentum_of_the_outer_step(value):
    rejects(lambda: snoo(INNER, 5, 0.8, value), "`momentum`", repr(value))
    rejects(lambda: diloco(INNER, "x", 5, 0.8, value), "`momentum`", repr(value))


@pytest.mark.parametrize("value", [100, 0.7, (), ("x", 1), ["x"]], ids=repr)
def test_axis_name(value):
    rejects(lambda: two_loop(INNER, INNER, 5, axis_name=value), "`axis_name`", f"got {value!r}")
    rejects(lambda: diloco(INNER, value), "`axis_name`", f"got {value!r}")
    rejects(lambda: diloco(INNER, None), "`axis_name`", "got None")
    diloco(INNER, ("x", "y"))


@pytest.mark.parametrize("value", ["pullback", "half"])
def test_moments_of_two_loops_are_kept_or_reset(value):
    for make in (
        lambda: two_loop(INNER, INNER, 5, sync_moments=value),
        lambda: snoo(INNER, sync_moments=value),
        lambda: diloco(INNER, "x", sync_moments=value),
    ):
        rejects(make, "`sync_moments`", "'keep', 'reset'", f"got {value!r}")


def test_make_inner_makes_one():
    stages = [Stage(2, 0.1)]
    inner = optax.sgd(0.1)
    rejects(lambda: slrla(inner, stages), "`make_inner`", "function", f"got {inner!r}")
    rejects(lambda: slrla(lambda lr: None, stages), "`make_inner(learning_rate)`", "got None")
    rejects(lambda: slrla(lambda lr: optax.sgd, stages), "`make_inner(learning_rate)`", "sgd")


def test_stages_are_stages():
    rejects(lambda: slrla(optax.sgd, [(2, 0.1)]), "`stages[0]`", "slrla_jax.Stage", "got (2, 0.1)")
    rejects(lambda: slrla(optax.sgd, [Stage(2, 0.1), 5]), "`stages[1]`", "got 5")
    rejects(lambda: slrla(optax.sgd, Stage(2, 0.1)), "`stages`", "list")


@pytest.mark.parametrize("value", [NAN, INF, -0.1, "0.1", "a", None, [0.1]], ids=repr)
def test_learning_rate(value):
    rejects(lambda: Stage(5, value), "`learning_rate`", f"got {value!r}")
    rejects(lambda: slrla_sgd(value), "`learning_rate`", f"got {value!r}")


@pytest.mark.parametrize("value", [1.0, 1.5, -0.1, NAN, "0.9", a_schedule], ids=name_of)
def test_momentum(value):
    rejects(lambda: slrla_sgd(0.1, momentum=value), "`momentum`", f"{value!r}")


@pytest.mark.parametrize("value", [-1.0, NAN, INF, "0.1", None, a_schedule], ids=name_of)
def test_weight_decay(value):
    rejects(lambda: slrla_sgd(0.1, weight_decay=value), "`weight_decay`", f"{value!r}")


def test_an_anchor_that_is_the_slow_weights_has_their_dtype():
    rejects(lambda: slrla_sgd(0.1, anchor_dtype="float32"), "`anchor_dtype`", "got 'float32'")
    assert slrla_sgd(0.1, anchor_period=5, anchor_dtype="float32").init(jnp.ones(2))


def test_a_list_of_betas_is_for_stages():
    for anchor_period in (None, 5):
        rejects(
            lambda anchor_period=anchor_period: slrla_sgd(0.1, [0.1, 0.2], anchor_period),
            "`beta`",
            "got [0.1, 0.2]",
        )


REALS = [*("bfloat16", "float16", "float8_e4m3fn", "float8_e5m2", "float32"), np.float32, np.int64]


@pytest.mark.parametrize("dtype", REALS, ids=str)
def test_every_real_dtype_is_checked(dtype):
    """Both eagerly and in a compiled function, where values cannot be inspected."""
    one = jnp.asarray(1, dtype) if isinstance(dtype, str) else dtype(1)
    stages = [Stage(one, one, one, one, one)]
    for make in (
        lambda: lookahead(INNER, one, one),
        lambda: multilayer_lookahead(INNER, [one], [one]),
        lambda: slrla(optax.sgd, stages),
        lambda: slrla_sgd(one, one, one, one, one, 0 * one, one),
        lambda: stagewise_prox(one, one),
        lambda: lookbehind(INNER, 1, one, one, adaptive_rho=True, eta=one),
        lambda: adaloss(one, one, one, one, 0 * one, one),
        lambda: adagrad_norm(one, one, 0 * one, one),
        lambda: adabound(one, 0 * one, 0 * one, one, one, one, one, one),
    ):
        params = jnp.ones(2)
        extra = {"value": 1.0, "grad_fn": lambda params, i: params}
        tx = optax.with_extra_args_support(make())
        state = tx.init(params)
        if "float8" not in str(dtype):  # optax's own multiplications do not support it
            updates, _ = tx.update(params, state, params, **extra)
            assert jnp.isfinite(updates).all()
    two = one + one
    rejects(lambda: lookahead(INNER, 5, two), "`slow_step_size`", f"got {two!r}")
    rejects(lambda: stagewise_prox(0 * one - one, 5), "`beta`", "got")


# Accepted arguments.


def scanned(tx, steps=7):
    """The params after each step down a slope of 1, from 0."""

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jnp.ones_like(params), state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    params = jnp.array(0.0)
    return jax.lax.scan(step, (params, tx.init(params)), length=steps)[1]


def path(tx):
    return quick_jit(lambda: scanned(tx))()


THREES = [3, 3.0, np.int64(3), np.float32(3.0), np.array(3), jnp.array(3), jnp.array(3.0)]
HALVES = [0.5, np.float32(0.5), np.array(0.5), jnp.array(0.5), a_schedule]
ids = {"ids": lambda value: f"{type(value).__name__}-{name_of(value)}"}


@pytest.mark.parametrize("three", [*THREES, lambda count: 3, lambda count: jnp.array(3)], **ids)
def test_periods_taken(three):
    expected = [-1, -2, -1.5, -2.5, -3.5, -3, -4]
    np.testing.assert_array_equal(path(lookahead(INNER, three, 0.5)), expected)
    layers = multilayer_lookahead(INNER, (1, three), (1.0, 0.5))
    np.testing.assert_array_equal(path(layers), expected)


@pytest.mark.parametrize("half", HALVES, **ids)
def test_step_sizes_taken(half):
    expected = [-1, -2, -1.5, -2.5, -3.5, -3, -4]
    np.testing.assert_array_equal(path(lookahead(INNER, 3, half)), expected)
    np.testing.assert_array_equal(path(multilayer_lookahead(INNER, [3], [half])), expected)


# Each stage of three steps starts with no pull: −1, −1.5, −1.75 from its anchor.
PULLED = [-1, -1.5, -1.75, -2.75, -3.25, -3.5, -4.5]


@pytest.mark.parametrize("three", THREES, **ids)
def test_stage_lengths_taken(three):
    np.testing.assert_array_equal(path(optax.chain(stagewise_prox(0.5, three), INNER)), PULLED)
    listed = optax.chain(stagewise_prox(0.5, [three, three, 1]), INNER)
    np.testing.assert_array_equal(path(listed), PULLED)
    own_anchor = slrla_sgd(1.0, 0.5, three, sync_period=100, momentum=None)
    np.testing.assert_array_equal(path(own_anchor), PULLED)
    # With α = 1 the slow weights, as the anchor, are where each stage began.
    shared = slrla_sgd(1.0, 0.5, None, three, slow_step_size=1.0, momentum=0)
    np.testing.assert_array_equal(path(shared), PULLED)
    stages = [Stage(1, 1.0, 0.5, three, 1.0)] * 3
    np.testing.assert_array_equal(path(slrla(optax.sgd, stages)), PULLED)


@pytest.mark.parametrize("half", HALVES, **ids)
def test_betas_taken(half):
    np.testing.assert_array_equal(path(optax.chain(stagewise_prox(half, 3), INNER)), PULLED)
    lengths = optax.chain(stagewise_prox(half, [3, 3, 1]), INNER)
    np.testing.assert_array_equal(path(lengths), PULLED)
    shared = slrla_sgd(1.0, half, None, 3, slow_step_size=1.0, momentum=None)
    np.testing.assert_array_equal(path(shared), PULLED)


def test_lists_taken_as_arrays():
    for array in (np.array, jnp.array, tuple):
        prox = stagewise_prox(array([0.5, 0.5, 0.5]), array([3, 3, 1]))
        np.testing.assert_array_equal(path(optax.chain(prox, INNER)), PULLED)


def test_a_traced_value_is_not_looked_at():
    @quick_jit
    def traced(k, alpha, beta, length):
        stage = Stage(1, 1.0, beta, length, alpha)
        return (
            scanned(lookahead(INNER, k, alpha)),
            scanned(multilayer_lookahead(INNER, (1, k), (1.0, alpha))),
            scanned(optax.chain(stagewise_prox(beta, length), INNER)),
            scanned(optax.chain(stagewise_prox(beta, [length, length, 1]), INNER)),
            scanned(slrla_sgd(1.0, beta, length, 100, momentum=None)),
            scanned(slrla(optax.sgd, [stage, stage, stage])),
        )

    looked, layered, *pulled, staged = traced(3, 0.5, 0.5, 3)
    np.testing.assert_array_equal(looked, [-1, -2, -1.5, -2.5, -3.5, -3, -4])
    np.testing.assert_array_equal(layered, looked)
    for prox in pulled:
        np.testing.assert_array_equal(prox, PULLED)
    # −1.75 moves half way back, to −0.875, and so on.
    np.testing.assert_array_equal(staged, [-1, -1.5, -0.875, -1.875, -2.375, -1.75, -2.75])


def test_the_bounds_themselves_are_taken():
    np.testing.assert_array_equal(path(lookahead(INNER, 1, 1)), path(INNER))
    np.testing.assert_array_equal(path(lookahead(INNER, 1, 0.5)), -0.5 * np.arange(1, 8))
    np.testing.assert_array_equal(path(optax.chain(stagewise_prox(0, 1), INNER)), path(INNER))
    assert Stage(1, 0.1, beta=0, sync_period=1, slow_step_size=1).length == 1


@pytest.mark.parametrize("value", ["abc", "int32", "complex64", object])
def test_not_a_floating_dtype(value):
    rejects(lambda: lookahead(INNER, slow_dtype=value), "`slow_dtype`", repr(value))
    rejects(lambda: snoo(INNER, slow_dtype=value), "`slow_dtype`", repr(value))


def test_one_value_where_a_list_is_wanted():
    rejects(lambda: multilayer_lookahead(INNER, 5, (0.8,)), "`sync_periods`", "got 5")
    rejects(lambda: multilayer_lookahead(INNER, (5,), 0.8), "`slow_step_sizes`", "got 0.8")
    stage = Stage(5, 0.1)
    rejects(lambda: slrla(optax.sgd, stage), "`stages`", repr(stage))


def test_stages_of_numpys_small_integers():
    assert Stage(np.int16(30_000), 0.1, sync_period=np.int16(5)).length == 150_000
    assert Stage(2.0, 0.1).length == 10
    assert type(Stage(2.0, 0.1).length) is int


def test_periods_that_an_int32_cannot_count():
    rejects(lambda: lookahead(INNER, 2**31), "`sync_period`", f"got {2**31}")
    rejects(lambda: stagewise_prox(0.1, 2**40), "`stage_length`", f"got {2**40}")
    rejects(lambda: slrla_sgd(0.1, anchor_period=2**31), "`anchor_period`", f"got {2**31}")


def test_other_invalid_settings_are_rejected():
    stages = [Stage(5, 0.1)]
    rejects(lambda: slrla(optax.sgd, stages, anchor_dtype="int8"), "`anchor_dtype`", "got 'int8'")
    rejects(lambda: slrla(optax.sgd, stages, decoupled="no"), "`decoupled`", "got 'no'")
    rejects(lambda: lookahead(INNER, [1, [2, 3]]), "`sync_period`", "got [1, [2, 3]]")
    rejects(lambda: lookbehind(INNER, jnp.array(2)), "`ascent_steps`", "`static_args`")
    rejects(lambda: adabound(0.1, weight_decay=a_schedule), "`weight_decay`", "number")


def test_numpys_double_precision_does_not_widen_a_state():
    with enable_x64(True):
        for tx in (
            slrla_sgd(np.float64(0.1), momentum=np.float64(0.9), weight_decay=np.float64(0.01)),
            adaloss(np.float64(0.1), momentum=np.float64(0.9)),
            adagrad_norm(np.float64(0.1), momentum=np.float64(0.9)),
        ):
            params = jnp.ones(2, jnp.float32)
            state = tx.init(params)
            updates, later = optax.with_extra_args_support(tx).update(
                params, state, params, value=1.0
            )
            assert updates.dtype == jnp.float32
            assert jax.tree.map(lambda x: x.dtype, later) == jax.tree.map(lambda x: x.dtype, state)


def test_known_arrays_in_a_function_that_is_compiled():
    """Lists and lengths that are JAX arrays from outside: no tracer may leak from them."""
    periods, sizes, three = jnp.array([1, 3]), jnp.array([1.0, 0.5]), jnp.array(3)
    built = []

    @jax.jit
    def build():
        built.append(multilayer_lookahead(INNER, periods, sizes))
        built.append(slrla(optax.sgd, [Stage(three, 1.0, 0.5, three, 1.0)] * 2))
        return jnp.zeros(())

    build()
    np.testing.assert_array_equal(path(built[0]), [-1, -2, -1.5, -2.5, -3.5, -3, -4])
    assert jnp.isfinite(path(built[1])).all()


def test_slow_weights_of_float8_params():
    params = jnp.ones(2, "float8_e4m3fn")
    state = lookahead(INNER, slow_dtype="float32").init(params)
    assert state.cycle_start_params.dtype == jnp.float32
    with pytest.raises(ValueError, match=r"`slow_dtype`.*float8_e4m3fn for params"):
        lookahead(INNER, slow_dtype="float8_e4m3fn").init(jnp.ones(2, jnp.bfloat16))


# Manual syncs


def updated(tx, **extra):
    params = jnp.ones(2)
    return tx.update(params, tx.init(params), params, **extra)


SYNCING = {
    "lookahead": lambda k: lookahead(INNER, k),
    "slrla_sgd": lambda k: slrla_sgd(0.1, sync_period=k),
    "two_loop": lambda k: two_loop(INNER, INNER, k),
    "snoo": lambda k: snoo(INNER, k),
    "diloco": lambda k: diloco(INNER, "x", k),
    "in a chain": lambda k: optax.chain(optax.clip(1.0), lookahead(INNER, k)),
}


@pytest.mark.parametrize("name", SYNCING)
def test_without_a_period_sync_must_be_given(name):
    rejects(lambda: updated(SYNCING[name](None)), "`sync` must be passed", "got None", "True or")
    rejects(lambda: updated(SYNCING[name](None), sync=None), "`sync` must be passed", "got None")


@pytest.mark.parametrize("value", [0, 1, 1.0, "True", [True], jnp.array(True)], ids=repr)
@pytest.mark.parametrize("k", [None, 5])
@pytest.mark.parametrize("name", SYNCING)
def test_sync_is_a_bool(name, k, value):
    rejects(lambda: updated(SYNCING[name](k), sync=value), "`sync`", "True or False", repr(value))


@pytest.mark.parametrize("name", SYNCING)
def test_sync_is_known_when_the_program_is_compiled(name):
    step = jax.jit(lambda sync: updated(SYNCING[name](5), sync=sync))
    rejects(lambda: step(True), "`sync`", "static argument", "got", "Trace")


@pytest.mark.parametrize("value", [True, -1, 3, 1.0, "1", (True, False), jnp.array(1)], ids=repr)
def test_sync_of_layers_is_their_number(value):
    for periods in (None, (5, 5)):
        tx = multilayer_lookahead(INNER, periods)
        rejects(lambda tx=tx: updated(tx, sync=value), "`sync`", "from 0 to 2", f"got {value!r}")
    rejects(lambda: updated(multilayer_lookahead(INNER, None)), "`sync` must be passed", "0 to 2")


def test_syncs_taken():
    for value in (True, False, np.True_, np.False_):
        updated(lookahead(INNER, None), sync=value)
        updated(snoo(INNER, None), sync=value)
    for value in (0, 1, 2, np.int64(2), False):
        updated(multilayer_lookahead(INNER, None), sync=value)
