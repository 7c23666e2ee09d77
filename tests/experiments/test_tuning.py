"""Optimizers that are tuned alike: schedules, rounds of tuning, and the two programs."""

import json
import math
from dataclasses import replace
from pathlib import Path

import image_classifier
import jax
import jax.numpy as jnp
import language_model
import numpy as np
import optax
import pytest
from experiments import report, tuning
from experiments.config import Config, SettingError
from experiments.configs import image_classifier as image_recipe
from experiments.configs import language_model as text_recipe
from experiments.optimizers import OPTIMIZERS
from experiments.report import by_seed
from experiments.schedules import ANNEALINGS, Stages, stages_of
from experiments.sweep import Results
from experiments.tuning import first_crossing, in_words, tune, with_steps_to_first

import slrla_jax

# The learning rate


def factor(annealing, step, steps, warmup):
    """By what the learning rate is multiplied."""
    rising = min(1.0, (step + 1) / warmup) if warmup else 1.0
    over = min(1.0, step / steps)
    falling = {
        "none": 1.0,
        "cosine": (1 + math.cos(math.pi * over)) / 2,
        "linear": min(1.0, (1 - over) / 0.2),
    }
    return rising * falling[annealing]


@pytest.mark.parametrize("annealing", ANNEALINGS)
@pytest.mark.parametrize("warmup", [0.0, 0.1])
def test_the_learning_rate_rises_and_falls(annealing, warmup):
    config = Config(milestones=(0.5,), stages_in="steps", warmup=warmup, annealing=annealing)
    stages = stages_of(config, 40, 1)
    for step in range(44):
        stage = 0.1 if step < 20 else 0.02
        wanted = stage * factor(annealing, step, 40, 4 if warmup else 0)
        np.testing.assert_allclose(stages.schedule(step), wanted, rtol=1e-5, atol=1e-9)
        np.testing.assert_allclose(
            jax.jit(stages.schedule)(jnp.int32(step)), wanted, rtol=1e-5, atol=1e-9
        )


def test_slrla_has_the_learning_rate_of_each_step():
    """Within a stage, too: around plain SGD with α = 1 and β = 0 the path is that of SGD."""
    config = Config(
        milestones=(0.5,), warmup=0.1, annealing="cosine", slow_step_size=1.0, momentum=0.0
    )
    stages = Stages((0.1, 0.02), (10, 10), 2, "cosine")
    path = OPTIMIZERS["slrla"].make(config, stages)
    plain = OPTIMIZERS["sgd"].make(config, stages)
    params, states = jnp.ones(3), [tx.init(jnp.ones(3)) for tx in (path, plain)]
    for n in range(20):
        updates = [
            tx.update(params * n, s, params) for tx, s in zip((path, plain), states, strict=True)
        ]
        np.testing.assert_allclose(updates[0][0], updates[1][0], rtol=1e-6)
        states = [state for _, state in updates]


def test_bounds_of_adabound_with_a_warm_up():
    with pytest.raises(SettingError, match="AdaBound's bounds"):
        OPTIMIZERS["adabound"].make(Config(), Stages((0.1,), (10,), warmup=2))


def test_an_average_of_the_weights():
    config = Config(inner="sgd", momentum=0.0, weight_decay=0.0, ema_decay=0.75)
    row = OPTIMIZERS["ema"]
    tx = row.make(config, Stages((0.5,), (10,)))
    params, average, state = np.float64([1, -2]), np.float64([1, -2]), tx.init(jnp.float32([1, -2]))
    for _ in range(5):
        updates, state = tx.update(jnp.float32(params), state, jnp.float32(params))
        params = params - 0.5 * params
        average = 0.75 * average + 0.25 * params
        np.testing.assert_allclose(row.slow_params(state, params), average, rtol=1e-5)
        np.testing.assert_allclose(updates, -params, rtol=1e-5)


@pytest.mark.parametrize("name", ["snoo", "primal_averaging", "schedule_free"])
def test_rows_around_sgd_by_hand(name):
    config = Config(inner="sgd", momentum=0.9, weight_decay=0.0, sync_period=2)
    row = OPTIMIZERS[name]
    if name == "schedule_free":  # Whose interpolation takes the place of the momentum.
        by_hand = optax.contrib.schedule_free(optax.sgd(0.1), 0.1, b1=0.9)
    else:
        settings = (2, 0.8, 0.75) if name == "snoo" else (0.7, 0.9967)
        by_hand = getattr(slrla_jax, name)(optax.sgd(0.1, momentum=0.9), *settings)
    made = row.make(config, Stages((0.1,), (10,)))
    params = [jnp.float32([1.0, -2.0])] * 2
    states = [tx.init(params[0]) for tx in (made, by_hand)]
    for _ in range(5):
        for n, tx in enumerate((made, by_hand)):
            updates, states[n] = tx.update(jnp.sin(params[n]), states[n], params[n])
            params[n] = optax.apply_updates(params[n], updates)
        slow = [row.slow_params(state, p) for state, p in zip(states, params, strict=True)]
        np.testing.assert_allclose(*slow, rtol=1e-6)
        np.testing.assert_allclose(*params, rtol=1e-6)


