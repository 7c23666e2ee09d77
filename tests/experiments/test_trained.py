"""The programs that look at trained weights, at tiny sizes, against what can be computed anew."""

import json
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.image
import noisy_weights
import numpy as np
import optax
import pytest
import sequential
import sharpness
from experiments.optimizers import OPTIMIZERS
from experiments.running import trained
from experiments.running.trained import NAMED
from experiments.schedules import Stages
from experiments.studies.sequential import split_classes
from experiments.training import devices, init_weights, train

TINY = ["--network", "softmax", "--epochs", "2", "--seeds", "2"]


def ignore(step, loss):
    pass


def runs_of(program, *flags):
    """The runs of a program's command line, and its data set."""
    parser = program.make_parser()
    args = parser.parse_args(["--network", "softmax", "--epochs", "2", *flags])
    dataset = trained.dataset_of(args, parser)
    return trained.runs_of(args, parser, dataset), dataset


@pytest.mark.parametrize(
    ("program", "optimizer", "flags", "gradients", "key", "form"),
    [
        (sharpness, "sam", "--examples 50 --iterations 5", 36, "eigenvalue", ".3g"),
        (noisy_weights, "slrla_released", "--sizes 0,3 --draws 2", 18, "accuracy_3", ".2f"),
        (sequential, "sgd", "", 30, "average_accuracy", ".2f"),
    ],
)
def test_a_program(program, optimizer, flags, gradients, key, form, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    devices.compile_steps.cache_clear()
    assert program.main([*TINY, "--optimizers", optimizer, *flags.split()]) == 0
    # For all seeds, and all tasks, one compiled step.
    assert devices.compile_steps.cache_info().misses == 1
    assert devices.compile_steps.cache_info().hits == (9 if program is sequential else 1)

    name = program.__name__
    folder = tmp_path / "runs" / f"{name}-digits-1"
    files = {"results.json", "settings.json", "table.txt", f"{name}.png"}
    assert {file.name for file in folder.iterdir()} == files
    records = json.loads((folder / "results.json").read_text())
    assert [(r["optimizer"], r["seed"], r["gradients"]) for r in records] == [
        (optimizer, seed, gradients) for seed in (0, 1)
    ]
    if program is noisy_weights:
        for record in records:
            np.testing.assert_allclose(record["accuracy_0"], record["test_accuracy"], atol=1e-6)
            assert record["accuracy_3"] < record["accuracy_0"] - 0.05
            assert np.shape(record["noisy"]) == (2, 2)

    table = (folder / "table.txt").read_text()
    assert "…" not in table
    assert max(map(len, table.splitlines()[1:])) <= 80
    values = [r[key] * (1 if program is sharpness else 100) for r in records]
    assert f"{np.mean(values):{form}}" in table
    assert f"± {np.std(values, ddof=1):{form}}" in table
    shown = capsys.readouterr().out
    for line in table.splitlines():
        assert line.strip() in shown

    picture = folder / f"{name}.png"
    assert picture.stat().st_size < 300_000
    assert matplotlib.image.imread(picture).std() > 0.05


def test_the_sharpness_is_that_of_the_explicit_hessian(monkeypatch):
    runs, dataset = runs_of(sharpness, "--optimizers", "sgd")
    loss = sharpness.batch_loss(runs["sgd"], 40)
    params, stats = init_weights(runs["sgd"].model, 0)
    untrained = trained.Trained(params, stats, {})
    monkeypatch.setattr(trained, "train_one", lambda *args, **options: untrained)
    record = sharpness.measure(loss, 0.05, 30, runs["sgd"], 0, ignore)

    x = dataset.standardise(dataset.train_images[:40]).reshape(40, -1).astype(np.float64)
    x = np.append(x, np.ones((40, 1)), axis=1)
    weights = np.vstack([params["head"]["kernel"], params["head"]["bias"]]).astype(np.float64)
    logits = x @ weights
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    hessian = sum(
        np.kron(np.diag(q) - np.outer(q, q), np.outer(z, z)) for q, z in zip(p, x, strict=True)
    )
    np.testing.assert_allclose(
        record["eigenvalue"], np.linalg.eigvalsh(hessian / 40)[-1], rtol=1e-3
    )
    here = -np.log(p[np.arange(40), dataset.train_labels[:40]]).mean()
    np.testing.assert_allclose(record["loss"], here, rtol=1e-5)
    # The problem is convex: the rise is at least that of the step along the gradient's plane.
    gradient = x.T @ (p - np.eye(10)[dataset.train_labels[:40]]) / 40
    assert record["rise"] >= 0.05 * np.linalg.norm(gradient)
    assert record["rise"] <= 0.05 * np.linalg.norm(gradient) + 0.05**2 * record["eigenvalue"]


def test_a_task_goes_on_from_the_weights_of_the_last():
    parser = sequential.make_parser()
    flags = "--network softmax --epochs 2 --optimizers slrla_released --batch_size 20"
    args = parser.parse_args(flags.split())
    dataset = trained.dataset_of(args, parser)
    tasks = sequential.of_one_size(split_classes(dataset))
    # As many as the smallest of the tasks has.
    sizes = [np.isin(dataset.train_labels, task.classes).sum() for task in tasks]
    assert {task.dataset.train_size for task in tasks} == {min(sizes)}
    assert len({task.dataset.test_size for task in tasks}) == 1

    run = sequential.runs_of(args, parser, tasks)["slrla_released"]
    learner = sequential.Learner(tasks[:2], sequential.logits_of(run.model))
    matrix = learner.measure(run, 0, ignore)["matrix"]
    first, second = (replace(run, dataset=task.dataset) for task in tasks[:2])
    weights = sequential.Weights(*init_weights(run.model, 0)).told(tasks[0])
    end = trained.train_one(first, 0, start=partial(sequential.going_on, weights))
    head, before = end.params["network"]["head"], weights.params["network"]["head"]
    assert learner.accuracy(sequential.Weights(end.params, end.stats), tasks[0]) > 0.9
    # The classes of the other tasks are out of the question: only decay moves them.
    moved = np.abs(head["kernel"] - before["kernel"]).max(axis=0)
    assert moved[:2].min() > 10 * moved[2:].max()

    weights = sequential.Weights(end.params, end.stats).told(tasks[1])
    expected = learner.accuracy(weights, tasks[1])
    assert matrix[0] == [learner.accuracy(weights, tasks[0]), expected]
    epochs = list(train(second, [0], start=partial(sequential.going_on, weights)))
    np.testing.assert_allclose(epochs[0].record["test_accuracy"], expected, atol=1e-6)
    end = epochs[-1].state
    last = sequential.Weights(run.slow_params(end.opt_state, end.params), end.stats)
    assert matrix[1] == [learner.accuracy(last, task) for task in tasks[:2]]
    x = dataset.standardise(tasks[1].dataset.test_images).reshape(-1, 64)
    logits = x @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
    answers = 2 + logits[:, 2:4].argmax(axis=1)
    np.testing.assert_allclose(np.mean(answers == tasks[1].dataset.test_labels), expected)


def test_equal_gradients():
    flags = ("--optimizers", "sgd,sam,lookbehind_sam", "--epochs", "7", "--batch_size", "100")
    runs, _ = runs_of(sharpness, *flags, "--equal", "gradients")
    assert [run.steps for run in runs.values()] == [42, 21, 14]
    assert [run.epochs for run in runs.values()] == [7, 4, 3]
    runs, _ = runs_of(sharpness, *flags)
    assert {run.steps for run in runs.values()} == {42}


@pytest.mark.parametrize("name", NAMED)
def test_each_optimizer_by_name(name):
    """It goes down as its learning rate says, and takes as many gradients as it says."""
    optimizer, config, asked = OPTIMIZERS[name], NAMED[name], 0
    grad = jax.grad(lambda p: jnp.sum((p["kernel"] - 1) ** 2))

    def grad_fn(params, _):
        nonlocal asked
        asked += 1
        return grad(params)

    ways = []
    for factor in (1.0, 1e-3):
        stages = Stages((factor * config.learning_rate,), (100,))
        tx = optax.with_extra_args_support(optimizer.make(config, stages))
        params, asked = {"kernel": jnp.full((2, 2), 3.0)}, 0
        state = tx.init(params)
        for step in range(3):
            updates, state = tx.update(
                grad(params), state, params, value=jnp.float32(1), grad_fn=grad_fn
            )
            params = optax.apply_updates(params, updates)
            assert asked == (step + 1) * (optimizer.gradients(config) - 1)
        if optimizer.slow_params is not None:
            params = optimizer.slow_params(state, params)
        ways.append(3 - float(params["kernel"][0, 0]))
    if optimizer.slow_params is None:
        assert ways[0] > 0
        assert abs(ways[1]) < ways[0] / 10
    else:  # The first sync is after five steps.
        assert ways == [0, 0]


@pytest.mark.parametrize(
    ("program", "flags", "message"),
    [
        (sharpness, "--rho 0", "--rho: must be a positive number, got '0'"),
        (sharpness, "--optimizers foo", "--optimizers: must be different ones of sgd, lookahead"),
        (sharpness, "--equal steps", "--equal: invalid choice: 'steps'"),
        (sharpness, "--epochs 1 --batch_size 600 --equal gradients", "--epochs: 1 with 1"),
        (sharpness, "--batch_size 601", "--batch_size: there are only 600 training images"),
        (sharpness, "--train_images 3", "--train_images: cannot train on 3 images of digits"),
        (sharpness, "--data_path /nowhere", "--data_path: the digits come with scikit-learn"),
        (sharpness, "--network vgg16", "--network: VGG-16: image_shape: must be at least 32"),
        (sharpness, "--name a/b", "--name: must be the name of a folder"),
        (noisy_weights, "--sizes 0,-1", "--sizes: must be 0 or more, got '-1'"),
        (noisy_weights, "--draws 0", "--draws: must be a whole number, at least 1, got '0'"),
        (sequential, "--classes_per_task 3", "--classes_per_task: must divide the 10 classes"),
        (sequential, "--classes_per_task 10", "into two tasks or more, got 10"),
        (sequential, "--batch_size 500", "--batch_size: there are only 118 training images"),
    ],
)
def test_wrong_flags(program, flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        program.main(flags.split())
    assert exit_.value.code == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert list(tmp_path.iterdir()) == []


def test_divergence_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def diverges(*args, **options):
        raise trained.Diverged("SGD diverged, from seed 0 in epoch 1 (step 2)")

    monkeypatch.setattr(trained, "train_one", diverges)
    assert sharpness.main(TINY) == 1
    assert capsys.readouterr().err == (
        "sharpness.py: SGD diverged, from seed 0 in epoch 1 (step 2)\n"
    )
