"""The map's regimes of games, of tasks in sequence and of a language model."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from experiments.config import SettingError
from experiments.data import load
from experiments.models import Transformer
from experiments.optimizers import OPTIMIZERS
from experiments.regimes import games, language, sequence
from experiments.regimes.engine import TUNING_SEEDS
from experiments.schedules import Stages, stages_of
from experiments.steps import init_weights
from experiments.studies.games import (
    cycle_matrix,
    extragradient_matrix,
    optimistic_matrix,
    simultaneous_matrix,
)
from flax import nnx

# Every regime


@pytest.fixture(scope="module")
def digits():
    return load("digits")


def test_all_methods_have_as_many_own_settings_and_grids_are_by_factors_of_two(digits):
    for one in [*games.regimes(), *sequence.regimes(digits), *language.regimes()]:
        counts = {len({*map(str, method.own)}) for method in list(one.methods.values())[1:]}
        assert counts == {4}
        assert len(one.methods[one.plain].own) >= 4
        np.testing.assert_allclose(np.divide(one.rates[1:], one.rates[:-1]), 2)
        assert len(one.rates) >= 5


# Games


def lost(matrix, steps, seed):
    """log₁₀ of the distance after so many steps, each of which is a matrix."""
    game, equilibrium, start = games.draw(seed)
    w = np.concatenate([start[player] - equilibrium[player] for player in "xy"])
    w = np.tile(w, len(matrix(game.mean().a)) // len(w))
    end = np.linalg.matrix_power(matrix(game.mean().a), steps) @ w
    return np.log10(np.linalg.norm(end[: 2 * games.SIZE]))


@pytest.mark.parametrize(
    ("method", "own", "matrix", "steps"),
    [
        (
            "lookahead",
            {"sync_period": 5, "slow_step_size": 0.5},
            lambda a, eta: cycle_matrix(simultaneous_matrix(a, eta), [5], [0.5]),
            games.GRADIENTS // 5,
        ),
        ("extragradient", {}, extragradient_matrix, games.GRADIENTS // 2),
        ("optimistic", {}, optimistic_matrix, games.GRADIENTS),
    ],
)
def test_players_end_where_the_powers_of_a_matrix_lead(method, own, matrix, steps):
    rates, seeds = (0.125, 0.25), (3, 4)
    settings = [{**own, "learning_rate": rate} for rate in rates]
    found = games.Games(None).scores(method, settings, seeds, False)
    expected = [
        [lost(lambda a, eta=eta: matrix(a, eta), steps, seed) for seed in seeds] for eta in rates
    ]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_descent_ascent_leaves_and_the_average_of_its_iterates_may_stay():
    eta, seed = 2**-6, 5
    settings = [{"learning_rate": eta}, {"learning_rate": 1.0}]
    average = games.Games(None).scores("average", settings, [seed], True)[:, 0]
    game, equilibrium, start = games.draw(seed)
    whole = game.mean()
    x, y = start["x"], start["y"]
    total = 0
    for _ in range(games.GRADIENTS):
        x, y = x - eta * (whole.a @ y + whole.b), y + eta * (whole.a.T @ x + whole.c)
        total = total + np.concatenate([x, y])
    w = np.concatenate([equilibrium["x"], equilibrium["y"]])
    expected = np.log10(np.linalg.norm(total / games.GRADIENTS - w))
    assert average[0] == pytest.approx(expected, abs=1e-5)
    assert np.isnan(average[1])


def test_noise_is_of_batches_that_are_the_same_for_all_methods():
    one = games.Games(games.BATCH)
    setting = {"learning_rate": 0.125}
    plain = one.scores("sgd", [setting], [0, 1], False)
    # A Lookahead that does not step back is plain descent–ascent.
    same = one.scores(
        "lookahead", [{**setting, "sync_period": 5, "slow_step_size": 1.0}], [0, 1], True
    )
    np.testing.assert_allclose(same, plain)
    assert not np.allclose(games.Games(None).scores("sgd", [setting], [0, 1], False), plain)


def test_stages_of_the_games_are_whole_cycles():
    lengths = stages_of(games.BASE, games.GRADIENTS, 1).lengths
    assert lengths == (games.GRADIENTS // games.STAGES,) * games.STAGES


# Tasks in sequence


@pytest.fixture(scope="module")
def tasks(digits):
    told = sequence.regimes(digits)[0].scores.__self__
    return replace(told, steps=10, train_images=200, held_out=100, test_images=100, at_once=2)
