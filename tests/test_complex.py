"""Complex params: squares are squared absolute values, and norms cover both parts."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from x64 import enable_x64

import slrla_jax

RNG = np.random.default_rng(5)
START = RNG.normal(size=3) + 1j * RNG.normal(size=3)
GRADIENTS = RNG.normal(size=(12, 3)) + 1j * RNG.normal(size=(12, 3))


def run(tx, **extra):
    with enable_x64(True):
        params = jnp.asarray(START)
        state, update, path = tx.init(params), jax.jit(tx.update), []
        for g in GRADIENTS:
            updates, state = update(jnp.asarray(g), state, params, **extra)
            params = optax.apply_updates(params, updates)
            path.append(np.asarray(params))
    return path


def test_adabound_follows_the_formula():
    """v is the moving average of |g|², one real number per complex number."""
    b1, b2, rate, final_lr, gamma = 0.9, 0.999, 0.01, 0.1, 0.05
    theta, m, v, expected = START, 0.0, 0.0, []
    for t, g in enumerate(GRADIENTS, start=1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * (g.real**2 + g.imag**2)
        size = rate * np.sqrt(1 - b2**t) / (1 - b1**t) / (np.sqrt(v) + 1e-8)
        lower, upper = final_lr * (1 - 1 / (gamma * t + 1)), final_lr * (1 + 1 / (gamma * t))
        theta = theta - np.clip(size, lower, upper) * m
        expected.append(theta)
    tx = slrla_jax.adabound(rate, b1, b2, final_lr, gamma)
    np.testing.assert_allclose(run(tx), expected, rtol=1e-10)
    assert tx.init(jnp.asarray(START, jnp.complex64)).nu.dtype == jnp.float32


def test_adagrad_norm_follows_the_formula():
    theta, b_squared, expected = START, 2.0**2, []
    for g in GRADIENTS:
        b_squared += (g.real**2 + g.imag**2).sum()
        theta = theta - 0.3 / np.sqrt(b_squared) * g
        expected.append(theta)
    np.testing.assert_allclose(run(slrla_jax.adagrad_norm(0.3, 2.0)), expected, rtol=1e-10)


def test_the_penalty_of_slrla_is_that_of_absolute_values():
    heard = []

    def listening(learning_rate):
        def update(updates, state, params, value):
            heard.append(complex(value))
            return -updates, state

        return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)

    tx = slrla_jax.slrla(listening, [slrla_jax.Stage(2, 1.0, beta=0.6, sync_period=5)])
    with enable_x64(True):
        state, expected = tx.init(jnp.asarray(START)), []
        for g in GRADIENTS[:2]:
            params = START + g - GRADIENTS[0]
            _, state = tx.update(jnp.asarray(g), state, jnp.asarray(params), value=1.5)
            away = params - START
            expected.append(1.5 + 0.3 * (away.real**2 + away.imag**2).sum())
    np.testing.assert_allclose(heard, expected, rtol=1e-12)
