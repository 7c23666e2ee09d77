"""The map's regimes of games, of tasks in sequence and of a language model."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from experiments.config import SettingError
from experiments.data import load
from experiments.regimes import games, language, sequence
from experiments.schedules import stages_of
from experiments.steps import Model, init_weights
from experiments.studies.games import (
    cycle_matrix,
    extragradient_matrix,
    simultaneous_matrix,
)
from flax import nnx
from x64 import enable_x64

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
        assert not {*one.tuning_seeds} & {*range(1_000)}
        if one.family != "Games":  # In which methods have momenta of their own, or none.
            assert {*one.inherited} == {*one.methods[one.plain].own[0]}


# Games


def lost(matrix, steps, seed):
    """log₁₀ of the distance after so many steps, each of which is a matrix."""
    game, equilibrium, start = games.draw(seed)
    w = np.concatenate([start[player] - equilibrium[player] for player in "xy"])
    return np.log10(np.linalg.norm(np.linalg.matrix_power(matrix(game.mean().a), steps) @ w))


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


def test_noise_is_that_of_the_batches_of_a_seed(monkeypatch):
    monkeypatch.setattr(games, "GRADIENTS", 5)  # Which end before all stages have begun.
    monkeypatch.setattr(games, "BASE", replace(games.BASE, milestones=()))
    eta, seed = 0.125, 2
    (found,) = games.Games(games.BATCH).scores("sgd", [{"learning_rate": eta}], [seed], True)[0]
    samples, equilibrium, start = games.draw(seed)
    x, y = start["x"], start["y"]
    for key in jax.random.split(jax.random.key(seed), 5):
        with enable_x64(True):  # In which other numbers are drawn.
            batch = np.asarray(jax.random.randint(key, (games.BATCH,), 0, games.SAMPLES))
        a, b, c = (part[batch].mean(0) for part in samples)
        x, y = x - eta * (a @ y + b), y + eta * (a.T @ x + c)
    away = np.concatenate([x - equilibrium["x"], y - equilibrium["y"]])
    assert found == pytest.approx(np.log10(np.linalg.norm(away)), abs=1e-5)


def test_stages_of_the_games_are_whole_cycles():
    lengths = stages_of(games.BASE, games.GRADIENTS, 1).lengths
    assert lengths == (games.GRADIENTS // games.STAGES,) * games.STAGES


# Tasks in sequence


@pytest.fixture(scope="module")
def tasks(digits):
    told = sequence.regimes(digits)[0].scores.__self__
    return replace(told, steps=10, train_images=200, held_out=100, test_images=100, at_once=2)


def by_hand(tasks, rate, momentum, decay, seed):
    """The mean error of all tasks of an average of the weights, after steps in NumPy."""
    images = np.asarray(tasks.dataset.standardise(tasks.pool[0]))
    images, labels = images.reshape(len(images), -1).astype(np.float64), tasks.pool[1]
    layers = init_weights(tasks.model, seed)[0]["network"]
    names = [(layer, name) for layer in ("hidden", "head") for name in ("kernel", "bias")]
    w = [np.asarray(layers[layer][name], np.float64) for layer, name in names]
    moved, average = [0 * x for x in w], list(w)

    def forward(w, x, task):
        hidden = np.maximum(x @ w[0] + w[1], 0)
        logits = hidden @ w[2] + w[3]
        logits[:, [c for c in range(10) if c // 2 != task]] = -np.inf
        return hidden, logits

    for n, batch in enumerate(tasks.draw(seed, held_out=False).batches):
        task, x = n // 2, images[batch]
        assert set(labels[batch] // 2) == {task}
        hidden, logits = forward(w, x, task)
        likely = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        back = (likely - np.eye(10)[labels[batch]]) / len(batch)
        below = (back @ w[2].T) * (hidden > 0)
        gradient = [x.T @ below, below.sum(0), hidden.T @ back, back.sum(0)]
        moved = [momentum * m + g for m, g in zip(moved, gradient, strict=True)]
        w = [x - (1 - momentum) * rate * m for x, m in zip(w, moved, strict=True)]
        average = [decay * a + (1 - decay) * x for a, x in zip(average, w, strict=True)]
    *_, test = tasks.split(seed)
    of_tasks = [test[labels[test] // 2 == task] for task in range(5)]
    found = [forward(average, images[mine], t)[1].argmax(1) for t, mine in enumerate(of_tasks)]
    wrong = [f != labels[mine] for f, mine in zip(found, of_tasks, strict=True)]
    return 100 * np.mean([w.mean() for w in wrong])


def test_tasks_are_learnt_one_after_the_other_and_all_are_tested(tasks):
    settings = [{"learning_rate": rate, "ema_decay": 0.5, "momentum": 0.5} for rate in (0.2, 0.4)]
    found = tasks.scores("ema", settings, [7], False)[:, 0]
    expected = [by_hand(tasks, rate, 0.5, 0.5, seed=7) for rate in (0.2, 0.4)]
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_a_network_is_told_the_task_or_is_not(tasks):
    draw = tasks.draw(7, held_out=True)
    told = tasks.told(draw.stats, 3)["among"]
    assert [c for c in range(10) if told[c] == 0] == [6, 7]
    not_told = replace(tasks, is_told=False)
    assert not np.any(not_told.told(draw.stats, 3)["among"])


def test_training_tuning_and_test_images_are_apart(tasks):
    train, held, test = tasks.split(3)
    assert len({*train, *held, *test}) == len(train) + len(held) + len(test) == 400
    draw = tasks.draw(3, held_out=True)
    assert {*draw.batches.ravel()} <= {*train}
    assert {*draw.evaluated[draw.counted]} == {*held}


def test_the_stages_of_slrla_are_the_tasks(tasks):
    config = tasks.config_of("slrla", {"learning_rate": 0.1})
    assert stages_of(config, 5 * sequence.STEPS, 1).lengths == (sequence.STEPS,) * 5


def test_classes_must_make_whole_tasks(digits):
    for classes in (2, 9, 20):
        with pytest.raises(SettingError, match=f"for 2 to 9 tasks of 2, got {classes} classes"):
            sequence.regimes(replace(digits, classes=classes))


# The language model


class Bigrams(language.Text):
    """A text whose next characters are predicted from one character each, by a table."""

    @property
    def model(self):
        size = self.dataset.classes
        return Model(lambda rngs: Table(size, size, rngs=rngs), self.dataset)


class Table(nnx.Embed):
    def __call__(self, x, *, train):
        return super().__call__(x)


def test_windows_are_learnt_by_adamw_and_measured_by_their_loss():
    text = language.regimes()[0].scores.__self__
    text = Bigrams(text.dataset, text.base, 4, train_images=40, held_out=6, at_once=1)
    windows, following = text.pool
    assert windows.shape == (2 * len(text.dataset.pool("train")[0]) + 454, 32)
    np.testing.assert_array_equal(windows.ravel()[1:], following.ravel()[:-1])
    (found,) = text.scores("adamw", [{"learning_rate": 0.1, "momentum": 0.8}], [1], False)[0]

    w = np.asarray(init_weights(text.model, 1)[0]["embedding"], np.float64)
    m, v = 0 * w, 0 * w

    def likely(w, some):
        return np.exp(w[windows[some]]) / np.exp(w[windows[some]]).sum(-1, keepdims=True)

    for t, batch in enumerate(text.draw(1, held_out=False).batches, start=1):
        gradient, back = 0 * w, likely(w, batch) - np.eye(len(w))[following[batch]]
        np.add.at(gradient, windows[batch], back / windows[batch].size)
        m, v = 0.8 * m + 0.2 * gradient, 0.999 * v + 0.001 * gradient**2
        step = (m / (1 - 0.8**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        w = w - 0.1 * (step + language.BASE.weight_decay * w)
    *_, test = text.split(1)
    right = np.take_along_axis(likely(w, test), following[test][..., None], 2)
    assert found == pytest.approx(-np.log(right).mean(), rel=1e-4)
