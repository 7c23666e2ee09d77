"""Primal averaging beside other libraries' forms of it, and what is stored."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from slrla_jax import PrimalAveragingState, primal_averaging, slow_params

PARAMS = {"w": jnp.array([[0.5, -1.0], [2.0, 1.5]]), "b": jnp.array([1.0, -2.0])}


def gradients(params, step):
    return jax.tree.map(lambda p: p - jnp.cos(step + p), params)


def path_of(tx, evaluate, steps=30):
    params, state, path = PARAMS, tx.init(PARAMS), []
    for i in range(steps):
        updates, state = tx.update(gradients(params, i), state, params)
        params = optax.apply_updates(params, updates)
        path.append((params, evaluate(state, params)))
    return jax.tree.map(lambda *x: np.stack(x), *path)


@pytest.mark.parametrize("inner", [optax.sgd(0.1), optax.adam(0.05, b1=0.0)])
def test_it_is_schedule_free_with_that_average(inner):
    """μ_x = 1 − 1/t, as optax has it with a constant learning rate."""
    ours = primal_averaging(inner, 0.9, lambda count: count / (count + 1.0))
    theirs = optax.contrib.schedule_free(inner, learning_rate=0.1, b1=0.9)
    evaluate = optax.contrib.schedule_free_eval_params
    got, want = path_of(ours, slow_params), path_of(theirs, evaluate)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


def test_at_mu_of_one_the_gradient_is_taken_at_the_average():
    """Primal averaging proper: the params are the weights to evaluate."""
    fast, slow = path_of(primal_averaging(optax.sgd(0.1), 1.0, 0.9), slow_params)
    for name in PARAMS:
        np.testing.assert_array_equal(fast[name], slow[name])
    z = x = jax.tree.map(np.float64, PARAMS)
    for i in range(30):
        z = jax.tree.map(lambda z, x, i=i: z - 0.1 * (x - np.cos(i + x)), z, x)
        x = jax.tree.map(lambda z, x: 0.9 * x + 0.1 * z, z, x)
        for name in PARAMS:
            np.testing.assert_allclose(fast[name][i], x[name], rtol=1e-5, atol=1e-5)


def test_weight_decay_acts_on_z():
    tx = primal_averaging(optax.add_decayed_weights(0.5), 0.5, 0.5)
    state = tx.init(jnp.array(0.0))._replace(inner_params=jnp.array(3.0))
    # y = 2 and z = 3 make x = 1; u = 0.5 · 3 makes z = 4.5, x = 2.75 and y = 3.625.
    updates, state = tx.update(jnp.array(0.0), state, jnp.array(2.0))
    np.testing.assert_allclose(state.inner_params, 4.5)
    np.testing.assert_allclose(2.0 + updates, 3.625)
    np.testing.assert_allclose(slow_params(state, 2.0 + updates), 2.75)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_params_in_which_the_average_would_be_lost_are_refused(dtype):
    params = {"a": jnp.ones(2), "b": jnp.ones(2, dtype)}
    with pytest.raises(ValueError, match=rf"`params` must be float32.*{dtype} for params\['b'\]"):
        primal_averaging(optax.sgd(0.1)).init(params)


def test_one_copy_of_the_params_is_stored():
    state = primal_averaging(optax.sgd(0.1)).init(PARAMS)
    assert isinstance(state, PrimalAveragingState)
    size = sum(leaf.size for leaf in jax.tree.leaves(state))
    assert size == sum(leaf.size for leaf in jax.tree.leaves(PARAMS)) + 2  # μ_y and the counter


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inner": 1.0}, "`inner`"),
        ({"train_interpolation": 0.0}, r"`train_interpolation` must be in \(0, 1\], got 0.0"),
        ({"eval_interpolation": -0.1}, r"`eval_interpolation` must be in \[0, 1\), got -0.1"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        primal_averaging(**{"inner": optax.sgd(0.1), **arguments})


def test_bad_calls_are_named():
    tx = primal_averaging(optax.sgd(0.1))
    state = tx.init(PARAMS)
    with pytest.raises(ValueError, match="primal_averaging"):
        tx.update(PARAMS, state)
    with pytest.raises(ValueError, match="PrimalAveragingState"):
        tx.update(PARAMS, (), PARAMS)
    with pytest.raises(ValueError, match="made for other params"):
        tx.update({"w": jnp.ones(3)}, state, {"w": jnp.ones(3)})


def test_the_loss_reaches_the_inner_optimizer():
    heard = []

    def update(updates, state, params, *, value):
        heard.append(value)
        return updates, state

    inner = optax.GradientTransformationExtraArgs(lambda params: (), update)
    tx = primal_averaging(inner)
    tx.update(PARAMS, tx.init(PARAMS), PARAMS, value=3.0)
    assert heard == [3.0]


def last_of(tx, steps):
    """The average after some steps on ½ w², from w = 1."""

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(params, state, params)
        return (optax.apply_updates(params, updates), state), None

    params = jnp.ones(())
    (params, state), _ = jax.lax.scan(step, (params, tx.init(params)), None, steps)
    return slow_params(state, params)


def test_the_average_lags_and_larger_learning_rates_are_stable():
    """What docs/usage.md says of a quadratic, as the eigenvalues of a step have it."""

    def largest_eigenvalue(rate, mu=0.9, mu_y=0.7, mu_x=0.9967):
        momentum = np.array([mu, rate * (1 - mu_y), rate * mu_y])  # Of the state (m, z, x).
        z = np.array([0.0, 1.0, 0.0]) - momentum
        x = mu_x * np.array([0.0, 0.0, 1.0]) + (1 - mu_x) * z
        return max(abs(np.linalg.eigvals(np.array([momentum, z, x]))))

    def averaged(rate):
        return primal_averaging(optax.sgd(rate, 0.9))

    assert largest_eigenvalue(12.6) < 1 < largest_eigenvalue(12.7)
    assert abs(last_of(averaged(12.4), 2000)) < 1e-6
    assert not abs(last_of(averaged(12.8), 4000)) < 1e6
    factor = 1 - (1 - 0.9967) / (1 - 0.7)
    for rate in (0.1, 1.0, 4.0):
        np.testing.assert_allclose(largest_eigenvalue(rate), factor, rtol=3e-4)
        np.testing.assert_allclose(last_of(averaged(rate), 300), factor**300, rtol=0.1)