# Rounds

PROBLEM = replace(
    text_recipe.PROBLEM,
    learning_rates=(1.0, 2.0, 4.0),
    starts={"adamw": {}, "snoo": {"sync_period": 20}},
    others={"adamw": [{"momentum": 0.8}], "snoo": [{"sync_period": 5}, {"sync_period": 50}]},
)


def loss(config):
    """Smallest for AdamW at 8 with linear annealing and momentum 0.8, for SNOO at 2 and 50."""
    rate, annealing = math.log2(config.learning_rate), config.annealing
    if config.optimizer == "adamw":
        return abs(rate - 3) + (annealing != "linear") + 0.5 * (config.momentum != 0.8)
    return abs(rate - 1) + (annealing != "none") + abs(config.sync_period - 50) / 50


@pytest.mark.parametrize("lower", [True, False])
def test_tuning_finds_the_best(lower):
    problem = replace(PROBLEM, goal=PROBLEM.goal._replace(lower_is_better=lower))
    asked = []

    def measure(number, configs):
        asked.append(list(configs))
        # AdamW with cosine annealing diverges.
        return {
            c: loss(c) if lower else -loss(c)
            for c in configs
            if (c.optimizer, c.annealing) != ("adamw", "cosine")
        }

    starts = {name: problem.start(name) for name in problem.starts}
    best = tune(problem, starts, measure)
    adamw, snoo = best["adamw"], best["snoo"]
    assert (adamw.learning_rate, adamw.annealing, adamw.momentum) == (8.0, "linear", 0.8)
    assert (snoo.learning_rate, snoo.annealing, snoo.sync_period) == (2.0, "none", 50)
    # Nothing is trained twice: in the third round only what the grid does not have with the best.
    assert [len(configs) for configs in asked] == [2 * 9, 1 + 2, 2 + 2]
    together = [config for configs in asked for config in configs]
    assert len({in_words(config) for config in together}) == len(together)


def test_the_length_of_an_epoch_may_be_that_of_the_data():
    args = image_classifier.make_parser().parse_args(["--epoch_steps", "none"])
    assert args.epoch_steps is None
    assert text_recipe.BASE.epoch_steps == 100


def test_an_optimizer_that_always_diverges():
    starts = {name: PROBLEM.start(name) for name in PROBLEM.starts}
    with pytest.raises(SettingError, match="snoo diverges with every candidate"):
        tune(PROBLEM, starts, lambda _, configs: {c: 1.0 for c in configs if c.optimizer != "snoo"})


def test_schedule_free_learning_is_not_annealed():
    best = Config(optimizer="schedule_free")
    candidates = tuning.of_the_grid(PROBLEM, "schedule_free", best)
    assert [(c.learning_rate, c.annealing) for c in candidates] == [
        (rate, "none") for rate in PROBLEM.learning_rates
    ]


# Steps to the first's result


@pytest.mark.parametrize("seed", range(20))
def test_where_values_first_reach_a_level(seed):
    """Against a fine search."""
    rng = np.random.default_rng(seed)
    steps = np.cumsum(rng.integers(1, 9, 10))
    values, level = rng.normal(size=10), rng.normal() + 1
    have = first_crossing(steps, values, level, lower_is_better=False)
    mirrored = first_crossing(steps, -values, -level, lower_is_better=True)
    np.testing.assert_array_equal(have, mirrored)
    fine = np.linspace(steps[0], steps[-1], 20_001)
    reached = np.flatnonzero(np.interp(fine, steps, values) >= level)
    if not len(reached):
        assert math.isnan(have)
    else:
        assert abs(have - fine[reached[0]]) <= fine[1] - fine[0]


def test_steps_are_those_from_the_same_seed():
    def records(label, curves):
        return [
            {"optimizer": label, "seed": seed, "epoch": epoch, "steps": 10 * epoch, "test_loss": v}
            for seed, curve in enumerate(curves)
            for epoch, v in enumerate(curve)
        ]

    whole = records("A", [[4, 2, 1], [4, 3, 2]]) + records("B", [[3, 1, 1], [4, 3, 2.5]])
    results = Results(None, {"A": None, "B": None}, whole, (), {})
    found = with_steps_to_first(results, text_recipe.LOSS)
    last = [record for record in found if record["epoch"] == 2]
    of_b = by_seed([r for r in last if r["optimizer"] == "B"], "steps_to_first")[:, 0]
    np.testing.assert_array_equal(of_b, [10, np.nan])
    assert [r["steps_to_first"] for r in last if r["optimizer"] == "A"] == [20, 20]
    assert "steps_to_first" not in whole[-1]


# The programs


