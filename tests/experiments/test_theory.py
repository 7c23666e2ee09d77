"""The laboratory's problems, runs and fits, against brute force and literal NumPy loops."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from experiments.theory import (
    convex,
    fits,
    lookaheads,
    problems,
    promise,
    runs,
    solve,
    stability,
    stages,
    sync_period,
)
from experiments.theory.classification import logistic, softmax
from x64 import enable_x64

EIGENVALUES = np.array([1.0, 0.5, 0.2, 0.0])
SOLUTION = np.array([1.0, -2.0, 0.5, 0.0])
START = np.array([0.0, 0.0, 1.0, 3.0])
PROBLEMS = {
    "least squares": problems.least_squares("", EIGENVALUES, SOLUTION, START, 0.5),
    "ridge": problems.least_squares("", EIGENVALUES, SOLUTION, START, 0.5, ridge=0.3),
    "interpolation": problems.interpolation(12, 0.5),
    "mean": problems.mean(0.7, 3, 2.0, 0.5),
    "sine": problems.sine(0.6, np.pi, 7.0, 2, 0.4),
    "logistic": logistic(EIGENVALUES[:3], SOLUTION[:3], START[:3]),
    "softmax": softmax(3, 4, 0.1, 1.0, 20_000),
}


@pytest.fixture(autouse=True)
def float64():
    with enable_x64(True):
        yield


def near_start(problem, seed=0):
    rng = np.random.default_rng(seed)
    return problem.start + 0.7 * rng.normal(size=problem.start.shape)


def losses(name, samples, params):
    """ℓ of each sample, from the formulas as they stand."""
    if name in ("mean", "sine"):
        (z,) = samples
        at = params if name == "mean" else params + 0.6 * np.sin(params)
        return (0.7 if name == "mean" else 1.0) / 2 * ((at - z) ** 2).sum(1)
    x, y = samples
    if name == "logistic":
        return np.log1p(np.exp(-(2 * y - 1) * (x @ params)))
    if name == "softmax":
        logits = x @ params
        right = np.exp(logits[np.arange(len(y)), y]) / np.exp(logits).sum(1)
        return -np.log(right) + 0.05 * (params**2).sum()
    return (x @ params - y) ** 2 / 2 + (0.15 * params @ params if name == "ridge" else 0)


@pytest.mark.parametrize("name", PROBLEMS)
def test_risks_are_those_of_the_formula_and_of_many_samples(name):
    problem = PROBLEMS[name]
    params = near_start(problem)
    samples = problem.draw(np.random.default_rng(1), 100_000)
    expected = losses(name, samples, params)
    few = tuple(values[:50] for values in samples)
    empirical, risk = jax.jit(problem.empirical), jax.jit(problem.risk)
    np.testing.assert_allclose(empirical(few, params), expected[:50].mean(), rtol=1e-12)
    error = expected.std() / np.sqrt(len(expected)) * (1 if name != "softmax" else 6**0.5)
    assert abs(risk(params) - expected.mean()) < 4 * error
    assert error < 0.02 * expected.mean()


@pytest.mark.parametrize("name", [name for name in PROBLEMS if name != "softmax"])
def test_the_gradient_vanishes_at_the_empirical_minimum(name):
    problem = PROBLEMS[name]
    samples = problem.draw(np.random.default_rng(2), 8 if name == "interpolation" else 60)
    minimiser = problem.solve(samples)
    empirical = jax.jit(problem.empirical)
    gradient = jax.jit(jax.grad(problem.empirical, argnums=1))
    assert np.linalg.norm(gradient(samples, minimiser)) < 1e-9
    assert np.linalg.norm(gradient(samples, problem.start)) > 1e-2
    lowest = empirical(samples, minimiser)
    assert all(lowest < empirical(samples, near_start(problem, s)) for s in range(5))


def test_a_minimum_that_is_not_found_is_an_error(monkeypatch):
    monkeypatch.setattr(solve, "LIMIT", 2)
    samples = PROBLEMS["logistic"].draw(np.random.default_rng(2), 60)
    with pytest.raises(ValueError, match="no minimum found: the gradient's norm is"):
        PROBLEMS["logistic"].solve(samples)


@pytest.mark.parametrize("name", ["sine", "interpolation"])
def test_the_pl_condition_holds_with_mu_and_not_with_more(name):
    problem = PROBLEMS[name]
    samples = problem.draw(np.random.default_rng(3), 8)
    mu, minimiser = problem.curvature(samples), problem.solve(samples)
    lowest = problem.empirical(samples, minimiser)
    rng = np.random.default_rng(4)
    sizes = np.repeat(np.geomspace(1e-3, 10, 100), 20)[:, None]
    points = minimiser + sizes * rng.normal(size=(len(sizes), *minimiser.shape))
    if name == "interpolation":  # The flattest direction among them.
        points[0] = minimiser + np.linalg.svd(samples[0], full_matrices=False)[2][-1]
    both = jax.jit(jax.vmap(jax.value_and_grad(problem.empirical, 1), (None, 0)))
    value, gradient = both(samples, points)
    ratio = (gradient**2).sum(-1) / (2 * (value - lowest))
    assert mu * (1 - 1e-6) <= ratio.min() <= 1.2 * mu


def literal_lookahead(gradient, theta, rates, alpha, k):
    """The slow weights after every cycle of Algorithm 2."""
    path = [theta]
    for cycle in np.split(np.array(rates), len(rates) // k):
        v = path[-1]
        for eta, draw in cycle:
            v = v - eta * gradient(v, int(draw))
        path.append(path[-1] + alpha * (v - path[-1]))
    return path


@pytest.mark.parametrize("periods", [None, [4, 20]])
def test_runs_are_the_literal_loop_on_the_same_draws(periods):
    problem, steps = PROBLEMS["ridge"], 40
    data = runs.draw(problem, 2, 6, steps)
    settings = {
        "alpha": np.array([[0.3], [1.0]]),
        "curvature": data.curvatures[None],
        "smoothness": np.full((1, 1), problem.smoothness),
    }
    if periods:
        settings["period"] = np.array(periods)[:, None]
    seen = [5, 20, 40]
    found = runs.weights(problem, lookaheads.decaying, settings, data, seen)
    assert found.shape == (2, 3, 2, 4)
    for n, (alpha, k) in enumerate(zip([0.3, 1.0], periods or [5, 5], strict=True)):
        for s in range(2):
            x, y = (values[s] for values in data.samples)
            rates = 1 / (0.3 * np.arange(steps) + problem.smoothness)

            def gradient(v, i, x=x, y=y):
                return (x[i] @ v - y[i]) * x[i] + 0.3 * v

            steps_of = np.stack([rates, data.draws[s]], axis=1)
            path = literal_lookahead(gradient, problem.start, steps_of, alpha, k)
            expected = np.stack([path[t // k] for t in seen])
            np.testing.assert_allclose(found[n, :, s], expected, rtol=1e-10)


def test_errors_are_those_of_the_definition():
    problem = PROBLEMS["least squares"]
    data = runs.draw(problem, 3, 6, 1)
    params = np.random.default_rng(5).normal(size=(2, 1, 3, 4))
    found, risk = runs.errors(problem, data, params), jax.jit(problem.risk)
    for s in range(3):
        samples = tuple(values[s] for values in data.samples)

        def empirical(weights, samples=samples):
            return losses("least squares", samples, weights).mean()

        for n in range(2):
            mine, others = params[n, 0, s], np.delete(params[n, 0], s, axis=0).mean(0)
            gap, chance = (float(risk(w)) - empirical(w) for w in (mine, others))
            optimisation = empirical(mine) - empirical(data.minimisers[s])
            assert found.optimisation[n, 0, s] == pytest.approx(optimisation)
            assert found.generalisation[n, 0, s] == pytest.approx(gap - chance)
            assert found.excess[n, 0, s] == pytest.approx(optimisation + gap - chance)


def test_data_sets_are_their_own_and_so_are_their_draws():
    data = runs.draw(PROBLEMS["mean"], 2, 5, 200)
    assert set(data.draws.ravel()) == set(range(5))
    assert (data.draws[0] != data.draws[1]).mean() > 0.6
    assert (data.samples[0][0] != data.samples[0][1]).all()


def test_pairs_differ_in_the_first_sample():
    one, other = stability.pairs(PROBLEMS["ridge"], 3, 5, 10)
    np.testing.assert_array_equal(one.draws, other.draws)
    for mine, theirs in zip(one.samples, other.samples, strict=True):
        differs = (mine != theirs).reshape(3, 5, -1).any(-1)
        np.testing.assert_array_equal(differs, [[True] + 4 * [False]] * 3)


def test_planted_exponents_are_found():
    rng = np.random.default_rng(6)
    x, y = rng.uniform(1, 100, (2, 40))
    planted = 3 * x**-0.7 * y**0.4
    np.testing.assert_allclose(fits.exponents([x, y], planted), [-0.7, 0.4])
    noisy = planted[:, None] * np.exp(0.3 * rng.normal(size=(40, 25)))
    estimate = fits.interval(lambda mean: fits.exponents([x, y], mean), noisy)
    assert (estimate["low"] < [-0.7, 0.4]).all()
    assert (estimate["high"] > [-0.7, 0.4]).all()
    assert (estimate["high"] - estimate["low"] < 0.1).all()
    assert np.isnan(fits.exponents([x], np.where(x < 50, planted, 0))).all()
    assert fits.exponents([x], np.full(40, 0.3)) == 0  # And no rounding error.


def test_intervals_hold_what_they_say(monkeypatch):
    """95 of 100, give or take: a bootstrap of 20 is a little narrow."""
    monkeypatch.setattr(fits, "RESAMPLES", 100)
    rng, inside = np.random.default_rng(7), 0
    for _ in range(100):
        estimate = fits.interval(float, rng.normal(size=20))
        inside += estimate["low"] <= 0 <= estimate["high"]
    assert 84 <= inside <= 99


def test_the_lowest_setting_and_the_step_at_which_a_level_is_reached():
    settings = np.geomspace(0.01, 1, 9)
    assert fits.lowest(settings, np.log(settings / 0.07) ** 2) == pytest.approx(0.07)
    assert fits.lowest(settings, settings) == 0.01
    steps = np.array([1.0, 10.0, 100.0, 1000.0])
    assert fits.reached(steps, 5 / steps, 0.1) == pytest.approx(50)
    assert fits.reached(steps, np.array([1, 0.1, 1, 0.1]), 0.2) > 100  # To the end.
    assert np.isnan(fits.reached(steps, 5 / steps, 1e-3))
    assert fits.reached(steps, 5 / steps, 9.0) == 1


def test_the_row_of_an_estimate():
    estimate = {"value": np.array([1.0, 2.0]), "low": np.array([0.5, 1.5]), "high": np.ones(2)}
    rows = fits.rows(["a", "b"], [1, None], estimate)
    assert rows[1] == {"what": "b", "predicted": None, "value": 2.0, "low": 1.5, "high": 1.0}


def test_eigenvalues_of_the_hard_problem_have_flat_directions():
    problem = convex.hard(1.0, 10, 3)
    x, _ = problem.draw(np.random.default_rng(0), 2_000)
    np.testing.assert_allclose((x**2).mean(0)[:10] * np.arange(1, 11), 1, rtol=0.2)
    assert not x[:, 10:].any()


def test_the_average_of_a_stage_is_that_of_the_params_at_which_gradients_were_taken():
    tx, params = promise.averaged(optax.sgd(1.0), [0, 3]), jnp.array(0.0)
    state, means = tx.init(params), []
    for gradient in [-1.0, -2.0, -3.0, -4.0, -5.0]:  # Gradients at 0, 1, 3; 6, 10.
        updates, state = tx.update(jnp.array(gradient), state, params)
        params = optax.apply_updates(params, updates)
        means.append(float(state.mean))
    assert means == pytest.approx([0, 1 / 2, 4 / 3, 6, 8])


def test_the_theorems_errors_over_k():
    k = np.array([1, 5, 20])
    convex_ones, growth = sync_period.bounds_if_convex(0.3, k, 100, 0.0)
    np.testing.assert_array_equal([convex_ones, growth], np.ones((2, 3)))
    for alpha, noise in [(0.25, 2 / 10), (0.5, np.log(100) / 100), (0.75, 2 / 100)]:
        error, growth = sync_period.bounds_if_strongly_convex(alpha, k, 100, 0.5)
        for n, cycles in enumerate([100, 20, 5]):
            assert error[n] == pytest.approx(cycles ** (-2 * alpha) + noise / 0.25)
            ends = (cycles + 1) * k[n] + 2
            assert growth[n] == pytest.approx((101**alpha - 1) / ends**alpha)
    error, _ = sync_period.bounds_under_pl(0.25, k, 99, 0.5)
    factors = np.array([0.25, 6.25, 28.75])
    np.testing.assert_allclose(error, 0.1 + 0.25 * factors / 0.25 * 10)


def test_the_start_of_theorem_4():
    problem = PROBLEMS["mean"]
    data = runs.draw(problem, 2, 50, 1)
    error, square = stages.at_start(problem, data)
    (z,), start = data.samples, problem.start
    expected = 0.35 * ((start - z.mean(1)) ** 2).sum(-1)
    assert error == pytest.approx(expected.mean())
    assert square == pytest.approx(0.49 * ((start - z) ** 2).sum(-1).mean())
