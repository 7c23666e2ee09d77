"""What the theorems' experiments find at reduced sizes, and their program."""

import json

import numpy as np
import pytest
import theory
from error_lines import error_line
from experiments.theory import (
    convex,
    fits,
    promise,
    rates,
    runs,
    stability,
    stages,
    sync_period,
)
from experiments.theory.lookaheads import decaying
from experiments.theory.problems import mean, sine
from x64 import enable_x64


@pytest.fixture(autouse=True)
def float64(monkeypatch):
    monkeypatch.setattr(fits, "RESAMPLES", 100)
    with enable_x64(True):
        yield


def row(part_or_rows, begin):
    rows = part_or_rows["fits"] if isinstance(part_or_rows, dict) else part_or_rows
    (found,) = [row for row in rows if row["what"].startswith(begin)]
    return found


def test_the_best_alpha_falls_with_the_steps_and_rises_with_the_samples():
    """Theorem 1, with intervals that do not overlap."""
    problem, length = convex.hard(1.0, 60, 2), 2_000
    best = {}
    for n in (25, 400):
        data = runs.draw(problem, 12, n, length)
        for steps in (100, length):
            errors = convex.run(problem, data, steps)
            best[n, steps] = fits.interval(convex.best, errors["excess"])
            # SGD with the learning rate α η does the same.
            np.testing.assert_allclose(errors["sgd"], errors["excess"], rtol=0.1, atol=0.02)
    assert best[25, length]["high"] < best[25, 100]["low"]
    assert best[25, length]["high"] < best[400, length]["low"]


def test_the_error_falls_slower_with_a_small_alpha():
    """Theorem 2: by −2α up to ½, and by −1 above."""
    problem, steps = mean(1.0, 20, 3.0, 1.0), 4_000
    seen = rates.run(problem, 50, 8, rates.looks(steps))
    found = rates.of_optimisation(seen, [-min(2 * alpha, 1) for alpha in rates.ALPHAS])
    for one in found[:2]:
        assert one["low"] - 0.03 < one["predicted"] < one["high"] + 0.03
    flat, steep = row(found, "optimisation error against kT, α = 0.25"), found[-1]
    assert steep["high"] < flat["low"] - 0.1
    assert abs(row(rates.of_sgd(seen), "excess")["value"]) < 0.05


def test_the_error_falls_faster_than_theorem_3_says():
    """By more than 2α − 1, the exponent of its second term; and the slower the smaller α is."""
    problem = sine(0.5, np.pi, np.pi + 5, 4, 1.0)
    seen = rates.run(problem, 50, 8, rates.looks(4_000))
    found = rates.of_optimisation(seen, [1 - 2 * alpha for alpha in rates.ALPHAS])
    flat, steep = (row(found, f"optimisation error against kT, α = {a}") for a in (0.25, 0.75))
    for one in (flat, steep):
        assert one["high"] < one["predicted"] - 0.1
    assert steep["high"] < flat["low"] - 0.1


def test_runs_on_data_that_differ_in_a_sample_end_apart_as_stability_has_it(monkeypatch):
    """The farther the larger α and kT and the smaller n are; in α and kT within the bound."""
    monkeypatch.setattr(stability, "SAMPLES", (20, 80))
    problem = convex.hard(1.0, 40, 2)
    kind = stability.Kind(lambda _: problem, (0.0,), (1, 0.5, -1))
    part = stability.measure(kind, 10, 4_000)
    for factor, bound in (("α", 1), ("kT", 0.5)):
        found = row(part, f"distance against {factor}")
        assert 0.1 < found["low"] < found["high"] < bound
    assert row(part, "distance against n")["high"] < -0.3


