"""Softmax regression with every method tuned alike: a literal loop, choices, tables and results."""

import json
import re
from dataclasses import replace
from pathlib import Path

import ablations
import numpy as np
import pytest
from experiments import data
from experiments.studies import ablation
from experiments.studies.ablation import METHODS, Method, Problem, Setting

RESULTS = Path(ablations.__file__).parent / "results" / "slrla" / "ablations"


# The study


def literal_algorithm_3(inputs, labels, batches, rates, setting, cycles):
    """The paper's loops around SGD with momentum, on softmax regression, in float64."""
    theta = np.zeros((inputs.shape[1] + 1, 10))
    velocity = np.zeros_like(theta)
    inputs = np.concatenate([inputs, np.ones((len(inputs), 1))], axis=1)
    steps = iter(zip(batches, rates, strict=True))
    for count in cycles:
        anchor = theta
        for _ in range(count):
            v = theta
            for _ in range(5):
                batch, rate = next(steps)
                scores = np.exp(inputs[batch] @ v)
                share = scores / scores.sum(1, keepdims=True)
                share[np.arange(len(batch)), labels[batch]] -= 1
                gradient = inputs[batch].T @ share / len(batch)
                gradient += setting.beta * (v - anchor) + setting.decay * v
                velocity = 0.9 * velocity + gradient
                v = v - rate * velocity
            theta = theta + setting.alpha * (v - theta)
    return theta


def scores_of(theta, inputs, labels):
    """Mean loss and error."""
    scores = inputs @ theta[:-1] + theta[-1]
    shifted = scores - scores.max(1, keepdims=True)
    log_share = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    error = np.mean(scores.argmax(1) != labels)
    return -log_share[np.arange(len(labels)), labels].mean(), error


