"""The programs that look at trained weights, at tiny sizes, against direct computations."""

import json
import re
import shlex
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import matplotlib.image
import noisy_weights
import numpy as np
import optax
import pytest
import sequential
import sharpness
from experiments import devices, report, study, sweep
from experiments.config import Config
from experiments.configs.lookbehind import CONFIGS as NAMED
from experiments.optimizers import OPTIMIZERS
from experiments.run import evaluated_weights
from experiments.schedules import Stages
from experiments.steps import init_state, init_weights
from experiments.train import Epoch, train

RESULTS = Path(sharpness.__file__).parent / "results" / "lookbehind"
# The program of each folder there.
MEASURED = {
    "sharpness": sharpness,
    "sharpness_sgd_45": sharpness,
    "noisy_weights": noisy_weights,
    "noisy_weights_sgd_45": noisy_weights,
    "sequential": sequential,
    "sequential_sgd_30": sequential,
}
TINY = ["--network", "softmax", "--epochs", "2", "--seeds", "2"]


def sweep_of(program, *flags, monkeypatch):
    """What a program's command line asks for."""
    asked = []
    monkeypatch.setattr(sweep, "run", lambda asked_for: asked.append(asked_for) or 0)
    assert program.main(["--network", "softmax", "--epochs", "2", *flags]) == 0
    return asked[0]


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
    files = {"metrics.jsonl", "results.json", "settings.json", "table.md", f"{name}.png"}
    assert {file.name for file in folder.iterdir()} == files
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    records = [record for record in map(json.loads, lines) if key in record]
    assert [(r["optimizer"], r["seed"], r["gradients"]) for r in records] == [
        (OPTIMIZERS[optimizer].label, seed, gradients) for seed in (0, 1)
    ]
    if program is noisy_weights:
        for record in records:
            np.testing.assert_allclose(record["accuracy_0"], record["test_accuracy"], atol=1e-6)
            assert record["accuracy_3"] < record["accuracy_0"] - 0.05
            assert np.shape(record["noisy"]) == (2, 2)

    page = (folder / "table.md").read_text()
    table = [line for line in page.splitlines() if line.startswith("|")]
    assert max(map(len, table)) <= 80
    values = [r[key] * (1 if program is sharpness else 100) for r in records]
    assert f"{np.mean(values):{form}} ± {np.std(values, ddof=1):{form}}" in table[-1]
    shown = capsys.readouterr().out
    for line in table:
        assert line in shown

    picture = folder / f"{name}.png"
    assert picture.stat().st_size < 300_000
    assert matplotlib.image.imread(picture).std() > 0.05


def test_the_sharpness_is_that_of_the_explicit_hessian(monkeypatch):
    asked = sweep_of(sharpness, "--optimizers", "sgd", monkeypatch=monkeypatch)
    (run,) = sweep.build(asked).values()
    dataset = run.dataset
    state = init_state(run.model, run.tx, 0)
    params = state.params
    record = sharpness.measure(
        run, 0, Epoch({}, {}, state), radius=0.05, examples=40, iterations=30
    )

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


