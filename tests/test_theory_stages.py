"""The stages that SLRLA's theorem prescribes, and the theorem itself on small problems."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from x64 import enable_x64

from slrla_jax import Stage, slow_params, slrla, theory_stages

POSITIVE = st.floats(1e-6, 1e6)
ARGUMENTS = {
    "cycles": st.integers(1, 10**6),
    "strong_convexity": POSITIVE,
    "gradient_bound": POSITIVE,
    "slow_step_size": st.floats(0.01, 1.0),
    "sync_period": st.integers(1, 1000),
    "fraction": st.one_of(st.none(), st.floats(0.01, 1.0)),
}


def stages_of(cycles, strong_convexity, gradient_bound, slow_step_size, sync_period, fraction):
    """The stages for a fraction of the largest initial error, and ε_0."""
    largest = gradient_bound**2 / (2 * strong_convexity)
    error = largest if fraction is None else fraction * largest
    first = 72 / (fraction or 1.0) / slow_step_size
    assume(cycles * sync_period >= 1.001 * first + sync_period)
    stages = theory_stages(
        cycles * sync_period,
        strong_convexity,
        gradient_bound,
        slow_step_size,
        sync_period,
        None if fraction is None else error,
    )
    return stages, error


def literal_stages(num_steps, lam, bound, alpha, k, error):
    """The schedule as the theorem states it: stage after stage, in steps."""
    target, rate = error / 2, error / 2 / (3 * bound**2)
    cycles = 1
    while rate * cycles * k < 6 / (lam * alpha) * (1 - 1e-9):
        cycles += 1
    stages, left = [], num_steps
    while left >= cycles * k:
        stages.append([cycles, target / (3 * bound**2)])
        left -= cycles * k
        target, cycles = target / 2, 2 * cycles
    stages[-1][0] += left // k
    return stages


@settings(deadline=None)
@given(**{**ARGUMENTS, "cycles": st.integers(1, 20_000)})
def test_the_stages_are_those_of_the_theorem(**arguments):
    stages, error = stages_of(**arguments)
    k, lam = arguments["sync_period"], arguments["strong_convexity"]
    expected = literal_stages(
        arguments["cycles"] * k,
        lam,
        arguments["gradient_bound"],
        arguments["slow_step_size"],
        k,
        error,
    )
    assert [stage.cycles for stage in stages] == [cycles for cycles, _ in expected]
    rates = [stage.learning_rate for stage in stages]
    np.testing.assert_allclose(rates, [rate for _, rate in expected], rtol=1e-12)
    for stage in stages:
        same = (stage.beta, stage.sync_period, stage.slow_step_size)
        assert same == (lam / 6, k, arguments["slow_step_size"])


@settings(deadline=None)
@given(**ARGUMENTS)
def test_steps_double_rates_halve_and_the_budget_is_spent(**arguments):
    stages, _ = stages_of(**arguments)
    cycles = [stage.cycles for stage in stages]
    for before, after in itertools.pairwise(cycles[:-1]):
        assert after == 2 * before
    if len(cycles) > 1:
        assert 2 * cycles[-2] <= cycles[-1] < 6 * cycles[-2], "whole stages were left out"
    for before, after in itertools.pairwise(stages):
        assert after.learning_rate == before.learning_rate / 2
    spent = sum(stage.length for stage in stages)
    assert spent == arguments["cycles"] * arguments["sync_period"]


@settings(deadline=None)
@given(**ARGUMENTS)
def test_each_term_of_the_bound_is_at_most_a_third_of_the_target(**arguments):
    stages, error = stages_of(**arguments)
    lam, bound = arguments["strong_convexity"], arguments["gradient_bound"]
    for stage in stages:
        distance = 2 * error / lam  # ‖θ_{s−1} − θ*‖², by strong convexity
        error /= 2
        third = error / 3 * (1 + 1e-8)
        assert stage.beta / 2 * distance <= third
        steps = stage.slow_step_size * stage.learning_rate * stage.length
        assert distance / (2 * steps) <= third
        assert stage.learning_rate * bound**2 <= third
        assert stage.learning_rate * stage.beta <= 0.5, "the derivation needs this"


@pytest.mark.parametrize(("alpha", "steps"), [(0.8, 90), (0.6, 120), (0.5, 145), (1.0, 75)])
def test_the_first_stage_by_default(alpha, steps):
    (stage,) = theory_stages(steps, 0.5, 123.0, alpha)
    assert stage == Stage(steps // 5, 1 / 6, 0.5 / 6, 5, alpha)


def test_rounding_errors_cost_no_cycle():
    assert 72 * (0.1 * 0.1 / (2 * 0.1)) / 0.01 / 0.8 > 450, "what exactly is 450 is rounded up"
    assert [stage.length for stage in theory_stages(1350, 0.1, 0.1, initial_error=0.01)] == [
        450,
        900,
    ]


def test_what_is_left_lengthens_the_last_stage():
    lengths = [stage.length for stage in theory_stages(90 + 180 + 360 - 5, 1.0, 1.0)]
    assert lengths == [90, 535]
    lengths = [stage.length for stage in theory_stages(90 + 180 + 360, 1.0, 1.0)]
    assert lengths == [90, 180, 360]


GOOD = {"num_steps": 1000, "strong_convexity": 0.1, "gradient_bound": 2.0}
BAD = [
    ({"num_steps": 0}, "`num_steps` must be a whole number"),
    ({"num_steps": 99.5}, "`num_steps` must be a whole number"),
    ({"num_steps": lambda count: 5}, "`num_steps` must be a number, got the function"),
    ({"num_steps": 1003}, "`num_steps` must be a multiple of `sync_period` = 5, such as 1005"),
    ({"num_steps": 85}, "`num_steps` must be at least 90, the length of the first stage, got 85"),
    ({"gradient_bound": 1e200, "initial_error": 1.0}, "`num_steps` must be at least inf"),
    ({"strong_convexity": 0.0}, "`strong_convexity` must be finite and positive, got 0.0"),
    ({"strong_convexity": lambda count: 1.0}, "`strong_convexity` must be a number"),
    ({"gradient_bound": float("inf")}, "`gradient_bound` must be finite and positive, got inf"),
    ({"slow_step_size": 1.1}, "`slow_step_size` must be in (0, 1], got 1.1"),
    ({"slow_step_size": None}, "`slow_step_size` must be in (0, 1], got None"),
    ({"sync_period": 2.5}, "`sync_period` must be a whole number"),
    ({"sync_period": None}, "`sync_period` must be a whole number"),
    ({"initial_error": -1.0}, "`initial_error` must be finite and positive, got -1.0"),
    ({"initial_error": 21.0}, "`initial_error` must be at most gradient_bound² / (2 strong_conv"),
]


@pytest.mark.parametrize(("changed", "message"), BAD, ids=[str(message) for _, message in BAD])
def test_bad_arguments(changed, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        theory_stages(**GOOD | changed)


CYCLES, K = 4, 3


@jax.jit
def iterates(gradients, alpha, rate, beta):
    """The weights at which each of the gradients, of any kind, is taken; they begin at 0."""
    tx = slrla(optax.sgd, [Stage(CYCLES, rate, beta, K, alpha)])

    def step(carry, gradient):
        params, state = carry
        updates, state = tx.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), params

    start = jnp.zeros_like(gradients[0])
    return jax.lax.scan(step, (start, tx.init(start)), gradients)[1]


COORDINATES = st.lists(st.floats(-2, 2), min_size=2, max_size=2)


@settings(deadline=None)
@given(
    gradients=st.lists(COORDINATES, min_size=CYCLES * K, max_size=CYCLES * K),
    point=COORDINATES,
    alpha=st.floats(0.05, 1.0),
    rate=st.floats(0.01, 2.0),
    strength=st.floats(0.0, 0.5),
)
def test_one_stage_on_any_linear_losses(gradients, point, alpha, rate, strength):
    """The inequality of docs/theory.md, which holds on every path and not only in expectation."""
    beta = strength / rate  # η β ≤ ½
    with enable_x64():
        at = np.array(iterates(jnp.array(gradients), alpha, rate, beta))
    gradients, point = np.array(gradients), np.array(point)
    regret = (gradients * (at - point)).sum(1).mean()
    squares, bound = point @ point, (gradients**2).sum(1).max()
    noise = rate * bound / (1 if beta else 2)
    allowed = beta / 2 * squares + squares / (2 * alpha * rate * CYCLES * K) + noise
    assert regret <= allowed + 1e-9


def test_one_stage_attains_its_bound():
    """With β = 0, α = 1 and equal gradients, at the point where the steps end."""
    with enable_x64():
        at = np.array(iterates(jnp.ones((CYCLES * K, 1)), 1.0, 0.1, 0.0))
    steps = CYCLES * K
    point = -0.1 * steps
    np.testing.assert_allclose((at - point).mean(), point**2 / (2 * 0.1 * steps) + 0.1 / 2)


def test_slrla_reaches_the_promised_error_on_a_noisy_quadratic():
    curvatures = jnp.array([0.2, 1.0, 4.0])  # λ = 0.2 and L = 4
    start, noise, runs = jnp.array([2.0, 1.0, 0.5]), 0.5, 32

    def loss(params):
        return 0.5 * jnp.sum(curvatures * params**2, axis=-1)

    initial = float(loss(start))
    bound = float(jnp.sqrt(2 * 4.0 * initial + 3 * noise**2))  # wherever the loss is below ε_0
    stages = theory_stages(15_000, 0.2, bound, initial_error=initial)
    assert len(stages) == 3
    tx = slrla(optax.sgd, stages)

    def step(carry, key):
        params, state = carry
        gradient = curvatures * params + noise * jax.random.normal(key, params.shape)
        updates, state = tx.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), params

    @jax.jit
    @jax.vmap
    def run(key):
        keys = jax.random.split(key, 15_000)
        (params, state), path = jax.lax.scan(step, (start, tx.init(start)), keys)
        return slow_params(state, params), path[-stages[-1].length :].mean(0)

    slow, average = run(jax.random.split(jax.random.key(0), runs))
    promised = initial / 2 ** len(stages)
    assert float(loss(average).mean()) <= promised
    assert float(loss(slow).mean()) <= promised
