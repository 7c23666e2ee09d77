"""REINFORCE against the formulas in float64, episodes against CartPole's equations, the program."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import policy_gradient
import pytest
from experiments.studies import policy_gradient as study
from flax import nnx

RESULTS = Path(policy_gradient.__file__).parent / "results" / "adaloss"
GRAPH, START = nnx.split(study.Policy(rngs=nnx.Rngs(0)))
START = nnx.as_pure(START)
act = jax.jit(study.act, static_argnums=(0, 3))
value_and_grad = jax.jit(jax.value_and_grad(study.surrogate), static_argnums=1)


def balancing():
    """The weights of a policy that pushes to where the pole leans and falls."""
    params = jax.tree.map(jnp.zeros_like, START)
    kernel = params["hidden"]["kernel"].at[:, 0].set(jnp.array([0.1, 0.3, 3.0, 1.0]))
    params["hidden"]["kernel"] = kernel
    params["logits"]["kernel"] = params["logits"]["kernel"].at[0].set(jnp.array([-1e4, 1e4]))
    return params


def test_episodes_follow_the_equations_until_the_pole_falls():
    seen = act(GRAPH, START, jax.random.key(1), 4)
    assert set(np.unique(seen.rewards)) == {0.0, 1.0}
    for observations, actions, rewards in zip(*seen, strict=True):
        x, v, angle, spin = np.float64(observations[0])
        for t, push in enumerate(np.where(actions, 10.0, -10.0)):
            np.testing.assert_allclose(observations[t], [x, v, angle, spin], rtol=1e-3, atol=1e-4)
            force = (push + 0.05 * spin**2 * np.sin(angle)) / 1.1
            turn = (9.8 * np.sin(angle) - np.cos(angle) * force) / (
                0.5 * (4 / 3 - 0.1 * np.cos(angle) ** 2 / 1.1)
            )
            pull = force - 0.05 * turn * np.cos(angle) / 1.1
            x, v, angle, spin = (
                x + 0.02 * v,
                v + 0.02 * pull,
                angle + 0.02 * spin,
                spin + 0.02 * turn,
            )
            if abs(x) > 2.4 or abs(angle) > np.radians(12):
                break
        assert rewards.sum() == t + 1
        assert rewards[: t + 1].all()


def test_the_surrogate_and_its_gradient_are_reinforce():
    seen = act(GRAPH, START, jax.random.key(2), 4)
    observations, actions, rewards = (np.asarray(x, np.float64) for x in seen)
    value, gradient = 0.0, np.zeros(2)
    hidden = np.tanh(observations @ np.float64(START["hidden"]["kernel"]))
    logits = hidden @ np.float64(START["logits"]["kernel"])
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    lengths = rewards.sum(1).astype(int)
    for e, length in enumerate(lengths):
        for t in range(length):
            to_come = length - t
            baseline = np.mean([max(other - t, 0) for other in lengths])
            advantage = (to_come - baseline) / 500
            action = int(actions[e, t])
            value -= np.log(shares[e, t, action]) * advantage / 4
            gradient -= (np.eye(2)[action] - shares[e, t]) * advantage / 4
    got, grads = value_and_grad(START, GRAPH, seen)
    np.testing.assert_allclose(got, value, rtol=1e-3)
    np.testing.assert_allclose(grads["logits"]["bias"], gradient, rtol=1e-3, atol=1e-6)


def test_where_no_episode_ends_early_the_surrogate_is_zero():
    seen = act(GRAPH, balancing(), jax.random.key(3), 4)
    assert (seen.returns == study.LONGEST).all()
    assert study.surrogate(balancing(), GRAPH, seen) == 0


@pytest.mark.parametrize("loss", ["surrogate", "gap"])
def test_adaloss_is_told_the_loss(loss):
    b0 = np.float32([0.05, 2.0])
    got = study.mean_returns("adaloss", loss, 3.0, b0, np.array([7]), 2, 4)
    assert got.shape == (2, 1, 2)
    for_params, for_updates = jax.random.split(jax.random.key(7))
    params = nnx.as_pure(nnx.state(study.Policy(rngs=nnx.Rngs(for_params))))
    first, second = jax.random.split(for_updates, 2)
    seen = act(GRAPH, params, first, 4)
    surrogate, grads = value_and_grad(params, GRAPH, seen)
    reached = float(seen.returns.mean())
    told = abs(float(surrogate)) if loss == "surrogate" else 1 - reached / 500
    for (before, after), value in zip(got[:, 0], b0, strict=True):
        step = 3.0 / np.sqrt(value**2 + told)
        moved = jax.tree.map(lambda p, g, step=step: p - step * g, params, grads)
        assert before == reached
        assert after == float(act(GRAPH, moved, second, 4).returns.mean())


def test_the_program(tmp_path, capsys, monkeypatch):
    def mean_returns(method, loss, learning_rate, b0, seeds, updates, episodes):
        assert (loss, updates, episodes) == ("surrogate", 20, 2)
        shape = len(b0), len(seeds), updates
        returns = np.broadcast_to(100.0 * b0[:, None, None] + seeds[:, None], shape).copy()
        returns[..., -2:] *= learning_rate
        if method == "sgd_constant":
            returns[0 if learning_rate < 3 else slice(None), 1, 10:] = np.nan
        return returns

    monkeypatch.setattr(study, "mean_returns", mean_returns)
    line = ["--updates", "20", "--episodes", "2", "--seeds", "2", "--lr", "1,2", "--b0", "1,2"]
    line += ["--methods", "adaloss,sgd_constant", "--root", str(tmp_path), "--name", "mine"]
    assert policy_gradient.main(line) == 0
    folder = tmp_path / "mine"
    files = {"policy_gradient.png", "results.json", "settings.json", "table.md"}
    assert {path.name for path in folder.iterdir()} == files
    results = json.loads((folder / "results.json").read_text())
    assert list(results["parts"]) == ["η = 1", "η = 2"]
    measured = results["parts"]["η = 2"]["entries"]["AdaLoss, b0 = 2"]["measured"]
    assert measured["final"]["final"]["by_seed"] == [400, 402]
    assert measured["area"]["final"]["by_seed"] == pytest.approx([220, 221.1])
    table = (folder / "table.md").read_text()
    assert "| 2            | 401 ± 1 |" in table
    assert "| 1            | 201 ± 1 | diverged (1 of 2) |" in table
    assert table == policy_gradient.page(results)
    # A part that is asked for later is added.
    assert policy_gradient.main([*line, "--resume", "--lr", "3"]) == 0
    parts = json.loads((folder / "results.json").read_text())["parts"]
    assert list(parts) == ["η = 1", "η = 2", "η = 3"]
    assert parts["η = 2"] == results["parts"]["η = 2"]
    assert policy_gradient.main([*line, "--resume", "--loss", "gap"]) == 1
    assert "--loss is 'surrogate' there and 'gap' here" in capsys.readouterr().err


def test_without_gymnax_the_extra_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(policy_gradient, "find_spec", lambda name: None)
    assert policy_gradient.main(["--root", str(tmp_path)]) == 2
    expected = "policy_gradient.py: error: gymnax: is not installed; the extra `control` has it\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize("name", ["policy_gradient", "policy_gradient_gap"])
def test_the_tables_in_the_repository_are_those_of_the_program(name):
    results = json.loads((RESULTS / name / "results.json").read_text())
    assert policy_gradient.page(results) == (RESULTS / name / "table.md").read_text()
