"""AdaBound against a NumPy float64 loop of the authors' formula."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from x64 import enable_x64

from slrla_jax import adabound, lookahead


def reference(theta, gradients, rates, b1, b2, final_lr, gamma, eps, weight_decay, base_lr):
    """θ after each step; `rates` holds the learning rates η_1, η_2, …"""
    theta = np.array(theta, np.float64)
    m, v, path = np.zeros_like(theta), np.zeros_like(theta), []
    for t, (g, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        g = g + weight_decay * theta
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        final = final_lr * rate / base_lr
        size = rate * np.sqrt(1 - b2**t) / (1 - b1**t) / (np.sqrt(v) + eps)
        lower, upper = final * (1 - 1 / (gamma * t + 1)), final * (1 + 1 / (gamma * t))
        theta = theta - np.clip(size, lower, upper) * m
        path.append(theta)
    return path


def run(tx, theta, gradients):
    params, path = jnp.asarray(theta), []
    state, update = tx.init(params), jax.jit(tx.update)
    for g in gradients:
        updates, state = update(jnp.asarray(g), state, params)
        params = optax.apply_updates(params, updates)
        path.append(np.asarray(params))
    return path


@settings(deadline=None, derandomize=True, max_examples=15)
@given(
    seed=st.integers(0, 2**32 - 1),
    rate=st.floats(1e-4, 1e-1),
    final_lr=st.floats(1e-3, 1.0),
    gamma=st.floats(1e-3, 1.0),
    weight_decay=st.sampled_from([0.0, 1e-2]),
    decays=st.booleans(),
)
def test_follows_the_formula(seed, rate, final_lr, gamma, weight_decay, decays):
    rng = np.random.default_rng(seed)
    theta, gradients = rng.normal(size=5), rng.normal(size=(20, 5)) * [1e-3, 0.1, 1, 10, 0]
    rates = [rate * 0.5 ** (decays * (t // 7)) for t in range(20)]
    with enable_x64(True):
        # (optax's own schedules compute in float32.)
        schedule = (lambda count: jnp.asarray(rates)[count]) if decays else rate
        base_lr = 0.3 * rate if decays else None
        tx = adabound(
            schedule, final_lr=final_lr, gamma=gamma, weight_decay=weight_decay, base_lr=base_lr
        )
        path = run(tx, theta, gradients)
    expected = reference(
        theta, gradients, rates, 0.9, 0.999, final_lr, gamma, 1e-8, weight_decay, base_lr or rate
    )
    np.testing.assert_allclose(path, expected, rtol=1e-10, atol=1e-10)


def test_wide_bounds_are_adam():
    rng = np.random.default_rng(0)
    theta, gradients = rng.normal(size=5), rng.normal(size=(10, 5))
    with enable_x64(True):
        # γ = 1e-9: from f·1e-9·t to f·1e9/t, which binds nothing here.
        bounded = run(adabound(1e-2, gamma=1e-9), theta, gradients)
        # ε is added before bias correction here, and after it in Adam.
        adam = run(optax.adam(1e-2, eps=0.0), theta, gradients)
    np.testing.assert_allclose(bounded, adam, rtol=1e-5)


def test_closed_bounds_are_sgd_with_averaged_momentum():
    rng = np.random.default_rng(0)
    theta, gradients = rng.normal(size=5), rng.normal(size=(10, 5))
    with enable_x64(True):
        bounded = run(adabound(1e-3, final_lr=0.1, gamma=1e12), theta, gradients)
        sgd = run(optax.chain(optax.ema(0.9, debias=False), optax.sgd(0.1)), theta, gradients)
    np.testing.assert_allclose(bounded, sgd, rtol=1e-10)


def test_reset_restarts_the_moments_but_not_the_schedule():
    gradient = jnp.ones(())
    schedule = optax.piecewise_constant_schedule(1e-3, {2: 0.1})
    tx = lookahead(
        adabound(schedule, base_lr=1e-3), sync_period=2, slow_step_size=1.0, sync_moments="reset"
    )
    params, steps = jnp.zeros(()), []
    state = tx.init(params)
    for _ in range(4):
        updates, state = tx.update(gradient, state, params)
        steps.append(float(updates))
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(steps[2:], np.multiply(steps[:2], 0.1), rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "value"),
    [("b1", 1.0), ("b2", -0.1), ("final_lr", 0.0), ("gamma", -1.0), ("eps", -1e-8),
     ("weight_decay", -1e-4), ("gamma", optax.constant_schedule(1.0))],
)  # fmt: skip
def test_bad_arguments_are_named(name, value):
    shown = "function" if callable(value) else str(value)
    with pytest.raises(ValueError, match=rf"`{name}`.*{shown}"):
        adabound(1e-3, **{name: value})


def test_weight_decay_needs_params():
    tx = adabound(1e-3, weight_decay=0.1)
    with pytest.raises(ValueError, match=r"`params`.*None"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))


def moves(tx, gradients):
    """The steps of one param that starts at 0."""
    return np.diff(np.ravel(run(tx, jnp.zeros(1), gradients)), prepend=0.0)


def test_a_warm_up_from_zero_starts_without_moving_and_ends_within_its_bounds():
    schedule = optax.warmup_cosine_decay_schedule(0.0, 1e-2, 5, 50)
    gradients = np.ones((40, 1), np.float32)
    steps = -moves(adabound(schedule, base_lr=1e-2), gradients)
    assert steps[0] == 0
    assert np.isfinite(steps).all()
    # With gradients of 1 the step size is η, clipped to bounds that are still wide here.
    np.testing.assert_allclose(steps[1:5], [0.002, 0.004, 0.006, 0.008], rtol=1e-2)
    assert steps.max() < 0.0101


def test_the_bounds_follow_the_learning_rate_from_where_it_is_stated():
    """A warm-up from 1e-6 to 1e-2 converges to final_lr = 0.1, not to 10,000 times that."""
    schedule = optax.linear_schedule(1e-6, 1e-2, 10)
    tx = adabound(schedule, b1=0.0, gamma=1e9, base_lr=1e-2)
    steps = -moves(tx, np.ones((20, 1), np.float32))
    np.testing.assert_allclose(steps, [0.1 * schedule(t) / 1e-2 for t in range(20)], rtol=1e-3)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"learning_rate": optax.constant_schedule(0.1)}, "`base_lr` must be given.*None"),
        ({"learning_rate": 0.0}, "`learning_rate`.*positive.*0.0"),
        ({"learning_rate": float("nan")}, "`learning_rate`.*nan"),
        ({"learning_rate": -0.1, "base_lr": 0.1}, "`learning_rate`.*-0.1"),
        ({"base_lr": 0.0}, "`base_lr`.*positive.*0.0"),
        ({"base_lr": optax.constant_schedule(0.1)}, "`base_lr`.*number.*function"),
    ],
)
def test_learning_rates_that_bounds_cannot_follow(kwargs, message):
    with pytest.raises(ValueError, match=message):
        adabound(**kwargs)


def test_with_a_base_a_learning_rate_of_zero_does_not_move():
    assert (moves(adabound(0.0, base_lr=0.1), np.ones((3, 1), np.float32)) == 0).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_second_moment_of_half_precision_decays(dtype):
    """In bfloat16, β₂ v would round back to v, and 0.5 would stay 0.5 forever."""
    params = jnp.zeros(1, dtype)
    tx = adabound(1e-3)
    state = tx.init(params)._replace(nu=jnp.full(1, 0.5))
    assert state.nu.dtype == tx.init(params).nu.dtype == jnp.float32

    def step(state, _):
        return tx.update(jnp.full(1, 0.01, dtype), state, params)[1], None

    state, _ = jax.lax.scan(step, state, length=3000)
    g = float(jnp.asarray(0.01, dtype))
    expected = 0.5 * 0.999**3000 + g**2 * (1 - 0.999**3000)
    np.testing.assert_allclose(state.nu, expected, rtol=1e-3)
    assert state.mu.dtype == dtype


def test_moments_of_half_precision_are_rounded_once():
    """β₁ m + (1 − β₁) g is computed in float32; in bfloat16, 0.9 m alone would be rounded."""
    rng = np.random.default_rng(0)
    m, g = (jnp.asarray(rng.normal(size=1000), jnp.bfloat16) for _ in range(2))
    tx = adabound(1e-3)
    _, state = tx.update(g, tx.init(m)._replace(mu=m), m)
    m, g = np.asarray(m, np.float32), np.asarray(g, np.float32)
    np.testing.assert_array_equal(
        state.mu, jnp.asarray(np.float32(0.9) * m + np.float32(1 - 0.9) * g, jnp.bfloat16)
    )


def test_a_zero_gradient_is_a_zero_step_even_with_an_epsilon_of_zero():
    tx = adabound(1e-3, eps=0.0)
    params = jnp.ones(3)
    updates, _ = tx.update(0 * params, tx.init(params), params)
    assert (updates == 0).all()
