"""Games: players that step in turn, the bilinear game's rates, and a GAN with its judge."""

import dataclasses
import json
from functools import partial

import bilinear_game
import gan as program
import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import optax
import pytest
import scipy.linalg
from error_lines import error_line
from experiments import data
from experiments.config import SettingError
from experiments.studies import games, gan, judge, players
from experiments.studies.games import METHODS
from flax import nnx
from x64 import enable_x64

import slrla_jax

SETTINGS = games.Settings(0.2, (5, 4, 2), (0.5, 0.6, 0.7))
STEPS = 1_000  # The same in all tests, which then share what is compiled.


def product(w, _=0):
    """The gradients of the game x·y, of which x is to be small and y large."""
    return {"x": w["y"], "y": -w["x"]}


def played(tx, steps):
    """The path of (x, y) from (1, 1) in that game."""
    tx = optax.with_extra_args_support(tx)
    w = {"x": jnp.array(1.0), "y": jnp.array(1.0)}
    state, path = tx.init(w), []
    for _ in range(steps):
        updates, state = tx.update(product(w), state, w, grad_fn=product)
        w = optax.apply_updates(w, updates)
        path.append((float(w["x"]), float(w["y"])))
    return path


def test_players_that_step_in_turn_see_each_other():
    half = optax.sgd(0.5)
    # x: 1 − ½·1;  y: 1 + ½·½.  Then x: ½ − ½·1.25;  y: 1.25 − ½·0.125.
    assert played(players.alternating(half, ("x", "y")), 2) == [(0.5, 1.25), (-0.125, 1.1875)]
    assert played(players.alternating(half, ("y", "x")), 1) == [(0.25, 1.5)]
    assert played(half, 1) == [(0.5, 1.5)]


def test_a_lookahead_steps_back_when_all_players_have_stepped():
    """In the second step y still meets x = −0.125; with a Lookahead each it would meet 0.4375."""
    half = optax.sgd(0.5)
    around = slrla_jax.lookahead(players.alternating(half, ("x", "y")), 2, 0.5)
    assert played(around, 2)[1] == ((1 - 0.125) / 2, (1 + 1.1875) / 2)
    each = players.alternating(slrla_jax.lookahead(half, 2, 0.5), ("x", "y"))
    assert played(each, 2)[1] == (0.4375, (1 + 1.25 + 0.5 * 0.4375) / 2)


def test_extragradient_takes_the_gradient_ahead():
    assert played(players.extragradient(optax.sgd(0.5)), 1) == [(1 - 0.75, 1 + 0.25)]


@pytest.fixture(scope="module")
def game():
    """Four samples, their mean, the equilibrium, and where two seeds begin; in float64."""
    samples = games.samples_of_a_game(3, 4, 0.3, seed=0)
    mean = samples.mean()
    equilibrium = mean.equilibrium()
    rng = np.random.default_rng(1)
    starts = {player: w + rng.normal(size=(2, 3)) for player, w in equilibrium.items()}
    return samples, mean, equilibrium, starts


def distances(game, method, steps, batch_size=None):
    samples, _, equilibrium, starts = game
    with enable_x64(True):
        keys = jnp.stack([jax.random.key(seed) for seed in range(2)])
        return np.asarray(
            games.distances(method, SETTINGS, samples, equilibrium, starts, keys, steps, batch_size)
        )


