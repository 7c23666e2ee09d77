"""Sharpness, noise and forgetting against problems whose answers are known."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from experiments.data import load
from experiments.studies import noise, sequential, sharpness

KEY = jax.random.key(0)
PARAMS = {"w": jnp.linspace(-1.0, 1.0, 6).reshape(2, 3), "b": jnp.array([0.5, -1.0])}


def symmetric(eigenvalues, seed=0):
    """A matrix of these eigenvalues, in float64."""
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.normal(size=(len(eigenvalues),) * 2))
    return q @ np.diag(eigenvalues) @ q.T


def flat(params):
    return jnp.concatenate([params["b"], params["w"].reshape(-1)])


def quadratic(eigenvalues):
    matrix = jnp.asarray(symmetric(eigenvalues), jnp.float32)
    return lambda params: flat(params) @ matrix @ flat(params) / 2


def logistic(x, y, params):
    """A loss that is not quadratic; NumPy's Hessian of it is in the test."""
    return jnp.mean(jnp.logaddexp(0.0, -y * (x @ params["w"]))) + params["b"] ** 4 * 0.01


def test_the_eigenvalue_is_that_of_the_explicit_hessian():
    rng = np.random.default_rng(1)
    x, y, w, b = rng.normal(size=(30, 7)), rng.choice([-1.0, 1.0], 30), rng.normal(size=7), 0.5
    p = 1 / (1 + np.exp(-x @ w))
    hessian = np.zeros((8, 8))
    hessian[:7, :7] = (x * (p * (1 - p))[:, None]).T @ x / 30
    hessian[7, 7] = 0.12 * b**2
    values, vectors = np.linalg.eigh(hessian)

    loss = partial(logistic, *map(partial(jnp.asarray, dtype=jnp.float32), (x, y)))
    params = {"w": jnp.asarray(w, jnp.float32), "b": jnp.float32(b)}
    found = sharpness.largest_eigenvalue(loss, params, KEY)
    np.testing.assert_allclose(found.value, values[-1], rtol=1e-5)
    assert found.residual < 1e-5 * values[-1]
    v = np.append(found.vector["w"], found.vector["b"])
    np.testing.assert_allclose(abs(v @ vectors[:, -1]), 1, rtol=1e-5)


@pytest.mark.parametrize(
    "eigenvalues",
    [
        [-9, -3, 0, 0, 1, 2, 4, 5],  # the largest, not the one of the largest size
        [-5, -4, -3, -3, -2, -2, -2, -1],
        [0, 0, 0, 0, 0, 0, 0, 3],  # a basis that is complete after two products
        [2] * 8,
    ],
)
def test_the_eigenvalue_is_the_largest(eigenvalues):
    found = sharpness.largest_eigenvalue(quadratic(eigenvalues), PARAMS, KEY)
    np.testing.assert_allclose(found.value, max(eigenvalues), rtol=1e-5)
    assert found.residual < 1e-4


def test_the_residual_says_that_iterations_were_too_few():
    eigenvalues = np.linspace(1, 2, 8)
    loss, matrix = quadratic(eigenvalues), symmetric(eigenvalues)
    found = sharpness.largest_eigenvalue(loss, PARAMS, KEY, iterations=3)
    assert found.value < 1.999
    v = np.asarray(flat(found.vector), np.float64)
    expected = np.linalg.norm(matrix @ v - found.value * v)
    np.testing.assert_allclose(found.residual, expected, rtol=1e-3)
    assert np.abs(eigenvalues - found.value).min() <= found.residual


def test_a_flat_loss():
    found = sharpness.largest_eigenvalue(lambda p: 0.0 * jnp.sum(p["w"]), PARAMS, KEY)
    assert (found.value, found.residual) == (0, 0)
    assert sharpness.worst_loss(lambda p: 0.0 * jnp.sum(p["w"]), PARAMS, 1.0, KEY) == 0


@pytest.mark.parametrize("rho", [0.0, 0.05, 2.0])
def test_the_worst_loss_of_a_quadratic(rho):
    # At its minimum the gradient is zero, and only the other starts come away from it.
    origin = jax.tree.map(jnp.zeros_like, PARAMS)
    loss = quadratic([0.1, 0.2, 0.3, 1, 1, 2, 3, 5])
    worst = sharpness.worst_loss(loss, origin, rho, KEY)
    np.testing.assert_allclose(worst, rho**2 * 5 / 2, rtol=1e-3)
    assert worst <= rho**2 * 5 / 2 * (1 + 1e-5)