def test_a_task_begins_with_the_weights_of_the_last(monkeypatch):
    flags = ("--optimizers", "slrla_released", "--batch_size", "20")
    asked = sweep_of(sequential, *flags, monkeypatch=monkeypatch)
    (run,) = sweep.build(asked).values()
    dataset, tasks = run.dataset, run.tasks
    # As many as the smallest of the tasks has.
    sizes = [np.isin(dataset.train_labels, task.classes).sum() for task in tasks]
    assert {task.dataset.train_size for task in tasks} == {min(sizes)}
    assert len({task.dataset.test_size for task in tasks}) == 1

    epochs = list(sequential.train_tasks(run, [0], stop=None, on_step=lambda step, loss: None))
    last = epochs[-1].record
    assert [e.record["epoch"] for e in epochs] == list(range(11))
    assert [e.record["task"] for e in epochs] == [1, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert (last["steps"], last["gradients"]) == (run.steps, run.steps)
    matrix = last["matrix"]
    logits = sequential.logits_of(run.model)

    def accuracy(weights, task):
        return sequential.accuracy(logits, weights, task)

    # By hand: two tasks.
    first, second = (run.of(task) for task in tasks[:2])
    weights = sequential.Weights(*init_weights(run.model, 0)).told(tasks[0])
    end = list(train(first, [0], start=partial(sequential.resumed, weights)))[-1].state
    learnt = sequential.Weights(*evaluated_weights(run, end))
    head, before = learnt.params["network"]["head"], weights.params["network"]["head"]
    assert accuracy(learnt, tasks[0]) > 0.9
    # The classes of the other tasks are out of the question: only decay moves them.
    moved = np.abs(head["kernel"] - before["kernel"]).max(axis=0)
    assert moved[:2].min() > 10 * moved[2:].max()
    assert matrix[0] == [accuracy(learnt, task) for task in tasks]

    told = learnt.told(tasks[1])
    x = dataset.standardise(tasks[1].dataset.test_images).reshape(-1, 64)
    answers = np.asarray(x @ np.asarray(head["kernel"]) + np.asarray(head["bias"]))
    answers = 2 + answers[:, 2:4].argmax(axis=1)
    expected = accuracy(told, tasks[1])
    np.testing.assert_allclose(np.mean(answers == tasks[1].dataset.test_labels), expected)
    epochs = list(train(second, [0], start=partial(sequential.resumed, told)))
    np.testing.assert_allclose(epochs[0].record["test_accuracy"], expected, atol=1e-6)
    learnt = sequential.Weights(*evaluated_weights(run, epochs[-1].state))
    assert matrix[1] == [accuracy(learnt, task) for task in tasks]
    diagonal = np.diag(np.array(matrix)).mean()
    np.testing.assert_allclose(last["learning_accuracy"], diagonal)
    np.testing.assert_allclose(last["average_accuracy"], np.mean(matrix[-1]))


def test_equal_gradients(monkeypatch):
    flags = ("--optimizers", "sgd,sam,lookbehind_sam", "--epochs", "7", "--batch_size", "100")
    asked = sweep_of(sharpness, *flags, "--equal", "gradients", monkeypatch=monkeypatch)
    runs = sweep.build(asked).values()
    assert [run.steps for run in runs] == [42, 21, 14]
    assert [run.epochs for run in runs] == [7, 4, 3]
    runs = sweep.build(sweep_of(sharpness, *flags, monkeypatch=monkeypatch)).values()
    assert {run.steps for run in runs} == {42}


@pytest.mark.parametrize(
    ("program", "flag"),
    [
        (sharpness, "--rho 0.1"),
        (sharpness, "--examples 100"),
        (sharpness, "--iterations 3"),
        (noisy_weights, "--sizes 0,1"),
        (noisy_weights, "--draws 2"),
        (sequential, "--classes_per_task 5"),
    ],
)
def test_a_measurement_is_part_of_what_a_run_is_compared_by(
    program, flag, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    flags = [*TINY, "--optimizers", "sgd", "--name", "mine"]
    assert program.main(flags) == 0
    assert program.main([*flags, "--resume"]) == 0
    capsys.readouterr()
    assert program.main([*flags, *flag.split(), "--resume"]) == 1
    said = capsys.readouterr().err
    assert f"is of another run: {flag.split()[0]} is " in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("program", [sharpness, noisy_weights, sequential])
def test_what_is_recorded_of_an_optimizer_is_its_own(program, monkeypatch):
    """A setting of the measurement, as `--rho`, does not take the place of the optimizer's."""
    asked = sweep_of(program, "--optimizers", "asam,lookbehind_sam", monkeypatch=monkeypatch)
    runs = sweep.build(asked)
    for entry in asked.entries:
        recorded = sweep.fingerprint(asked, entry, runs[entry.label])
        assert recorded.items() >= entry.config.as_json().items()
        assert recorded.keys() >= asked.further.keys()


@pytest.mark.parametrize("program", [sharpness, noisy_weights, sequential])
def test_a_first_optimizer_that_diverges_does_not_end_the_others(
    program, tmp_path, monkeypatch, capsys
):
    """Where it is the only one, there is neither a table nor a picture."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(NAMED, "sgd", replace(NAMED["sgd"], learning_rate=1e30))

    def run(optimizers):
        assert program.main([*TINY, "--optimizers", optimizers, "--name", optimizers]) == 1
        captured = capsys.readouterr()
        assert captured.err == ""
        for seed in (0, 1):
            assert f"SGD diverged, from seed {seed} in epoch 1 (step " in captured.out
        return tmp_path / "runs" / optimizers

    assert {path.name for path in run("sgd").iterdir()} == {"metrics.jsonl", "settings.json"}
    folder = run("sgd,sam")
    page = (folder / "table.md").read_text()
    table = [line for line in page.splitlines() if line.startswith("|")]
    assert [line.split()[1] for line in table[2:]] == ["SAM"]
    for seed in (0, 1):
        assert f"SGD diverged, from seed {seed} in epoch 1 (step " in page
    assert (folder / f"{program.__name__}.png").exists()


@pytest.mark.parametrize("folder", MEASURED)
def test_the_pages_in_the_repository_have_the_measured_numbers(folder, monkeypatch, tmp_path):
    """Its page, and the README's row of each optimizer, are those of the numbers beside it."""
    program, asked_for = MEASURED[folder], {}
    monkeypatch.chdir(tmp_path)
    build = study.sweep_of

    def sweep_of(args, parser, columns, note, *others, **options):
        asked_for.update(columns=columns, note=note)
        return build(args, parser, columns, note, *others, **options)

    def run(asked):
        asked_for.update(sweep=asked)
        return 0

    monkeypatch.setattr(study, "sweep_of", sweep_of)
    monkeypatch.setattr(sweep, "run", run)
    summary = json.loads((RESULTS / folder / "results.json").read_text())
    words = shlex.split(summary["command"])
    assert words[:2] == ["python", f"examples/{program.__name__}.py"]
    assert program.main(words[2:]) == 0
    columns, asked = asked_for["columns"], asked_for["sweep"]
    assert summary["note"] == asked_for["note"]
    assert summary["seeds"] == list(asked.seeds)
    page = (RESULTS / folder / "table.md").read_text()
    assert page == report.page(summary, columns, [f"{program.__name__}.png"])
    assert (RESULTS / folder / f"{program.__name__}.png").stat().st_size < 300_000

    runs = sweep.build(asked)
    assert list(summary["entries"]) == list(runs)
    readme = (RESULTS / "README.md").read_text()
    rows = [line for line in readme.splitlines() if line.startswith("|")]
    for entry in asked.entries:
        got = summary["entries"][entry.label]
        # Settings that are newer than the results have their defaults.
        recorded = {**Config().as_json(), **got["config"]}
        assert recorded == sweep.fingerprint(asked, entry, runs[entry.label])
        run_ = runs[entry.label]
        assert got["gradients"] == run_.steps * run_.gradients_per_step
        told = [str(got["gradients"])]
        for column in columns:
            final = got["measured"][column.measure]["final"]
            values = final["by_seed"]
            assert final["mean"] == pytest.approx(np.mean(values), abs=2e-5)
            assert final["std"] == pytest.approx(np.std(values, ddof=1), abs=2e-5)
            form = ".2f" if column.measure == "eigenvalue" else column.form
            told.append(f"{final['mean']:{form}} ± {final['std']:{form}}")
        name = f"{entry.label}, equal gradients" if "_sgd_" in folder else entry.label
        row = [row for row in rows if row.startswith(f"| {name} |") and told[-1] in row]
        assert len(row) == 1
        assert [cell for cell in row[0].split(" | ") if cell in told] == told[:-1]
        assert row[0].endswith(f" | {told[-1]} |")


def test_the_eigenvalues_in_the_repository_are_as_accurate_as_is_said():
    text = " ".join((RESULTS / "README.md").read_text().split())
    told = float(re.search(r"residuals of the Lanczos method are below (\S+),", text)[1])
    for folder in ("sharpness", "sharpness_sgd_45"):
        entries = json.loads((RESULTS / folder / "results.json").read_text())["entries"]
        for entry in entries.values():
            assert max(entry["measured"]["residual"]["final"]["by_seed"]) < told


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
        (
            sharpness,
            "--optimizers foo",
            "--optimizers: must be different names among sgd",
        ),
        (sharpness, "--equal steps", "--equal: invalid choice: 'steps'"),
        (sharpness, "--epochs 1 --batch_size 600 --equal gradients", "--epochs: 1 of 1 steps"),
        (sharpness, "--batch_size 601", "--batch_size: must be from 1 to 600, the number"),
        (sharpness, "--train_images 3", "--train_images: cannot train on 3 images of digits"),
        (sharpness, "--data_path /nowhere", "--data_path: the digits come with scikit-learn"),
        (sharpness, "--network vgg16", "--network: VGG-16: image_shape: must be at least 32"),
        (sharpness, "--name a/b", "--name: must be the name of a folder"),
        (noisy_weights, "--sizes 0,-1", "--sizes: must be 0 or more, got '-1'"),
        (noisy_weights, "--draws 0", "--draws: must be a whole number, at least 1, got '0'"),
        (sequential, "--classes_per_task 3", "--classes_per_task: must divide the 10 classes"),
        (sequential, "--classes_per_task 10", "into two tasks or more, got 10"),
        (sequential, "--batch_size 500", "--batch_size: must be from 1 to 118, the number"),
    ],
)
def test_wrong_flags(program, flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    try:
        code = program.main(flags.split())
    except SystemExit as exit_:
        code = exit_.code
    assert code == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("program", [sharpness, sequential])
def test_a_stream_cannot_be_measured(program, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    stream = SimpleNamespace(name="imagenet2012")
    monkeypatch.setattr("experiments.data.load", lambda name, folder: stream)
    assert program.main(["--dataset", "imagenet"]) == 2
    said = capsys.readouterr().err
    assert "--dataset: must be one that fits into memory, got imagenet2012" in said
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