def test_a_language_model_is_tuned_and_compared(tmp_path, monkeypatch, capsys):
    small = replace(
        text_recipe.PROBLEM,
        learning_rates=(4e-3,),
        held_out=20,
        starts={"schedule_free": {}},
        others={"schedule_free": []},
    )
    monkeypatch.setattr(language_model, "PROBLEM", small)
    monkeypatch.setattr(tuning, "ROUNDS", tuning.ROUNDS[:2])  # There is nothing in the second.
    flags = f"--tune --epochs 2 --epoch_steps 3 --batch_size 4 --seeds 2 --root {tmp_path} --name x"
    assert language_model.main(flags.split()) == 0
    files = {path.name for path in (tmp_path / "x").iterdir()}
    assert files == {"tuning_1", "tuning.json", "comparison"}
    tuned = json.loads((tmp_path / "x/tuning_1/results.json").read_text())
    assert tuned["seeds"] == [0]
    assert [entry["config"]["held_out"] for entry in tuned["entries"].values()] == [20]
    results = json.loads((tmp_path / "x/comparison/results.json").read_text())
    assert results["seeds"] == [1, 2]
    (entry,) = results["entries"].values()
    assert entry["config"]["held_out"] is None
    assert entry["measured"]["steps_to_first"]["final"]["by_seed"] == [6.0, 6.0]
    assert (tmp_path / "x/comparison/curves.png").stat().st_size > 10_000
    assert "windows" in capsys.readouterr().out
    assert language_model.main(flags.split()) == 0
    assert "done before" in capsys.readouterr().out


def test_an_image_classifier_with_the_tuned_settings(tmp_path, capsys):
    flags = f"--optimizers sgd,ema --epochs 1 --network softmax --seeds 1 --root {tmp_path}"
    assert image_classifier.main(flags.split()) == 0
    out = capsys.readouterr().out
    assert "EMA against SGD" in out
    assert "points" in out
    results = json.loads((tmp_path / "image_classifier-digits/comparison/results.json").read_text())
    for name, label in (("sgd", "SGD"), ("ema", "EMA")):
        config = results["entries"][label]["config"]
        for setting, value in image_recipe.PROBLEM.tuned[name].items():
            assert config[setting] == value


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("--optimizers sgd", "--optimizers"),
        ("--dataset digits", "--network: transformer"),
        ("--train_examples 100000", "--train_examples"),
        ("--tune --train_examples 7000", "--train_examples"),
        ("--dataset text", "--data_path: text needs"),
    ],
)
def test_what_cannot_be(flags, named, tmp_path, capsys):
    try:
        code = language_model.main([*flags.split(), "--root", str(tmp_path)])
    except SystemExit as error:
        code = error.code
    assert code == 2
    assert named in capsys.readouterr().err


# The results in the repository

RECIPES = {"language_model": text_recipe, "image_classifier": image_recipe}
RESULTS = Path(language_model.__file__).parent / "results"
every_recipe = pytest.mark.parametrize("name", RECIPES)


@every_recipe
def test_the_tuned_settings_are_what_tuning_finds_in_its_results(name):
    """Every candidate of every round is in the file, and each best one in the recipe."""
    problem = RECIPES[name].PROBLEM
    assert set(problem.starts) == set(problem.others) == set(problem.tuned)
    recorded = json.loads((RESULTS / name / "tuning.json").read_text())
    assert recorded["command"].startswith(f"python examples/{name}.py --dataset")
    assert (recorded["seed"], recorded["held_out"]) == (tuning.TUNING_SEED, problem.held_out)
    rounds = recorded["rounds"]

    def measure(number, configs):
        assert [in_words(config) for config in configs] == list(rounds[str(number)])
        return {config: rounds[str(number)][in_words(config)] for config in configs}

    starts = {optimizer: problem.start(optimizer) for optimizer in problem.starts}
    best = tune(problem, starts, measure)
    for optimizer, config in best.items():
        assert config == problem.best(optimizer)


@pytest.mark.parametrize(
    ("name", "folder", "seeds", "changed"),
    [
        ("language_model", "comparison", 5, {}),
        ("language_model", "longer", 3, {"epochs": 50, "eval_every": 2}),
        ("image_classifier", "comparison", 5, {}),
    ],
)
def test_the_page_has_the_measured_numbers(name, folder, seeds, changed):
    problem, place = RECIPES[name].PROBLEM, RESULTS / name / folder
    summary = json.loads((place / "results.json").read_text())
    columns = [problem.goal, tuning.STEPS_TO_FIRST, *problem.columns]
    assert (place / "table.md").read_text() == report.page(summary, columns)
    readme = (RESULTS / name / "README.md").read_text()
    assert "\n".join(report.table(summary, columns)) in readme
    for line in report.comparison(summary, columns):
        assert f"- {line}" in readme.splitlines()
    assert len(summary["seeds"]) == seeds
    assert (place / "curves.png").stat().st_size < 300_000
    tuned = {OPTIMIZERS[c.optimizer].label_of(c): c for c in map(problem.best, problem.tuned)}
    assert changed or set(summary["entries"]) == set(tuned)
    for label, entry in summary["entries"].items():
        recorded = {k: v for k, v in entry["config"].items() if k != "data"}
        of_the_data = {k: recorded[k] for k in ("dataset", "train_images")}
        assert Config.from_json(recorded) == replace(tuned[label], **of_the_data, **changed)
