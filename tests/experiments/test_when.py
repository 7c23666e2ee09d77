"""The map: tuning against a literal loop, verdicts against hand examples, training one by one."""

import itertools
import json
import re
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import when
from error_lines import error_line
from experiments import paired
from experiments.data import load
from experiments.optimizers import OPTIMIZERS
from experiments.regimes import games, supervised, verdicts
from experiments.regimes.engine import TUNING_SEEDS, Measure, Method, Regime, cell
from experiments.regimes.table import rows_of
from experiments.regimes.training import Problem
from experiments.schedules import Stages
from flax import nnx
from scipy import stats

import slrla_jax

RESULTS = Path(when.__file__).parent / "results" / "when"
DOCS = Path(slrla_jax.__file__).parent.parent / "docs"
RATES = (0.25, 0.5, 1.0, 2.0)
METHODS = {
    "plain": Method("Plain", [{"decay": 0.0}, {"decay": 0.5}]),
    "other": Method("Other", [{"size": 3}, {"size": 7}]),
}


def value(method, setting, seed, held_out):
    """A score by formula: the best of plain is decay 0.5 and rate 1, that of other rate 2."""
    best = {"plain": 1.0, "other": 2.0}[method]
    luck = np.random.default_rng((seed, held_out)).normal()
    away = abs(np.log2(setting["learning_rate"] / best))
    own = setting["decay"] + (setting.get("size") == 3)
    return 5 + away - own + 0.1 * luck + 0.01 * luck * (method == "other")


def scores(method, settings, seeds, held_out):
    assert len(settings) == 1 or tuple(seeds) == TUNING_SEEDS
    return np.array([[value(method, s, seed, held_out) for seed in seeds] for s in settings])


def regime(**changes):
    measure = Measure("error in %", worst=100.0)
    made = Regime("a", "A regime", "Rows", measure, METHODS, RATES, scores, 10, ("decay",))
    return replace(made, **changes)


# Tuning


@pytest.mark.parametrize("lower_is_better", [True, False])
def test_tuning_chooses_what_a_loop_over_all_settings_does(lower_is_better):
    sign = 1 if lower_is_better else -1
    one = regime(
        measure=Measure("", worst=sign * 100.0, lower_is_better=lower_is_better),
        scores=lambda *args: sign * scores(*args),
    )
    best = {}
    for method, (_, own) in METHODS.items():
        found = []
        for setting, rate in itertools.product(own, RATES):
            setting = {**({"decay": 0.5} if method == "other" else {}), **setting}
            setting["learning_rate"] = rate
            values = [value(method, setting, seed, True) for seed in TUNING_SEEDS]
            found.append((np.mean(values), setting))
        best[method] = min(found, key=lambda pair: pair[0])[1]
    got = {method: cell(one, method, range(3)) for method in METHODS}
    assert {method: c["chosen"] for method, c in got.items()} == best
    assert best["other"] == {"decay": 0.5, "size": 3, "learning_rate": 2.0}
    assert [got[method]["at_edge"] for method in METHODS] == [False, True]
    expected = [sign * value("other", best["other"], seed, False) for seed in range(3)]
    np.testing.assert_allclose(got["other"]["values"], expected, atol=1e-4)
    assert got["other"]["tuning"]["by_learning_rate"] == pytest.approx(
        [sign * (min(p[0] for p in found if p[1]["learning_rate"] == r)) for r in RATES], abs=1e-4
    )


def test_runs_that_diverge_have_the_worst_value_and_are_counted():
    def diverging(method, settings, seeds, held_out):
        found = scores(method, settings, seeds, held_out)
        large = np.array([s["learning_rate"] >= 1 for s in settings])
        found[large, 0] = [np.nan, np.inf][method == "other"]
        found[0, -1] = np.nan if not held_out else found[0, -1]
        return found

    got = cell(regime(scores=diverging), "other", range(4))
    assert got["chosen"]["learning_rate"] == 0.5
    assert got["diverged"] == [3]
    assert got["values"][3] == 100.0


def test_learning_rates_are_a_factor_of_two_apart_and_all_methods_have_as_many_settings():
    found = supervised.regimes(load("digits"))
    for one in found:
        assert set(np.divide(one.rates[1:], one.rates[:-1])) <= {2.0}
        assert set(one.inherited) == set(one.methods["sgd"].own[0]), "the others have what is best"
        counts = {len({*map(str, method.own)}) for method in one.methods.values()}
        assert counts == ({4} if one.name != "decayed" else {4, 4 * len(supervised.MOMENTA)})
    assert min(len(one.rates) for one in found if one.name != "too_large") >= 5
    assert not set(TUNING_SEEDS) & set(range(1000))


def test_the_rate_that_is_too_large_is_four_times_the_best_for_plain_sgd():
    asked = []
    constant = regime()  # In which that is 1.
    large = supervised.too_large(constant, regime(scores=lambda *args: asked.append(args)))
    large.scores("other", [{"size": 3}], (5, 6), True)
    assert asked == [("other", [{"size": 3, "learning_rate": 4.0}], (5, 6), True)]
    assert large.rates == (), "it is not tuned"