def test_the_game_is_what_it_is_said_to_be(game):
    samples, mean, equilibrium, _ = game
    np.testing.assert_allclose(np.linalg.svd(mean.a, compute_uv=False), [1, 0.75, 0.5])
    assert not np.allclose(samples.a[0], mean.a, atol=0.05)
    with enable_x64(True):
        gradients = mean.gradients(jax.tree.map(jnp.asarray, equilibrium))
        w = {"x": jnp.arange(3.0), "y": jnp.ones(3)}
        there = mean.gradients(w)
    np.testing.assert_allclose([*gradients["x"], *gradients["y"]], 0, atol=1e-12)
    np.testing.assert_allclose(there["x"], mean.a @ np.ones(3) + mean.b)
    np.testing.assert_allclose(there["y"], -(mean.a.T @ np.arange(3.0) + mean.c))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_follows_its_matrix(game, name):
    """The distances at syncs are those of powers of the matrix, and so is the rate."""
    _, mean, equilibrium, starts = game
    method = METHODS[name]
    found = distances(game, method, STEPS)
    periods, sizes = (x[: method.layers] for x in SETTINGS[1:])
    step = method.matrix(mean.a, SETTINGS.learning_rate)
    cycle, length = games.cycle_matrix(step, periods, sizes), int(np.prod(periods, dtype=int))
    for seed, line in enumerate(found):
        w = np.concatenate([starts[player][seed] - equilibrium[player] for player in "xy"])
        # Optimistic steps depend on the weights before, which at first are the same.
        w = np.tile(w, len(cycle) // len(w))
        for t in range(4):
            np.testing.assert_allclose(line[t * length], np.linalg.norm(w[:6]), rtol=1e-9)
            w = cycle @ w
        measured = games.measured_rate(line, length)
        np.testing.assert_allclose(measured, method.rate(mean.a, SETTINGS), rtol=1e-4)
    diverges = name in ("gda", "alternating")
    assert (found[:, -1] < 1e-2 * found[:, 0]).all() != diverges


def test_layers_are_the_loops_of_the_paper():
    """(1 − α) I + α M^k for each layer, against nested loops over a vector."""
    step = games.simultaneous_matrix(np.diag([1.0, 0.6]), 0.3)
    w = np.array([1.0, -2.0, 0.5, 3.0])
    outer = w
    for _ in range(2):
        inner = outer
        for _ in range(4):
            v = inner
            for _ in range(5):
                v = step @ v
            inner = inner + 0.5 * (v - inner)
        outer = outer + 0.6 * (inner - outer)
    cycle = games.cycle_matrix(step, (5, 4), (0.5, 0.6))
    np.testing.assert_allclose(cycle @ cycle @ w, outer, rtol=1e-12)


def test_rates_over_k_and_alpha_are_spectral_radii():
    a = games.samples_of_a_game(4, 2, 0.0, seed=3).mean().a
    periods, sizes = np.array([1, 3, 30]), np.array([0.2, 0.9, 1.0])
    rates = games.lookahead_rates(a, 0.25, periods, sizes)
    for i, j in np.ndindex(3, 3):
        step = games.simultaneous_matrix(a, 0.25)
        cycle = games.cycle_matrix(step, periods[j : j + 1], sizes[i : i + 1])
        radius = games.spectral_radius(cycle)
        np.testing.assert_allclose(rates[i, j], radius ** (1 / periods[j]), rtol=1e-10)


def test_batches_are_random_and_without_noise_the_whole_game(game):
    _, mean, equilibrium, starts = game
    method = METHODS["lookahead"]
    noisy = distances(game, method, STEPS, batch_size=2)
    whole = distances(game, method, STEPS)
    assert not np.allclose(noisy[:, :20], whole[:, :20], rtol=1e-3)
    same = games.Bilinear(*(np.stack(4 * [part]) for part in mean))
    exact = distances((same, mean, equilibrium, starts), method, STEPS, batch_size=2)
    np.testing.assert_allclose(exact[:, :20], whole[:, :20], rtol=1e-12)


def test_a_rate_is_measured_above_the_floor_and_below_infinity():
    line = np.maximum(0.5 ** np.arange(100.0), 1e-13)
    assert games.measured_rate(line, 2) == pytest.approx(0.5, rel=1e-6)
    with np.errstate(over="ignore"):
        assert games.measured_rate(1e30 ** np.arange(20.0), 1) == pytest.approx(1e30)
    with pytest.raises(ValueError, match=r"`distances`.*5 steps, got 1"):
        games.measured_rate(np.ones(8), 5)


# The program of the bilinear game.


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


TINY_GAME = [
    "--size",
    "2",
    "--steps",
    "48",
    "--seeds",
    "2",
    "--name",
    "mine",
    "--lookahead",
    "3_0.5,4_0.5",
]


def test_the_bilinear_game_from_the_command_line(here, monkeypatch, capsys):
    chosen = {"nested_lookahead": METHODS["nested_lookahead"]}
    monkeypatch.setattr(bilinear_game, "METHODS", chosen)
    assert bilinear_game.main(TINY_GAME) == 0
    folder = here / "runs/mine"
    assert {file.name for file in folder.iterdir()} == {
        *("bilinear_game.png", "results.json", "settings.json", "table.md")
    }
    results = json.loads((folder / "results.json").read_text())
    table = (folder / "table.md").read_text()
    assert table == bilinear_game.page(results)
    assert table in capsys.readouterr().out
    nested = results["parts"]["the game"]["methods"]["Nested Lookahead"]
    row = next(line for line in table.splitlines() if line.startswith("| Nested Lookahead "))
    cells = [cell.strip() for cell in row.split("|")]
    assert cells[3:5] == [f"{nested['predicted']:.6f}", f"{np.mean(nested['measured']):.6f}"]
    assert len(nested["measured"]) == len(nested["batch"]) == 2
    assert nested["batch"][0][-1] < nested["batch"][0][0]
    assert nested["stochastic"] != nested["batch"]
    assert matplotlib.image.imread(folder / "bilinear_game.png").std() > 0.05

    # What is there is shown again, and not played again; another game is refused.
    monkeypatch.setattr(bilinear_game, "play", None)
    monkeypatch.setattr(bilinear_game, "draw", lambda results, folder: None)
    assert bilinear_game.main([*TINY_GAME, "--resume"]) == 0
    assert json.loads((folder / "results.json").read_text()) == results
    assert bilinear_game.main([*TINY_GAME, "--resume", "--lr", "0.3"]) == 1
    assert "is of another run: --lr" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--lookahead 5_0.5", "--lookahead: must be two layers or more, got ((5, 0.5),)"),
        ("--lookahead 5_0.5,5", "--lookahead: must be k_α, got '5'"),
        ("--lookahead 5_0.5,0_0.5", "--lookahead: must be a whole number, at least 1, got '0'"),
        ("--lookahead 5_0.5,5_2", "--lookahead: must be more than 0 and at most 1, got '2'"),
        ("--steps 99", "--steps: must be four cycles of 25 or more, got 99"),
        ("--lr 3", "--lr: must be more than 0 and at most 2, got '3'"),
        ("--noise -1", "--noise: must be 0 or more"),
        ("--data_path .", "unrecognized arguments: --data_path"),
    ],
)
def test_wrong_flags_of_the_bilinear_game(here, capsys, flags, message):
    assert message in error_line(bilinear_game.main, flags, capsys)
    assert list(here.iterdir()) == []