def test_the_stages_of_theorem_4_reach_what_they_promise():
    """At the slow weights too, for which the proof does not speak."""
    problem = mean(1.0, 5, 3.0, 0.3)
    setup = stages.set_up(problem, 4, 4_000)
    found = promise.run(setup, setup.schedule(0.5))
    assert len(found["ends"]) >= 3
    assert found["ends"][-1] == 4_000
    np.testing.assert_allclose(found["promised"][:2], [setup.error / 2, setup.error / 4])
    for weights in promise.WEIGHTS:
        assert (found[weights].mean(-1) < found["promised"]).all()
    # The average still has the start in it, and later less noise.
    first, last = promise.of_average("", found)
    assert first["low"] > 1
    assert last["high"] < 1


def test_a_longer_period_is_worse_at_equal_gradients_unless_alpha_is_1():
    """Theorem 2: the error of the start falls with the syncs."""
    problem, steps = mean(1.0, 20, 3.0, 1.0), 2_000
    data = runs.draw(problem, 8, 50, steps)
    errors = sync_period.run(problem, decaying, data, steps).optimisation
    assert errors.shape == (4, 5, 8)
    found = fits.interval(sync_period.slopes, errors)
    predicted = [
        sync_period.bounds_if_strongly_convex(alpha, sync_period.PERIODS, steps, 1.0)[0]
        for alpha in sync_period.ALPHAS
    ]
    assert found["value"][0] == pytest.approx(sync_period.slopes(predicted)[0], abs=0.1)
    assert (found["low"][:-1] > 0.2).all()
    assert found["value"][-1] == 0


def test_the_program(tmp_path, capsys):
    asked = [
        "--theorems",
        "regulariser",
        "--steps",
        "2000",
        "--seeds",
        "3",
        "--root",
        str(tmp_path),
    ]
    assert theory.main([*asked, "--name", "mine"]) == 0
    folder = tmp_path / "mine"
    files = {"results.json", "settings.json", "table.md"}
    files |= {"regulariser_ridge.png", "regulariser_sine.png"}
    assert {path.name for path in folder.iterdir()} == files
    results = json.loads((folder / "results.json").read_text())
    assert (folder / "table.md").read_text() == theory.page(results)
    part = results["parts"]["Theorem 4, generalisation against β: ridge"]
    found = row(part, "generalisation error against β/α + λ, at equal")
    assert f"{found['value']:.3g}".replace("-", "−") in theory.page(results)
    assert found["low"] > -0.5  # The theorem has −1.
    capsys.readouterr()
    assert theory.main([*asked, "--name", "mine", "--resume"]) == 0
    assert capsys.readouterr().out.count("done before") == 2


@pytest.mark.parametrize("name", stages.PROBLEMS)
def test_the_fewest_steps_have_a_first_stage(name):
    case = stages.PROBLEMS[name]
    for curvature in case.curvatures:
        setup = stages.set_up(case.make(curvature), 2, 5 * theory.LEAST)
        lowest = stages.ALPHAS[0] if curvature == case.curvatures[0] else 1.0
        assert setup.schedule(lowest)


def test_bad_flags_are_named(capsys, tmp_path):
    for flag, value in (("--theorems", "concave"), ("--steps", "1999"), ("--seeds", "0")):
        with pytest.raises(SystemExit):
            theory.main([flag, value])
        assert flag in capsys.readouterr().err
    message = error_line(theory.main, ["--seeds", "1", "--root", str(tmp_path)], capsys)
    assert message == "theory.py: error: --seeds: must be 2 or more, got 1\n"


@pytest.mark.parametrize("study", theory.STUDIES.values())
def test_every_study_has_what_the_program_needs(study):
    assert study.TITLE
    assert study.PREDICTION
    assert study.PROBLEMS
    assert callable(study.measure)
    assert callable(study.draw)


def test_a_missing_number_is_a_dash():
    assert theory.plain({"a": (np.float64("nan"), np.arange(2)), "b": 0.123456}) == {
        "a": [None, [0, 1]],
        "b": 0.1235,
    }
    assert theory.number(None) == "–"
