"""Derivatives through whole runs, with respect to settings and to the initial params.

A run is a function of its settings, and its derivative must agree with finite differences, both
at the limits that switch a method off (α = 1, β = 0, ρ = 0) and away from them. Everything is in
float64, where central differences are accurate to about nine digits.
"""

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
    lookahead,
    lookbehind,
    multilayer_lookahead,
    sam,
    slow_params,
    slrla,
    slrla_sgd,
    snoo,
    stagewise_prox,
)

STEPS = 7
MATRIX = np.random.default_rng(0).normal(size=(4, 4)) / 4 + np.eye(4)
START = {"w": np.array([[1.0, -0.5], [0.3, 2.0]]), "b": np.array([0.7, -1.1, 0.2, 0.4])}


def loss(params, step):
    """A loss that is not quadratic, so that every derivative depends on the point."""
    x = jnp.ravel(params["w"]) + params["b"]
    return jnp.sum((MATRIX @ x - jnp.cos(step)) ** 2) / 2 + jnp.sum(x**4) / 20


def run(tx, start, slow=False):
    """A number that depends on every weight at the end of a run of `tx`."""
    tx = optax.with_extra_args_support(tx)

    def step(carry, i):
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params, i)
        updates, state = tx.update(
            grads, state, params, value=value, grad_fn=lambda p, _: jax.grad(loss)(p, i)
        )
        return (optax.apply_updates(params, updates), state), None

    start = jax.tree.map(jnp.asarray, start)
    (params, state), _ = jax.lax.scan(step, (start, tx.init(start)), jnp.arange(STEPS))
    end = slow_params(state, params) if slow else params
    return sum(jnp.sum(jnp.sin(x + n)) for n, x in enumerate(jax.tree.leaves(end)))


def derivatives(f, at, h=1e-5):
    """The derivative of a function in forward mode, in reverse mode, and by central differences."""
    value = quick_jit(f)
    forward, backward = quick_jit(lambda x: (jax.jacfwd(f)(x), jax.grad(f)(x)))(at)
    finite = (value(at + h) - value(at - h)) / (2 * h)
    return float(forward), float(backward), float(finite)


def momentum(learning_rate=0.05):
    return optax.sgd(learning_rate, momentum=0.9)


def staged(alpha, beta, decoupled=False):
    stages = [Stage(1, 0.05, beta, 3, alpha), Stage(2, 0.03, beta, 2, alpha)]
    return slrla(momentum, stages, decoupled=decoupled)


ALPHA = {
    "lookahead": lambda alpha: lookahead(momentum(), 3, alpha),
    "lookahead by schedule": lambda alpha: lookahead(momentum(), 3, lambda step: alpha),
    "lookahead-reset": lambda alpha: lookahead(momentum(), 3, alpha, sync_moments="reset"),
    "lookahead-pullback": lambda alpha: lookahead(
        optax.adam(0.05), 3, alpha, sync_moments="pullback"
    ),
    "multilayer": lambda alpha: multilayer_lookahead(momentum(), (2, 2), (alpha, alpha)),
    "slrla": lambda alpha: staged(alpha, 0.5),
    "slrla_sgd": lambda alpha: slrla_sgd(0.05, 0.4, None, 3, alpha),
    "slrla_sgd with an anchor of its own": lambda alpha: slrla_sgd(0.05, 0.4, 2, 3, alpha),
    "lookbehind": lambda alpha: lookbehind(momentum(), 2, 0.1, alpha),
}
BETA = {
    "stagewise_prox": lambda beta: optax.chain(stagewise_prox(beta, 3), momentum()),
    "stagewise_prox by list": lambda beta: optax.chain(
        stagewise_prox([beta, 2 * beta], [3, 4]), momentum()
    ),
    "slrla": lambda beta: staged(0.5, beta),
    "slrla around adaloss": lambda beta: slrla(
        lambda lr: adaloss(lr), [Stage(3, 0.5, beta, 3, 0.5)]
    ),
    "slrla around sam": lambda beta: slrla(
        lambda lr: sam(optax.sgd(lr), 0.1), [Stage(3, 0.05, beta, 3, 0.5)]
    ),
    "slrla-decoupled": lambda beta: staged(0.5, beta, decoupled=True),
    "slrla_sgd": lambda beta: slrla_sgd(0.05, beta, None, 3, 0.5),
    "slrla_sgd with an anchor of its own": lambda beta: slrla_sgd(0.05, beta, 2, 3, 0.5),
}
RHO = {
    "sam": lambda rho: sam(momentum(), rho),
    "lookbehind": lambda rho: lookbehind(momentum(), 2, rho, 0.5),
    "lookbehind-adaptive": lambda rho: lookbehind(momentum(), 2, rho, "adaptive"),
    "lookbehind-asam": lambda rho: lookbehind(momentum(), 2, rho, 0.5, adaptive_rho=True),
}
OTHERS = {
    "adaloss of b0": (lambda b0: adaloss(0.5, b0, momentum=0.5), 1.5),
    "adaloss of α": (lambda alpha: adaloss(0.5, 1.0, alpha), 0.7),
    "adagrad_norm of b0": (lambda b0: adagrad_norm(0.5, b0), 1.5),
    "adabound of η": (lambda eta: adabound(eta, gamma=0.1, base_lr=0.1), 0.05),
    "lookahead of η": (lambda eta: lookahead(momentum(eta), 3, 0.5), 0.05),
    "snoo of η": (lambda eta: snoo(momentum(), 3, eta), 0.8),
    "snoo of μ": (lambda mu: snoo(momentum(), 2, 0.8, mu), 0.75),
    "snoo of μ = 0": (lambda mu: snoo(momentum(), 2, 0.8, mu), 0.0),
}
CASES = [
    *((f"α of {name}", make, x) for name, make in ALPHA.items() for x in (1.0, 0.6)),
    *((f"β of {name}", make, x) for name, make in BETA.items() for x in (0.0, 0.3)),
    *((f"ρ of {name}", make, x) for name, make in RHO.items() for x in (0.0, 0.2)),
    *((name, make, x) for name, (make, x) in OTHERS.items()),
]