# The judge.


def normal(mean, covariance):
    return judge.Moments(np.array(mean, float), np.array(covariance, float))


def test_frechet_distances_of_closed_form():
    one = normal([1.0], [[4.0]])
    assert judge.frechet_distance(one, normal([3.0], [[9.0]])) == pytest.approx(2**2 + (3 - 2) ** 2)
    a, b = normal([0, 0, 1], np.diag([1.0, 4, 0])), normal([0, 2, 0], np.diag([9.0, 1, 4]))
    assert judge.frechet_distance(a, b) == pytest.approx(5 + 4 + 1 + 4)
    # Covariances that commute.
    turn = scipy.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    a, b = (normal(m.mean, turn @ m.covariance @ turn.T) for m in (a, b))
    assert judge.frechet_distance(a, b) == pytest.approx(5 + 4 + 1 + 4)
    assert judge.frechet_distance(a, a) == pytest.approx(0, abs=1e-12)


def test_the_frechet_distance_with_a_matrix_square_root():
    rng = np.random.default_rng(1)
    a, b = (judge.moments(rng.normal(size=(40, 6)) @ rng.normal(size=(6, 6))) for _ in range(2))
    root = scipy.linalg.sqrtm(a.covariance @ b.covariance).real
    expected = np.sum((a.mean - b.mean) ** 2) + np.trace(a.covariance + b.covariance - 2 * root)
    assert judge.frechet_distance(a, b) == pytest.approx(expected)
    assert judge.frechet_distance(b, a) == pytest.approx(expected)
    assert judge.frechet_distance(a, b._replace(mean=b.mean * np.nan)) == np.inf


