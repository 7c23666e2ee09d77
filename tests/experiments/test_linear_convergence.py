"""The problems with linear convergence, against literal float64 loops, and their program."""

import json
from pathlib import Path

import linear_convergence
import numpy as np
import pytest
from experiments import parts as parts_of_a_study
from experiments.checkpoints import OtherRun
from experiments.studies import convergence

RESULTS = Path(linear_convergence.__file__).parent / "results" / "adaloss"
STEPS = 30
TINY = ["--methods", "adaloss,sgd_constant", "--b0", "0.01,10", "--widths", "8"]
TINY += ["--steps", "16", "--seeds", "2", "--root"]


def residuals_and_jacobian(title, data, params, batch):
    if "regression" in title:
        return data["inputs"][batch] @ params - data["targets"][batch], data["inputs"][batch]
    hidden = data["inputs"] @ params.T
    scale = data["signs"] / np.sqrt(len(params))
    jacobian = (hidden > 0)[:, :, None] * scale[:, None] * data["inputs"][:, None, :]
    return np.maximum(hidden, 0) @ scale - data["targets"], jacobian


def literal(title, data, method, b0):
    """The error before each step, and L on the last batch, from the formulas as they stand."""
    theta, b_squared, path = data["params"], b0**2, []
    for t, batch in enumerate(data["batches"], start=1):
        residuals, jacobian = residuals_and_jacobian(title, data, theta, batch)
        count = len(batch) if "regression" in title else 1
        loss = (residuals**2).sum() / 2 / count
        gradient = np.tensordot(residuals, jacobian, 1) / count
        b_squared = {
            "adaloss": b_squared + loss,
            "adagrad_norm": b_squared + (gradient**2).sum(),
            "sgd_constant": b0**2,
            "sgd_decay_sqrt": b0**2 + t,
        }[method]
        path.append(loss if count == 1 else ((theta - data["solution"]) ** 2).sum())
        theta = theta - gradient / np.sqrt(b_squared)
    flat = jacobian.reshape(len(batch), -1)
    return np.array(path), np.linalg.eigvalsh(flat @ flat.T / count).max()


@pytest.fixture(scope="module")
def problems():
    return {
        "regression": convergence.regression(12, 4, 12),
        "regression in random batches": convergence.regression(6, 12, 3),
        "network": convergence.network(5, 3, 16),
    }


@pytest.mark.parametrize("title", ["regression in random batches", "network"])
def test_all_at_once_are_the_literal_loop_of_each(title, problems):
    data = convergence.drawn(problems[title], range(2), STEPS)
    b0 = np.array([[0.3, 0.5], [4.0, 5.0]])
    for method in ("adaloss", "adagrad_norm", "sgd_constant", "sgd_decay_sqrt"):
        got = convergence.errors(problems[title], method, data, b0)
        for seed in (0, 1):
            of_seed = {name: values[seed] for name, values in data.items()}
            for n in (0, 1) if method != "sgd_constant" else (1,):  # It diverges from the lower b0.
                expected, _ = literal(title, of_seed, method, b0[n, seed])
                np.testing.assert_allclose(got[n, seed], expected, rtol=1e-9)


def test_the_smoothness_is_that_of_the_loss(problems):
    for title in ("regression", "network"):
        data = problems[title].draw(np.random.default_rng(0), 1)
        _, largest = literal(title, data, "sgd_constant", 1e9)
        assert data["smoothness"] == pytest.approx(largest, rel=1e-9)


def test_the_batches_are_drawn_without_replacement(problems):
    data = problems["regression in random batches"].draw(np.random.default_rng(0), 20)
    assert {len(set(batch)) for batch in data["batches"].tolist()} == {3}
    assert len(set(map(tuple, data["batches"].tolist()))) > 10


def test_gradient_descent_diverges_below_half_of_the_smoothness(problems):
    problem, steps = problems["regression"], 400
    data = convergence.drawn(problem, range(2), steps)
    around = np.multiply.outer([0.97, 1.03], data["smoothness"] / 2)
    paths = convergence.errors(problem, "sgd_constant", data, around)
    slopes = convergence.over_runs(convergence.slope, paths)
    assert np.isnan(slopes[0]).all()
    # Above it the largest eigenvalue decides: the error changes sign in each step.
    np.testing.assert_allclose(slopes[1], 2 * np.log10(abs(1 - 2 / 1.03)), rtol=1e-2)