@pytest.mark.parametrize(
    ("make", "at"), [case[1:] for case in CASES], ids=[f"{name} at {x}" for name, _, x in CASES]
)
def test_derivative_of_a_setting(make, at):
    with enable_x64(True):
        forward, backward, finite = derivatives(lambda x: run(make(x), START), at)
    assert abs(finite) > 1e-4
    np.testing.assert_allclose(forward, finite, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(backward, forward, rtol=1e-10)


@pytest.mark.parametrize("name", ["lookahead", "multilayer", "slrla"])
@pytest.mark.parametrize("at", [1.0, 0.6])
def test_derivative_of_the_slow_weights(name, at):
    with enable_x64(True):
        _, backward, finite = derivatives(lambda x: run(ALPHA[name](x), START, slow=True), at)
    np.testing.assert_allclose(backward, finite, rtol=1e-5)


META = {
    "lookahead": lambda: lookahead(momentum(), 3, 0.5),
    "lookahead with a traced 1": lambda: lookahead(momentum(), 3, lambda step: 1.0 + 0 * step),
    "lookahead-pullback": lambda: lookahead(momentum(), 3, 0.5, sync_moments="pullback"),
    "slrla": lambda: staged(0.5, 0.5),
    "sam": lambda: sam(momentum(), 0.1),
    "lookbehind-adaptive": lambda: lookbehind(momentum(), 2, 0.1, "adaptive"),
    "adagrad_norm": lambda: adagrad_norm(0.5),
    "adabound": lambda: adabound(0.05, gamma=0.1),
}


@pytest.mark.parametrize("name", META)
def test_derivative_of_the_start(name):
    direction = {"w": np.full((2, 2), 0.5), "b": np.array([1.0, -1.0, 0.5, 0.0])}
    with enable_x64(True):
        tx = META[name]()

        def along(t):
            return run(tx, jax.tree.map(lambda p, d: p + t * d, START, direction))

        _, backward, finite = derivatives(along, 0.0)
    np.testing.assert_allclose(backward, finite, rtol=1e-5)


@pytest.mark.parametrize("inner", [momentum, lambda: optax.sgd(0.1)])
def test_derivatives_where_nothing_moves_are_finite(inner):
    """Zero gradients and zero differences, where norms are not differentiable."""
    zero = jnp.zeros(3)

    def end(x):
        total = 0.0
        for tx in (
            sam(inner(), x),
            lookbehind(inner(), 2, x, "adaptive", cosine="global"),
            lookbehind(inner(), 2, x, "adaptive", adaptive_rho=True),
            optax.chain(stagewise_prox(x, 2), inner()),
            adagrad_norm(0.1, b0=x),
            adabound(0.1, final_lr=x),
        ):
            tx = optax.with_extra_args_support(tx)
            params = x * zero
            updates, _ = tx.update(
                params, tx.init(params), params, value=jnp.sum(params), grad_fn=lambda p, i: 0 * p
            )
            total += jnp.sum(params + updates)
        return total

    assert jax.grad(end)(0.1) == 0


def test_one_bad_loss_does_not_enter_the_derivatives():
    def end(alpha):
        tx, params = adaloss(0.1, alpha=alpha), jnp.ones(2)
        state = tx.init(params)
        for value in (1.0, jnp.nan, 2.0):
            updates, state = tx.update(params, state, params, value=value)
            params = params + updates
        return jnp.sum(params)

    assert np.isfinite(jax.grad(end)(1.0))


def test_a_later_stages_schedule_is_not_evaluated_at_earlier_steps():
    """At those steps √(1 + t) is undefined, and its derivative is not a number."""

    def end(learning_rate):
        stages = [
            Stage(1, 0.1, sync_period=4),
            Stage(1, lambda count: learning_rate / jnp.sqrt(1.0 + count), sync_period=2),
        ]
        tx, params = slrla(optax.sgd, stages), jnp.ones(2)
        state = tx.init(params)
        for _ in range(6):
            updates, state = tx.update(params, state, params)
            params = params + updates
        return jnp.sum(params)

    h = 1e-2
    np.testing.assert_allclose(jax.grad(end)(0.3), (end(0.3 + h) - end(0.3 - h)) / (2 * h), 1e-2)