def test_the_worst_loss_of_a_plane_and_within_the_ball():
    slope = jnp.arange(1.0, 9.0)
    worst = sharpness.worst_loss(lambda p: slope @ flat(p), PARAMS, 0.3, KEY, steps=1, starts=1)
    expected = np.float64(slope) @ np.float64(flat(PARAMS)) + 0.3 * np.sqrt(204)
    np.testing.assert_allclose(worst, expected, rtol=1e-5)
    # A bump at the distance 0.5, inside of the ball.
    bump = lambda p: -jnp.sum((flat(p) - flat(PARAMS) - 0.5 / jnp.sqrt(8)) ** 2)  # noqa: E731
    assert -0.01 < sharpness.worst_loss(bump, PARAMS, 1.0, KEY) <= 0


def test_a_loss_that_is_not_a_number_shows():
    assert np.isnan(sharpness.worst_loss(lambda p: jnp.log(flat(p)[0] - 9), PARAMS, 0.1, KEY))


def test_a_negative_radius_is_named():
    with pytest.raises(ValueError, match=r"`rho`.*-1"):
        sharpness.worst_loss(quadratic([1] * 8), PARAMS, -1.0, KEY)


def test_noise_is_relative_to_each_weight():
    params = {"w": jnp.full((100, 100), 10.0), "b": jnp.zeros(5), "half": jnp.ones(9, jnp.bfloat16)}
    noisy = noise.with_noise(params, 0.1, KEY)
    change = np.asarray(noisy["w"], np.float64) - 10
    assert abs(change.mean()) < 0.05
    assert abs(change.std() - 1) < 0.03
    np.testing.assert_array_equal(noisy["b"], 0)
    assert {k: x.dtype for k, x in noisy.items()} == {k: x.dtype for k, x in params.items()}


def test_a_metric_under_noise():
    sizes = (0.0, 0.1, 0.2)
    values = noise.under_noise(
        lambda p: jnp.sum(p["w"]), {"w": jnp.ones(400)}, sizes, KEY, draws=50
    )
    assert values.shape == (3, 50)
    np.testing.assert_array_equal(values[0], 400)
    # The same draws at each size: the change doubles with it.
    np.testing.assert_allclose(values[2] - 400, 2 * (values[1] - 400), rtol=1e-3, atol=1e-2)
    # A sum of 400 such weights has the deviation σ √400.
    np.testing.assert_allclose(values[1].std(), 2.0, rtol=0.3)
    assert len(set(values[1])) == 50
    again = noise.under_noise(lambda p: jnp.sum(p["w"]), {"w": jnp.ones(400)}, sizes, KEY, draws=50)
    np.testing.assert_array_equal(again, values)
    with pytest.raises(ValueError, match=r"`sizes`.*-0.1"):
        noise.under_noise(jnp.sum, jnp.ones(2), (-0.1,), KEY)


@dataclass
class Images:
    train_images: Any
    train_labels: Any
    test_images: Any
    test_labels: Any
    classes: int


def six_classes():
    """Images that are their label all over."""
    train, test = np.tile(np.arange(6), 5), np.tile(np.arange(6), 2)

    def images(labels):
        return np.broadcast_to(labels[:, None, None, None], (len(labels), 2, 2, 1))

    return Images(images(train), train, images(test), test, classes=6)


def test_the_classes_are_split():
    tasks = sequential.split_classes(six_classes())
    assert [task.classes for task in tasks] == [(0, 1), (2, 3), (4, 5)]
    for task in tasks:
        part = task.dataset
        assert (len(part.train_labels), len(part.test_labels), part.classes) == (10, 4, 6)
        np.testing.assert_array_equal(part.train_images[:, 0, 0, 0], part.train_labels)
        np.testing.assert_array_equal(part.test_images[:, 0, 0, 0], part.test_labels)
        assert set(part.train_labels) == set(part.test_labels) == set(task.classes)
    for wrong in (0, 4):
        with pytest.raises(ValueError, match=f"`classes_per_task`.*{wrong}"):
            sequential.split_classes(six_classes(), wrong)


def test_the_digits_are_five_tasks():
    digits = load("digits")
    parts = [task.dataset for task in sequential.split_classes(digits)]
    assert len(parts) == 5
    assert sum(len(part.train_images) for part in parts) == len(digits.train_images)
    assert sum(len(part.test_labels) for part in parts) == len(digits.test_labels)


def test_average_accuracy_and_forgetting_by_hand():
    matrix = np.array([[0.9, 0.2, 0.1], [0.7, 0.8, 0.3], [0.6, 0.85, 0.95]])
    # Best before the last task 0.9 and 0.8, at the end 0.6 and 0.85.
    assert sequential.forgetting(matrix) == pytest.approx((0.3 - 0.05) / 2)
    assert sequential.average_accuracy(matrix) == pytest.approx(0.8)
    with pytest.raises(ValueError, match=r"`matrix`.*1"):
        sequential.forgetting(matrix[:1, :1])