# Verdicts


def test_gains_are_compared_as_scipy_does():
    plain, other = np.array([3.0, 4.0, 5.0, 6.0]), np.array([2.0, 4.5, 4.0, 4.0])
    found = paired.compare(Measure("", 100.0).gain(plain, other))
    expected = stats.ttest_rel(plain, other)
    assert found.mean == pytest.approx((1 - 0.5 + 1 + 2) / 4)
    assert found.p == pytest.approx(expected.pvalue)
    assert found.interval == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert found.half_width == pytest.approx((found.interval[1] - found.interval[0]) / 2)
    assert found.wins == 3
    assert paired.compare(Measure("", 0.0, False).gain(plain, other)).mean == -found.mean


def test_gains_without_a_spread():
    assert paired.compare([0.0, 0.0, 0.0]) == (0.0, 0.0, 1.0, 1.5)
    assert paired.compare([0.5, 0.5, 0.5]) == (0.5, 0.0, 0.0, 3.0)


def test_p_values_are_adjusted_as_by_hand():
    # 0.01 · 4, 0.02 · 3, 0.03 · 2 (not below the one before), 0.8 · 1.
    np.testing.assert_allclose(verdicts.holm([0.03, 0.01, 0.8, 0.02]), [0.06, 0.04, 0.8, 0.06])
    np.testing.assert_allclose(verdicts.holm([0.4, 0.6]), [0.8, 0.8])


def test_a_verdict_is_of_the_adjusted_p_value():
    better, worse = paired.compare([1.0, 1.1, 0.9]), paired.compare([-1.0, -1.1, -0.9])
    assert [verdicts.verdict(c, 0.05) for c in (better, worse)] == ["helps", "hurts"]
    assert [verdicts.verdict(c, 0.051) for c in (better, worse)] == ["no difference"] * 2


# Training


@pytest.fixture(scope="module")
def problem():
    base = replace(supervised.BASE, batch_size=8, annealing="none")
    return Problem(load("digits"), base, steps=20, train_images=50, held_out=40, flipped=0.3)


def by_hand(problem, method, rates, **own):
    """The test errors after runs step by step, with the optimizer of the registry."""
    row = OPTIMIZERS[method]
    images = problem.dataset.standardise(jnp.asarray(problem.pool[0]))
    graph = problem.model.graph

    def loss(params, batch, labels):
        logits = nnx.merge(graph, params)(images[batch], train=True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels[batch]).mean()

    def optimizer(rate):
        config = replace(problem.base, optimizer=method, **own)
        return row.make(config, Stages((rate,) * 4, (5,) * 4))

    @jax.jit
    def step(rate, params, state, *example):
        updates, state = optimizer(rate).update(jax.grad(loss)(params, *example), state, params)
        return optax.apply_updates(params, updates), state

    def error(rate, draw):
        params, state = draw.params, optimizer(rate).init(draw.params)
        for batch in draw.batches:
            params, state = step(rate, params, state, batch, draw.labels)
        params = row.slow_params(state, params)
        shown = draw.evaluated[draw.counted]
        logits = nnx.merge(graph, params)(images[shown], train=False)
        return 100 * float(jnp.mean(logits.argmax(-1) != problem.pool[1][shown]))

    draws = [problem.draw(seed, held_out=False) for seed in range(2)]
    return [[error(rate, draw) for draw in draws] for rate in rates]


@pytest.mark.parametrize("method", ["lookahead", "schedule_free"])
def test_all_at_once_are_the_runs_one_by_one(problem, method):
    own = {"momentum": 0.8, "slow_step_size": 0.5}
    settings = [{"learning_rate": rate, **own} for rate in (0.2, 1.0)]
    got = problem.scores(method, settings, range(2), False)
    # The inner optimizer of schedule-free learning has no momentum.
    rates = {"lookahead": (0.04, 0.2), "schedule_free": (0.2, 1.0)}[method]
    expected = by_hand(problem, method, rates, **own)
    np.testing.assert_allclose(got, expected, atol=0.08)  # Of 1,707 images, one is 0.06 %.


def test_three_tenths_of_the_training_labels_are_flipped_and_no_other(problem):
    true = problem.pool[1]
    for held_out in (True, False):
        draw = problem.draw(3, held_out=held_out)
        used = np.unique(draw.batches)
        flipped = np.flatnonzero(draw.labels != true)
        assert len(used) == 50
        assert len(flipped) == 15
        assert set(flipped) <= set(used)
        assert not set(draw.evaluated) & set(used)
        np.testing.assert_array_equal(draw.labels, problem.draw(3, held_out=True).labels)
    held, test = (set(problem.draw(3, held_out=h).evaluated) for h in (True, False))
    assert not held & test
    assert len(held) == 40
    assert not np.array_equal(draw.labels, problem.draw(4, held_out=True).labels)


# The published map