def test_slope_and_bend_of_known_paths():
    t = np.arange(2_000)
    linear = 3.0 * 10.0 ** (-0.004 * t)
    assert convergence.slope(linear) == pytest.approx(-0.004)
    assert convergence.bend(linear) == pytest.approx(1.0)
    # What comes after the floor is noise.
    noisy = np.where(t < 1_200, 10.0 ** (-0.01 * t), 1e-13)
    assert convergence.slope(noisy) == pytest.approx(-0.01)
    assert convergence.bend(np.exp(-np.sqrt(t / 10))) == pytest.approx(0.65, abs=0.01)
    assert convergence.diverges(np.array([1.0, np.inf, np.nan]))
    assert convergence.diverges(np.array([1.0, 0.5, 1.1]))
    assert not convergence.diverges(np.array([1.0, 5.0, 0.9]))


def test_the_program(tmp_path, capsys):
    assert linear_convergence.main([*TINY, str(tmp_path), "--name", "mine"]) == 0
    folder = tmp_path / "mine"
    files = {"networks.png", "regression.png", "results.json", "settings.json", "table.md"}
    assert {path.name for path in folder.iterdir()} == files
    results = json.loads((folder / "results.json").read_text())
    table = (folder / "table.md").read_text()
    part = results["parts"]["Linear regression, full batches"]
    assert "SGD_Constant, b0 = 0.01 diverged, from seed 1" in part["diverged"]
    assert "SGD_Constant, b0 = 0.01" not in part["entries"]
    slope = part["entries"]["AdaLoss, b0 = 10"]["measured"]["slope"]["final"]
    assert f"{slope['mean']:.4f} ± {slope['std']:.4f}" in table
    assert table == linear_convergence.page(results)

    # It is resumed where a part is missing, and refused with other settings.
    capsys.readouterr()
    more = [*TINY, str(tmp_path), "--name", "mine", "--resume"]
    assert linear_convergence.main(more) == 0
    assert capsys.readouterr().out.count("done before") == 3
    assert linear_convergence.main([*more, "--steps", "17"]) == 1
    assert capsys.readouterr().err == (
        f"linear_convergence.py: {folder} is of another run: --steps is 16 there and 17 here\n"
    )
    assert json.loads((folder / "results.json").read_text())["steps"] == 16


def test_bad_flags_are_named(capsys):
    for flag, value in (("--widths", "8,8"), ("--widths", "0"), ("--steps", "15"), ("--b0", "0")):
        with pytest.raises(SystemExit):
            linear_convergence.main([flag, value])
        assert flag in capsys.readouterr().err


def test_the_table_in_the_repository_is_that_of_the_program():
    folder = RESULTS / "convergence"
    results = json.loads((folder / "results.json").read_text())
    assert linear_convergence.page(results) == (folder / "table.md").read_text()


def test_an_error_that_does_not_move_has_no_bend():
    assert np.isnan(convergence.bend(np.ones(40)))
    assert convergence.slope(np.ones(40)) == 0


def test_a_folder_belongs_to_one_study(tmp_path):
    """Also where its results are damaged, and where a sweep has been there before."""
    settings, computed = {"steps": 7}, []

    def compute(steps=7, parts="ab"):
        def part(name):
            return lambda: computed.append(name) or {"found": name}

        return parts_of_a_study.compute(
            tmp_path, settings | {"steps": steps}, {name: part(name) for name in parts}, str
        )

    compute(parts="a")
    assert compute()["parts"]["b"]["found"] == "b"
    assert computed == ["a", "b"]
    results = tmp_path / "results.json"
    for damaged in ("[]", "{", json.dumps(settings | {"command": "", "parts": [1]})):
        results.write_text(damaged)
        with pytest.raises(OtherRun, match="steps is 7 there and 8 here"):
            compute(steps=8)
        computed.clear()
        compute()
        assert computed == ["a", "b"]
    results.unlink()
    (tmp_path / "settings.json").write_text(json.dumps(settings | {"steps": 7, "width": 3}))
    with pytest.raises(OtherRun, match="of another program's run: it also has width"):
        compute()
    (tmp_path / "settings.json").write_text('{"entries": {}}')
    with pytest.raises(OtherRun, match="steps is not given there"):
        compute()
