"""AdaLoss and its baselines against NumPy float64 loops of their formulas."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import slrla_jax


def loss(x):
    return ((x - 1.0) ** 2 * [1.0, 4.0]).sum() + 0.1


def gradient(x):
    return 2 * (x - 1.0) * np.array([1.0, 4.0])


def reference(rate, grow, b0, steps, momentum=None, weight_decay=0.0):
    """θ after each step, with b² growing by `grow(loss, gradient)`."""
    theta, trace, b_squared, path = np.array([3.0, -2.0]), 0.0, b0**2, []
    for _ in range(steps):
        b_squared += grow(loss(theta), gradient(theta))
        g = gradient(theta) / np.sqrt(b_squared) + weight_decay * theta
        trace = g if momentum is None else momentum * trace + g
        theta = theta - rate * trace
        path.append(theta)
    return path


def run(tx, steps):
    params, path = jnp.array([3.0, -2.0]), []
    state, update = tx.init(params), jax.jit(tx.update)
    for _ in range(steps):
        grads = jnp.asarray(gradient(np.asarray(params, np.float64)), params.dtype)
        value = loss(np.asarray(params, np.float64))
        updates, state = update(grads, state, params, value=value)
        params = optax.apply_updates(params, updates)
        path.append(np.asarray(params))
    return path


settings_of_a_run = given(
    rate=st.floats(0.01, 1.0),
    b0=st.floats(0.5, 10.0),
    momentum=st.sampled_from([None, 0.5, 0.9]),
    weight_decay=st.sampled_from([0.0, 1e-2]),
    alpha=st.floats(0.1, 10.0),
    c=st.floats(0.0, 5.0),
)


@settings(deadline=None, derandomize=True, max_examples=15)
@settings_of_a_run
def test_adaloss_follows_the_formula(rate, b0, momentum, weight_decay, alpha, c):
    path = run(slrla_jax.adaloss(rate, b0, alpha, c, momentum, weight_decay), 12)
    expected = reference(rate, lambda f, g: alpha * abs(f - c), b0, 12, momentum, weight_decay)
    np.testing.assert_allclose(path, expected, rtol=2e-4, atol=2e-4)


@settings(deadline=None, derandomize=True, max_examples=15)
@settings_of_a_run
def test_adagrad_norm_follows_the_formula(rate, b0, momentum, weight_decay, alpha, c):
    path = run(slrla_jax.adagrad_norm(rate, b0, momentum, weight_decay), 12)
    expected = reference(rate, lambda f, g: (g**2).sum(), b0, 12, momentum, weight_decay)
    np.testing.assert_allclose(path, expected, rtol=2e-4, atol=2e-4)


def test_decay_sqrt_follows_the_formula():
    path = run(optax.sgd(slrla_jax.decay_sqrt_schedule(0.3, b0=2.0, alpha=0.7)), 12)
    expected = reference(0.3, lambda f, g: 0.7, 2.0, 12)
    np.testing.assert_allclose(path, expected, rtol=1e-5)


def test_the_norm_is_over_all_leaves():
    tx = slrla_jax.scale_by_adagrad_norm(b0=1.0)
    grads = {"a": jnp.array([2.0, 2.0]), "b": {"c": jnp.array(4.0)}, "none": None}
    updates, state = tx.update(grads, tx.init(grads))
    assert float(state.b_squared) == 1 + 4 + 4 + 16
    assert float(updates["b"]["c"]) == pytest.approx(4 / 5)


@pytest.mark.parametrize("tx", [slrla_jax.adaloss(0.1), slrla_jax.adagrad_norm(0.1)])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_the_accumulator_is_float32_and_updates_are_not(tx, dtype):
    params = jnp.ones(3, dtype)
    state = tx.init(params)
    for _ in range(2):
        updates, state = tx.update(params, state, params, value=jnp.asarray(1e-3, dtype))
        assert optax.tree_utils.tree_get(state, "b_squared").dtype == jnp.float32
        assert updates.dtype == dtype


def test_small_losses_are_not_lost_beside_a_large_norm_of_bf16_params():
    tx = slrla_jax.scale_by_adaloss(b0=16.0)
    params = jnp.ones(3, jnp.bfloat16)
    state = tx.init(params)
    for _ in range(100):
        _, state = tx.update(params, state, params, value=jnp.asarray(0.01, jnp.bfloat16))
    assert float(state.b_squared) == pytest.approx(257.0, abs=0.01)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: slrla_jax.lookahead(tx, 2, 0.5),
        lambda tx: slrla_jax.slrla(lambda lr: tx, [slrla_jax.Stage(2, 0.1, beta=0.1)]),
        lambda tx: slrla_jax.multilayer_lookahead(tx, (2, 2), (0.5, 0.5)),
        lambda tx: optax.MultiSteps(tx, 2),
    ],
)
def test_the_value_reaches_it_inside_the_others(wrap):
    tx = wrap(slrla_jax.adaloss(0.1))
    params = jnp.ones(3)
    state = tx.init(params)
    for _ in range(2):
        _, state = jax.jit(tx.update)(params, state, params, value=3.0)
    grown = float(optax.tree_utils.tree_get(state, "b_squared"))
    assert grown == (4.0 if isinstance(tx, optax.MultiSteps) else 7.0)


@pytest.mark.parametrize(("value", "shown"), [(None, "None"), (jnp.ones(2), r"\(2,\)")])
def test_a_value_that_is_missing_or_not_a_scalar_is_named(value, shown):
    tx = slrla_jax.adaloss(0.1)
    params = jnp.ones(3)
    with pytest.raises(ValueError, match=f"`value`.*{shown}"):
        tx.update(params, tx.init(params), params, value=value)


@pytest.mark.parametrize(
    ("make", "name", "value"),
    [
        (slrla_jax.scale_by_adaloss, "b0", 0.0),
        (slrla_jax.scale_by_adaloss, "alpha", -1.0),
        (slrla_jax.scale_by_adagrad_norm, "b0", float("nan")),
        (lambda **kwargs: slrla_jax.adaloss(0.1, **kwargs), "weight_decay", -0.1),
        (lambda **kwargs: slrla_jax.decay_sqrt_schedule(0.1, alpha=1.0, **kwargs), "b0", -2.0),
    ],
)
def test_bad_arguments_are_named(make, name, value):
    with pytest.raises(ValueError, match=f"`{name}`.*{value}"):
        make(**{name: value})


# One bad batch.


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "guard",
    [lambda tx: optax.chain(optax.zero_nans(), tx), lambda tx: optax.apply_if_finite(tx, 5)],
)
@pytest.mark.parametrize("broken_gradient", [False, True])
def test_one_bad_loss_does_not_end_all_steps(bad, guard, broken_gradient):
    tx, params = guard(slrla_jax.adaloss(0.5)), jnp.ones(2)
    state = tx.init(params)
    grads = params * (np.nan if broken_gradient else 1.0)
    updates, state = tx.update(grads, state, params, value=bad)
    # The gradient is divided by the previous b, or skipped by the guard.
    assert (updates == (0.0 if broken_gradient else -0.5)).all()
    updates, state = tx.update(params, state, params, value=3.0)
    np.testing.assert_allclose(updates, -0.5 / np.sqrt(1 + 3), rtol=1e-6)
    assert optax.tree.get(state, "b_squared") == 4


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_one_bad_gradient_does_not_end_all_steps(bad):
    tx, params = optax.apply_if_finite(slrla_jax.adagrad_norm(0.5), 5), jnp.ones(2)
    state = tx.init(params)
    updates, state = tx.update(params * bad, state, params)
    assert (updates == 0).all()
    assert state.total_notfinite == 1
    assert optax.tree.get(state, "b_squared") == 1


def test_a_gradient_norm_that_overflows_is_a_step_of_zero():
    tx, params = slrla_jax.adagrad_norm(0.5), jnp.ones(2)
    updates, state = tx.update(1e30 * params, tx.init(params), params)
    assert (updates == 0).all()
    updates, state = tx.update(params, state, params)
    np.testing.assert_allclose(updates, -0.5 / np.sqrt(1 + 2), rtol=1e-6)


def test_a_sync_leaves_the_norm_that_was_found():
    for sync_moments in ("reset", "pullback"):
        for make in (slrla_jax.adaloss, slrla_jax.adagrad_norm):
            tx = slrla_jax.lookahead(make(0.1), 1, 0.5, sync_moments=sync_moments)
            params = jnp.ones(4)
            _, state = tx.update(params, tx.init(params), params, value=4.0)
            assert optax.tree.get(state, "b_squared") == 5


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"momentum": 2.0}, "`momentum`.*2.0"),
        ({"momentum": 1.0}, "`momentum`.*1.0"),
        ({"momentum": lambda step: 0.9}, "`momentum`.*number.*function"),
        ({"c": float("nan")}, "`c`.*nan"),
        ({"c": float("inf")}, "`c`.*inf"),
        ({"learning_rate": "0.1"}, "`learning_rate`.*'0.1'"),
        ({"learning_rate": -1.0}, "`learning_rate`.*-1.0"),
        ({"weight_decay": float("inf")}, "`weight_decay`.*inf"),
    ],
)
def test_invalid_settings_are_rejected(kwargs, message):
    with pytest.raises(ValueError, match=message):
        slrla_jax.adaloss(**{"learning_rate": 0.1} | kwargs)
    if "c" not in kwargs:
        with pytest.raises(ValueError, match=message):
            slrla_jax.adagrad_norm(**{"learning_rate": 0.1} | kwargs)


def test_a_schedules_learning_rate_is_checked():
    with pytest.raises(ValueError, match=r"`learning_rate`.*nan"):
        slrla_jax.decay_sqrt_schedule(float("nan"), 1.0, 1.0)


def test_a_loss_that_b_squared_cannot_hold_is_left_out():
    tx, params = slrla_jax.adaloss(0.5, alpha=10.0), jnp.ones(2)
    state = tx.init(params)
    for value, b_squared in ((1.0, 11), (1e38, 11), (2.0, 31)):
        updates, state = tx.update(params, state, params, value=value)
        assert optax.tree.get(state, "b_squared") == b_squared
        np.testing.assert_allclose(updates, -0.5 / np.sqrt(b_squared), rtol=1e-6)


@pytest.mark.parametrize("b0", [1e30, 1e-30, 1e19])
def test_a_b0_whose_square_float32_cannot_hold(b0):
    for make in (
        slrla_jax.scale_by_adaloss,
        slrla_jax.scale_by_adagrad_norm,
        lambda b0: slrla_jax.decay_sqrt_schedule(0.1, b0, 1.0),
    ):
        with pytest.raises(ValueError, match=rf"`b0` must be between .*{re.escape(repr(b0))}"):
            make(b0)


def test_the_decaying_learning_rate_at_any_count():
    schedule = slrla_jax.decay_sqrt_schedule(1.0, 100_000, 1000)
    for count in (0, 3_000_000, 2**31 - 1):
        expected = 1 / np.sqrt(1e10 + 1000 * (count + 1.0))
        np.testing.assert_allclose(schedule(jnp.int32(count)), expected, rtol=1e-6)
        np.testing.assert_allclose(schedule(count), expected, rtol=1e-6)