@pytest.mark.parametrize("name", ["SLRLA", "LA"])
def test_all_settings_at_once_are_the_literal_loop_of_each(name):
    dataset = data.load("digits")
    problem = Problem(dataset, samples=100, steps=48, batch_size=20)
    settings = [Setting(0.05, 1e-2, 0.3, 0.0), Setting(0.01, 0.0, 1.0, 5.0)]
    if name == "SLRLA":  # 48 steps are ten whole cycles.
        cycles, rates = (3, 3, 2, 2), np.repeat(0.5 ** np.arange(4), (15, 15, 10, 10))
    else:
        cycles, rates = (10,), 1 / (1 + np.arange(50) // 5)
    got = ablation.measure(problem, METHODS[name], settings, seeds=(0, 1))
    train, test = (
        np.float64(dataset.standardise(images)).reshape(len(images), -1)
        for images in (dataset.train_images, dataset.test_images)
    )
    for seed in (0, 1):
        chosen = np.random.default_rng(seed).permutation(600)[:100]
        order, batches = np.random.default_rng(seed), []
        while len(batches) < 50:
            batches += list(order.permutation(100).reshape(5, 20))
        for n, setting in enumerate(settings):
            labels = dataset.train_labels[chosen]
            theta = literal_algorithm_3(
                train[chosen], labels, batches, setting.rate * rates, setting, cycles
            )
            loss, error = scores_of(theta, test, dataset.test_labels)
            where = {name: value[seed, n] for name, value in got.items()}
            train_loss, _ = scores_of(theta, train[chosen], labels)
            np.testing.assert_allclose(where["train_loss"], train_loss, rtol=1e-4)
            np.testing.assert_allclose(where["loss"], loss, rtol=1e-4)
            np.testing.assert_allclose(where["error"], error, atol=1.1e-3)


def test_tuning_sees_neither_the_test_images_nor_those_it_is_decided_by():
    whole = data.load("digits")
    (images, labels), (held_out, held_out_labels) = ablation.split(whole)
    assert (len(images), len(held_out)) == (len(labels), len(held_out_labels)) == (500, 100)
    together = np.concatenate([images, held_out])
    np.testing.assert_array_equal(
        np.sort(together.reshape(600, -1), axis=0),
        np.sort(whole.train_images.reshape(600, -1), axis=0),
    )
    problem, setting = Problem(whole, 600, 5, 250), Setting(0.1, 0.0, 1.0, 0.0)
    without_test = replace(whole, test_images=0 * whole.test_images)
    tuned = [
        ablation.measure(problem._replace(dataset=d), METHODS["SGD"], [setting], [3], tuning=True)
        for d in (whole, without_test)
    ]
    assert tuned[0]["loss"] == tuned[1]["loss"]
    wrong = 100 * float(tuned[0]["error"][0, 0])
    assert wrong == pytest.approx(round(wrong)), "the error is not that of a hundred images"


@pytest.mark.parametrize(("steps", "count"), [(1, 1), (10, 2), (15, 3), (20, 4), (4_680, 4)])
def test_short_runs_have_fewer_stages(steps, count):
    assert len(ablation.stages_in(steps).lengths) == count


# The program


def small(monkeypatch):
    """Methods with tiny grids."""
    grids = {"rates": (0.05, 0.1), "alphas": (0.5,)}
    methods = {
        "SGD": Method(ablation.in_stages, grids["rates"], (1.0,)),
        "SLRLA": Method(ablation.in_stages, **grids, betas=(0, 10)),
    }
    for module in (ablation, ablations):
        monkeypatch.setattr(module, "METHODS", methods)
    monkeypatch.setattr(ablation, "DECAYS", (0, 1))
    return methods


def test_what_is_best_on_the_held_out_images_is_measured(monkeypatch):
    method = small(monkeypatch)["SLRLA"]
    grid = method.grid(100)
    assert grid[0] == (0.05, 0.0, 0.5, 0.0)
    assert grid[-1] == (0.1, 0.01, 0.5, 0.1)
    asked = []

    def measure(problem, asked_method, settings, seeds, *, tuning=False):
        asked.append((asked_method, list(settings), list(seeds), tuning))
        shape = (len(seeds), len(settings))
        values = np.arange(np.prod(shape)).reshape(shape)
        planted = {"loss": values == 3, "error": values == 6}
        if tuning:  # Setting 3 has the lowest loss, and setting 6 the lowest error.
            return {name: 1.0 - v for name, v in planted.items()} | {"train_loss": values}
        return {"loss": values, "error": values / 100, "train_loss": values}

    monkeypatch.setattr(ablation, "measure", measure)
    problem = Problem(None, 100, 10, 20)
    got = ablation.compare(problem, "SLRLA", (0, 1))
    assert asked == [
        (method, grid, [ablation.TUNING_SEED], True),
        (method, [grid[3], grid[6]], [0, 1], False),
    ]
    assert [run["by"] for run in got["runs"]] == ["loss", "error"]
    assert [Setting(**run["setting"]) for run in got["runs"]] == [grid[3], grid[6]]
    assert got["runs"][1]["error"] == [0.01, 0.03]
    assert got["tried"]["loss"][3] == got["runs"][0]["validation"] == 0


def test_edges():
    grid = METHODS["SLRLA"].grid(100)
    middle = Setting(0.0064, 0.2, 0.3, 0.3)
    assert middle in grid
    assert ablation.edges(middle, grid) == []
    assert ablation.edges(middle._replace(rate=0.0004, alpha=0.1), grid) == ["rate", "alpha"]
    assert ablation.edges(middle._replace(rate=grid[-1].rate, beta=12.0), grid) == ["rate", "beta"]
    assert ablation.edges(middle._replace(decay=2.0), grid) == ["decay"]
    none = middle._replace(decay=0.0, beta=0.0, alpha=0.8)
    assert ablation.edges(none, grid) == [], "where a method is switched off is no edge"
    sgd = METHODS["SGD"].grid(100)
    assert ablation.edges(Setting(0.0064, 0.2, 1.0, 0.0), sgd) == []


def test_sgd_may_take_steps_as_small_as_those_of_lookahead():
    rates = METHODS["SGD"].rates
    assert len(rates) == 30, "some are α times others"
    smaller = {round(a * rate, 12) for rate in METHODS["SLA"].rates for a in METHODS["SLA"].alphas}
    assert smaller | {round(rate, 12) for rate in METHODS["SLA"].rates} == set(rates)


def test_differences_have_intervals():
    # The standard deviation is √(29.6875 / 12), and Student's t of 3 degrees of freedom 3.182446.
    said = ablations.in_words(np.array([-1.0, -2.0, -3.0, 0.5]), ".2f")
    assert said == "−1.38 [−3.75, +1.00], lower from 3 of 4 seeds"
    assert ablations.in_words(np.array([0.5]), ".1f") == "+0.5, lower from 0 of 1 seeds"


def test_the_program(tmp_path, capsys, monkeypatch):
    small(monkeypatch)

    def measure(problem, method, settings, seeds, *, tuning=False):
        rng = np.random.default_rng(len(settings))
        shape = (len(seeds), len(settings))
        return {name: rng.uniform(size=shape) for name in ("train_loss", "loss", "error")}

    monkeypatch.setattr(ablation, "measure", measure)
    line = ["--steps", "10", "--batch_size", "50", "--root", str(tmp_path), "--name", "mine"]
    few = [*line, "--samples", "60", "--seeds", "2"]
    assert ablations.main([*few, "--methods", "SGD"]) == 0
    folder = tmp_path / "mine"
    files = {"alpha.png", "results.json", "settings.json", "table.md"}
    assert {path.name for path in folder.iterdir()} == files
    assert ablations.main([*few, "--resume"]) == 0
    assert "SGD, 60 samples: done before" in capsys.readouterr().out
    results = json.loads((folder / "results.json").read_text())
    assert list(results["parts"]) == ["SGD, 60 samples", "SLRLA, 60 samples"]
    table = (folder / "table.md").read_text()
    for name in ("SGD", "SLRLA"):
        best = ablations.best_run(results, "60", name, "error")
        assert best["validation"] == min(results["parts"][f"{name}, 60 samples"]["tried"]["error"])
        assert (
            f"{100 * np.mean(best['error']):.2f} ± {100 * np.std(best['error'], ddof=1):.2f}"
            in table
        )
    assert ablations.main([*few, "--resume", "--steps", "20"]) == 1
    assert "--steps is 10" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch_size", "501"], "--batch_size: must be at most 500, got 501"),
        (["--samples", "601"], "--samples: must be from 128 (the batch size) to 600, got 601"),
        (["--methods", "SGD,Adam"], "--methods: "),
        (["--dataset", "names"], "--dataset: must be of images in memory, got names"),
    ],
)
def test_what_is_refused(flags, message, capsys):
    try:
        code = ablations.main(flags)
    except SystemExit as ended:
        code = ended.code
    captured = capsys.readouterr()
    assert (code, captured.out) == (2, "")
    assert message in captured.err


def test_by_default_there_are_many_samples_and_few():
    args = ablations.make_parser().parse_args([])
    assert ablations.samples_of(args, data.load("digits")) == (600, 128)


# What is in the repository


def test_the_results_in_the_repository_are_those_of_the_program():
    results = json.loads((RESULTS / "results.json").read_text())
    for title, part in results["parts"].items():
        axes = METHODS[title.split(",")[0]].axes
        assert part["axes"] == json.loads(json.dumps(axes))
    assert ablations.page(results) == (RESULTS / "table.md").read_text()


def test_the_page_has_the_measured_numbers():
    page = (RESULTS.parent / "README.md").read_text()
    table = (RESULTS / "table.md").read_text()
    best = re.findall(r"^(?:\| S?L?R?LA .*|\| SGD .*|- \w+ against .*)$", table, re.M)
    assert len(best) == 4 * (4 + 4)
    assert [line for line in best if line not in page] == []