def test_the_momentum_of_the_regimes_is_the_best_of_the_first():
    parts = json.loads((RESULTS / "results.json").read_text())["parts"]
    assert parts["decayed/sgd"]["chosen"]["momentum"] == supervised.BASE.momentum


def test_each_advice_has_its_row():
    table = (RESULTS / "table.md").read_text()
    pages = [DOCS / "choosing.md", DOCS.parent / "README.md", RESULTS / "README.md"]
    links = [re.findall(r"table\.md#([\w.-]+)", page.read_text()) for page in pages]
    assert len(links[0]) > 10
    for anchor in itertools.chain(*links):
        assert f'<a id="{anchor}"></a>' in table


AVERAGES = {"ema", "primal_averaging"}
NONE: set[str] = set()
# What the pages say that helps, and that hurts.
SAID = {
    **{name: (NONE, NONE) for name in ("decayed", "few_samples", "flipped", "momentum_0")},
    **{name: (NONE, {"snoo"}) for name in ("batch_8", "batch_8_constant")},
    **{name: (NONE, {"schedule_free"}) for name in ("batch_128", "momentum_0.5", "momentum_0.95")},
    "constant": (AVERAGES, {"schedule_free"}),
    "flipped_constant": (AVERAGES | {"schedule_free", "multilayer_lookahead"}, NONE),
    "too_large": (set(supervised.METHODS) - {"sgd", "snoo"}, {"snoo"}),
    "tasks_told": (NONE, {"multilayer_lookahead", "schedule_free"}),
    "tasks_not_told": (set(supervised.METHODS) - {"sgd", "slrla_released"}, NONE),
    "language": (AVERAGES | {"snoo"}, {"multilayer_lookahead", "slrla"}),
    "language_decayed": ({"snoo"}, {"ema"}),
    **{name: (set(games.METHODS) - {"sgd"}, NONE) for name in ("game", "noisy_game")},
}


@pytest.mark.parametrize("name", SAID)
def test_what_helps_and_what_hurts_is_what_the_pages_say(name):
    rows = rows_of(json.loads((RESULTS / "results.json").read_text()))
    (row,) = [row for row in rows if row.name == name]
    found = [
        {method for method, cell in row.others.items() if cell.verdict == verdict}
        for verdict in (verdicts.HELPS, verdicts.HURTS)
    ]
    assert found == list(SAID[name])


# The program


@pytest.fixture
def two_regimes(monkeypatch):
    """The program with regimes whose scores are a formula; counts how often it is asked."""
    asked = []

    def counted(*args):
        asked.append(args)
        return scores(*args)

    rows = {name: replace(regime(), name=name, scores=counted) for name in ("a", "b")}
    monkeypatch.setattr(when, "regimes_of", lambda args: rows)
    return asked


def results(folder):
    found = json.loads((folder / "results.json").read_text())
    for part in found["parts"].values():
        del part["seconds"]
    return found["parts"]


def test_a_resumed_map_is_that_of_one_go(two_regimes, tmp_path, capsys):
    root = ["--seeds", "4", "--root", str(tmp_path), "--name"]
    assert when.main([*root, "whole"]) == 0
    whole = len(two_regimes)
    assert when.main([*root, "parts", "--regimes", "a"]) == 0
    assert list(results(tmp_path / "parts")) == ["a/plain", "a/other"]
    assert when.main([*root, "parts"]) == 0
    assert results(tmp_path / "parts") == results(tmp_path / "whole")
    before = len(two_regimes)
    assert when.main([*root, "parts"]) == 0
    assert len(two_regimes) == before > whole
    assert "2 comparisons" in capsys.readouterr().out
    rows = rows_of(json.loads((tmp_path / "whole" / "results.json").read_text()))
    p = verdicts.holm([row.others["other"].comparison.p for row in rows])
    assert [row.others["other"].adjusted for row in rows] == list(p)
    assert [row.others["other"].verdict for row in rows] == ["helps", "helps"]
    assert (tmp_path / "whole" / "map.png").stat().st_size > 5_000
    assert when.main([*root, "whole", "--seeds", "5"]) == 1


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--regimes", "a,c"], "--regimes: must be different names among a, b, got 'a,c'"),
        (["--regimes", "b,b"], "--regimes: must be different names among a, b, got 'b,b'"),
        (["--methods", "plain"], "--methods: must be different names among other, got 'plain'"),
        (["--seeds", "1"], "--seeds: must be 2 or more for an interval, got 1"),
    ],
)
def test_a_wrong_flag_is_one_line(two_regimes, tmp_path, capsys, flags, line):
    assert line in error_line(when.main, [*flags, "--root", str(tmp_path)], capsys)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--dataset", "names"], "--dataset: must be of images in memory, got names"),
        (["--data_path", "nowhere"], "--data_path: there is no folder "),
    ],
)
def test_data_that_cannot_be_used_are_one_line(tmp_path, capsys, flags, line):
    flags = ["--root", str(tmp_path), "--dataset", "fashion_mnist", *flags]
    assert line in error_line(when.main, flags, capsys)