def test_moments_are_in_float64():
    features = np.float32(1e4 + np.random.default_rng(0).normal(size=(1000, 2)))
    found = judge.moments(features)
    assert found.mean.dtype == found.covariance.dtype == np.float64
    np.testing.assert_allclose(found.covariance, np.cov(np.float64(features).T), rtol=1e-12)


@pytest.mark.parametrize(
    ("distances", "seen", "collapsed"),
    [
        ([9, 3, 5.9], 10, False),
        ([9, 3, 6.1], 10, True),
        ([9, 3, 3], 5, False),
        ([9, 3, 3], 4, True),
        ([9, 3, np.inf], 10, True),
        ([np.inf], 10, True),
    ],
)
def test_what_a_collapse_is(distances, seen, collapsed):
    assert judge.has_collapsed(distances, seen, 10) is collapsed


def test_a_class_is_seen_from_a_tenth_of_its_share():
    counts = [500, 480, 10, 9, 1]
    assert judge.classes_seen(np.repeat(np.arange(5), counts), 5) == 2
    assert judge.classes_seen(np.repeat(np.arange(5), [500, 440, 20, 20, 20]), 5) == 5


def test_images_are_shrunk_to_means():
    digits = data.load("digits")
    small = judge.shrunk(digits, 4)
    assert small.image_shape == (2, 2, 1)
    block = digits.train_images[7, 4:, :4, 0].mean()
    np.testing.assert_allclose(small.train_images[7, 1, 0, 0], block, rtol=1e-6)
    pixels = judge.flat(small, small.train_images)
    assert pixels.shape == (600, 4)
    np.testing.assert_allclose(pixels[7, 2], block / 8 - 1, rtol=1e-5)
    with pytest.raises(SettingError, match="must divide 8 × 8 pixels, got 3"):
        judge.shrunk(digits, 3)


def test_images_in_records():
    images = np.linspace(-1, 1, 4 * gan.SHOWN).reshape(gan.SHOWN, 4)
    found = gan.from_text(gan.as_text(images)) / 127.5 - 1
    np.testing.assert_allclose(found, images, atol=1 / 255)
    assert (gan.from_text(gan.as_text(images * np.nan)) == 0).all()


# The GAN.


def test_a_step_of_both_players_and_of_what_is_around():
    """Against the loops: the discriminator, then the generator, and the second time both back."""
    graph, shapes = nnx.split(nnx.eval_shape(lambda: gan.GAN(4, rngs=nnx.Rngs(0))))
    rng = np.random.default_rng(0)
    params = {
        player: jax.tree.map(
            lambda x: jnp.float32(rng.normal(size=x.shape) / 10), nnx.as_pure(shapes)[player]
        )
        for player in gan.PLAYERS
    }
    images = jnp.float32(rng.uniform(-1, 1, (10, 4)))
    batches, key = np.arange(6).reshape(2, 3), jax.random.key(1)
    adam = optax.adam(0.01, b1=0.0)

    def loss(own, player, params, batch, noise):
        network = nnx.merge(graph, params | {player: own}, copy=True)
        real = network.discriminator(images[batch])
        fake = network.discriminator(jnp.tanh(network.generator(noise)))
        if player == "generator":
            return -jnp.log(nnx.sigmoid(fake)).mean()
        return -jnp.log(nnx.sigmoid(real)).mean() - jnp.log(1 - nnx.sigmoid(fake)).mean()

    @jax.jit
    def loops(v):
        theta, average, losses = v, v["generator"], []
        states = {player: adam.init(v[player]) for player in v}
        for n, k in enumerate(jax.random.split(key, 2)):
            noise = jax.random.normal(k, (3, gan.NOISE))
            for player in gan.PLAYERS:
                grad = jax.value_and_grad(loss)
                value, gradients = grad(v[player], player, v, batches[n], noise)
                losses += [value] if player == "discriminator" else []
                updates, states[player] = adam.update(gradients, states[player])
                v = v | {player: optax.apply_updates(v[player], updates)}
            if n == 1:
                v = jax.tree.map(lambda s, x: s + 0.5 * (x - s), theta, v)
            average = jax.tree.map(lambda a, g: 0.9 * a + 0.1 * g, average, v["generator"])
        return v, average, sum(losses) / 2

    after_a_sync, average, loss_of_the_discriminator = loops(params)
    tx = slrla_jax.lookahead(players.alternating(adam, gan.PLAYERS), 2, 0.5)
    state = gan.State(*jax.tree.map(jnp.copy, (params, params["generator"])), tx.init(params))
    state, means = gan.take_steps(graph, tx, 0.9, state, images, batches, key)
    close = partial(optax.tree.allclose, rtol=1e-4, atol=1e-5)
    assert close(state.params, after_a_sync)
    assert close(state.average, average)
    assert not close(state.average, state.params["generator"])
    np.testing.assert_allclose(means["discriminator"], loss_of_the_discriminator, rtol=1e-4)


TINY_GAN = (
    "--epochs 2 --epoch_steps 3 --seeds 2 --lr 0.01 --optimizers lookahead --lookahead 2_0.5,2_0.5"
)


def test_the_gan_from_the_command_line(here, monkeypatch):
    monkeypatch.setattr(judge, "STEPS", 40)
    monkeypatch.setattr(gan, "JUDGED", 100)
    judge.judge_of.cache_clear()
    assert program.main([*TINY_GAN.split(), "--name", "mine"]) == 0
    folder = here / "runs/mine"
    assert {file.name for file in folder.iterdir()} == {
        *("gan.png", "images.png", "metrics.jsonl", "results.json", "settings.json", "table.md")
    }
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [(r["optimizer"], r["seed"], r["steps"]) for r in records] == [
        ("Lookahead, 0.01", seed, steps) for seed in (0, 1) for steps in (0, 3, 6)
    ]
    # After three steps it is in mid-cycle, and at the end on a sync.
    _, middle, end = records[:3]
    assert middle["distance"] != middle["fast_distance"]
    assert end["distance"] == end["fast_distance"] != end["average_distance"]
    assert end["best"] == min(middle["distance"], end["distance"])
    assert end["collapsed"] == int(end["distance"] > 2 * end["best"] or end["classes"] < 5)
    assert records[3]["distance"] != records[0]["distance"]

    results = json.loads((folder / "results.json").read_text())
    assert {entry["gradients"] for entry in results["entries"].values()} == {12}
    table = (folder / "table.md").read_text()
    (row,) = (line for line in table.splitlines() if line.startswith("| Lookahead, 0.01 "))
    assert f" {sum(records[n]['collapsed'] for n in (2, 5))} of 2 |" in row
    for name in ("gan.png", "images.png"):
        assert matplotlib.image.imread(folder / name).std() > 0.05
    judge.judge_of.cache_clear()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            "--epochs 1 --epoch_steps 99",
            "--lookahead (k): a run of 99 steps never syncs with a period of 100",
        ),
        ("--lr 0.001,1e-3", "--lr: must be different numbers, got '0.001,1e-3'"),
        ("--shrink 3", "--shrink: must divide 8 × 8 pixels, got 3"),
        ("--optimizers sgd", "--optimizers: must be different names among adam, lookahead"),
        ("--dataset python_reference", "--dataset: must be of images in memory"),
        ("--batch_size 601", "--batch_size: must be from 1 to 600"),
    ],
)
def test_wrong_flags_of_the_gan(here, monkeypatch, capsys, flags, message):
    monkeypatch.setattr(gan, "judge_of", lambda dataset: None)
    assert message in error_line(program.main, flags, capsys)
    assert list(here.iterdir()) == []


def test_entries_have_the_settings_of_their_layers():
    args = program.make_parser().parse_args(["--lr", "0.1,0.2", "--lookahead", "3_0.4,7_0.6"])
    entries = {entry.label: entry.config for entry in program.entries_of(args)}
    assert list(entries) == [
        f"{name}, {rate}"
        for rate in (0.1, 0.2)
        for name in ("Adam", "Lookahead", "Nested Lookahead")
    ]
    one, two = entries["Lookahead, 0.2"], entries["Nested Lookahead, 0.1"]
    assert (one.sync_period, one.slow_step_size, one.learning_rate) == (3, 0.4, 0.2)
    assert (two.sync_period, two.slow_step_size, two.learning_rate) == ((3, 7), (0.4, 0.6), 0.1)
    assert dataclasses.replace(one, learning_rate=0.1) == entries["Lookahead, 0.1"]
