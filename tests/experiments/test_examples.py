"""The comparison in `examples/`, at tiny sizes, as a user runs it and from within."""

import dataclasses
import functools
import importlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import compare
import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import optax
import pytest
from experiments import data, training
from experiments import models as networks
from experiments.config import Config
from experiments.optimizers import OPTIMIZERS, find
from experiments.schedules import Stages, stage_lengths, stages_of

import slrla_jax

EXAMPLES = Path(compare.__file__).parent
PACKAGE = Path(slrla_jax.__file__).parent.parent
PROGRAMS = (
    *("ablations", "compare", "example_cifar", "main"),
    *("noisy_weights", "reproduce", "sequential", "sharpness"),
)
TINY = ["--network", "softmax", "--epochs", "2", "--seeds", "2"]


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def small():
    """A hundred of the digits, half of them to train on."""
    whole = data.load("digits")
    return dataclasses.replace(
        whole,
        train_images=whole.train_images[:50],
        train_labels=whole.train_labels[:50],
        test_images=whole.test_images[:50],
        test_labels=whole.test_labels[:50],
    )


def train(dataset, name, *, seeds, together=False, network=None, epochs=2, **settings):
    """Two stages of two cycles of three steps."""
    config = Config(
        **{"sync_period": 3, "slow_step_size": 0.5, "beta": 0.1, "milestones": (0.5,)} | settings
    )
    stages = Stages((0.05, 0.01), (6, 6))
    optimizer = OPTIMIZERS[name]
    make = functools.partial(
        network or networks.SoftmaxRegression, dataset.image_shape, dataset.classes
    )
    run = training.Run(
        label=optimizer.label,
        model=training.Model(make, dataset),
        dataset=dataset,
        tx=optimizer.make(config, stages),
        slow_params=optimizer.slow_params,
        epochs=epochs,
        steps=stages.steps,
        batch_size=10,
        devices=jax.devices()[:1],
    )
    groups = [seeds] if together else [[seed] for seed in seeds]
    return [epoch.record for group in groups for epoch in training.train(run, group)]


def test_a_run_from_the_command_line(tmp_path):
    command = [sys.executable, EXAMPLES / "compare.py", "--epochs", "2", "--seeds", "2"]
    paths = [str(PACKAGE), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [*command, "--name", "tiny"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "tiny"
    assert {file.name for file in folder.iterdir()} == {
        "curves.png",
        "metrics.jsonl",
        "settings.json",
        "table.txt",
    }

    records = metrics(folder)
    assert [(r["optimizer"], r["seed"], r["epoch"]) for r in records] == [
        (optimizer, seed, epoch)
        for optimizer in ("sgd", "sla", "slrla")
        for seed in (0, 1)
        for epoch in (0, 1, 2)
    ]
    # Nine batches an epoch; the last epoch ends with the fourth cycle of five steps.
    assert [r["gradients"] for r in records] == 6 * [0, 9, 20]
    for seed in (0, 1):
        starts = [r for r in records if r["epoch"] == 0 and r["seed"] == seed]
        assert len({(r["train_loss"], r["test_loss"], r["test_accuracy"]) for r in starts}) == 1
    assert all(
        r["fast_test_accuracy"] == r["test_accuracy"]
        for r in records
        if r["epoch"] == 2 and r["optimizer"] != "sgd"
    )
    assert any(
        r["fast_test_accuracy"] != r["test_accuracy"]
        for r in records
        if r["epoch"] == 1 and r["optimizer"] != "sgd"
    )

    settings = json.loads((folder / "settings.json").read_text())
    assert settings["gradients_per_run"] == 20
    assert [stage["last_step"] for stage in settings["stages"]] == [5, 10, 15, 20]
    assert settings["flags"]["alpha"] == 0.8
    assert settings["versions"]["slrla_jax"] == slrla_jax.__version__

    picture = folder / "curves.png"
    assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert picture.stat().st_size < 300_000
    assert matplotlib.image.imread(picture).std() > 0.05

    table = (folder / "table.txt").read_text()
    assert max(map(len, table.splitlines())) <= 80
    assert "…" not in table
    final = [100 * r["test_accuracy"] for r in records if r["optimizer"] == "slrla"][2::3]
    assert f"{np.mean(final):.2f} ± {np.std(final, ddof=1):.2f}" in table
    for line in table.splitlines():
        assert line.strip() in done.stdout
    assert done.stdout.rstrip().endswith(str(folder))


def test_two_runs_are_the_same_in_two_folders(here):
    for _ in range(2):
        assert compare.main([*TINY, "--optimizers", "sgd,slrla"]) == 0
    assert {folder.name for folder in (here / "runs").iterdir()} == {"digits-1", "digits-2"}
    assert metrics(here / "runs/digits-1") == metrics(here / "runs/digits-2")


def test_a_run_depends_on_its_own_seed_only(small):
    alone = train(small, "slrla", seeds=[1])
    among = train(small, "slrla", seeds=[0, 1])
    assert alone == [record for record in among if record["seed"] == 1]
    assert alone[-1]["train_loss"] != among[2]["train_loss"]


def test_seeds_together_are_the_same_runs(small):
    def resnet(*args, **kwargs):
        return networks.ResNet(*args, **kwargs, widths=(4,))

    def by_run(records):
        return sorted(records, key=lambda record: (record["seed"], record["epoch"]))

    one, together = (
        by_run(train(small, "slrla", seeds=[3, 4], network=resnet, together=together))
        for together in (False, True)
    )
    assert one[2]["train_loss"] < one[0]["train_loss"]
    for a, b in zip(one, together, strict=True):
        assert (a["seed"], a["epoch"], a["gradients"]) == (b["seed"], b["epoch"], b["gradients"])
        np.testing.assert_allclose(a["train_loss"], b["train_loss"], rtol=1e-4)
        np.testing.assert_allclose(a["test_loss"], b["test_loss"], rtol=1e-4)
        # Of the 50 images, one on the border may fall on either side.
        assert abs(a["test_accuracy"] - b["test_accuracy"]) <= 1.5 / 50
        assert abs(a["fast_test_accuracy"] - b["fast_test_accuracy"]) <= 1.5 / 50


def test_what_the_optimizers_have_in_common(small):
    losses = {
        (optimizer, alpha, beta): [
            record["train_loss"]
            for record in train(small, optimizer, seeds=[0], slow_step_size=alpha, beta=beta)
        ]
        for optimizer, alpha, beta in [
            ("sgd", 0.5, 0.1),
            ("sla", 1.0, 0.1),
            ("sla", 0.5, 0.1),
            ("slrla", 0.5, 0.0),
            ("slrla", 0.5, 0.1),
        ]
    }
    # α = 1 and β = 0 take the step back and the regulariser away. A step back is seen
    # from the start: the slow weights lag behind.
    sla = losses["sla", 0.5, 0.1]
    np.testing.assert_allclose(losses["sla", 1.0, 0.1][-1], losses["sgd", 0.5, 0.1][-1], rtol=1e-5)
    np.testing.assert_allclose(losses["slrla", 0.5, 0.0], sla, rtol=1e-5)
    assert sla[-1] > 1.01 * losses["sgd", 0.5, 0.1][-1]
    assert losses["slrla", 0.5, 0.1][-1] > 1.001 * sla[-1]


@pytest.mark.parametrize(
    ("steps", "k", "fractions", "lengths"),
    [
        (270, 5, (0.3, 0.6, 0.8), (80, 80, 55, 55)),
        (18, 5, (0.3, 0.6, 0.8), (5, 5, 5, 5)),
        (21, 5, (0.5,), (10, 15)),
        (7, 1, (0.5,), (4, 3)),
    ],
)
def test_stages_are_whole_cycles(steps, k, fractions, lengths):
    config = Config(milestones=fractions, stages_in="steps", whole_cycles=True, sync_period=k)
    stages = stages_of(config, steps, 9)
    assert stages.lengths == lengths
    assert steps <= stages.steps < steps + k
    np.testing.assert_allclose(stages.learning_rates, 0.1 * 0.2 ** np.arange(len(lengths)))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_row_of_the_registry(name):
    """It is built with the default settings, finds its name again, and steps down a slope."""
    assert find(name.upper().replace("_", "-")) == name
    tx = OPTIMIZERS[name].make(Config(milestones=(0.5,)), Stages((0.1, 0.02), (10, 10)))
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    updates, _ = optax.with_extra_args_support(tx).update(
        params, tx.init(params), params, value=1.0, grad_fn=lambda p, i: p
    )
    assert all((u < 0).all() for u in jax.tree.leaves(updates))


def test_a_short_run_has_fewer_stages(here, capsys):
    """Nine steps are two cycles, of the four stages that are the default."""
    assert compare.main([*TINY, "--epochs", "1", "--optimizers", "slrla"]) == 0
    assert "\nlearning rate 0.1 to step 5, 0.02 to 10\n" in capsys.readouterr().out
    settings = json.loads((here / "runs/digits-1/settings.json").read_text())
    assert settings["config"]["milestones"] == [0.3]


def test_too_many_stages():
    with pytest.raises(ValueError, match="stage 2 of 4 has no cycle of 5 steps in 9 steps"):
        stage_lengths(9, (0.3, 0.6, 0.8), sync_periods=(5,) * 4)


def error_line(flags, capsys):
    """The one line that is printed where flags are wrong."""
    with pytest.raises(SystemExit) as exit_:
        compare.main(flags)
    assert exit_.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--alpha 1.5", "--alpha: must be more than 0 and at most 1, got '1.5'"),
        ("--alpha nan", "--alpha: must be"),
        ("--k 0", "--k: must be a whole number, at least 1, got '0'"),
        ("--k 2.5", "--k: must be a whole number"),
        ("--beta -1", "--beta: must be 0 or more"),
        ("--beta inf", "--beta: must be 0 or more"),
        ("--lr 0", "--lr: must be a positive number"),
        ("--epochs 0", "--epochs: must be"),
        ("--epochs many", "--epochs: must be"),
        ("--seeds 0", "--seeds: must be"),
        ("--optimizers foo", "--optimizers: must be different ones of sgd, sla, slrla"),
        ("--optimizers sgd,sgd", "--optimizers: must be different ones"),
        ("--stages 0.9,0.3", "--stages: must be growing numbers between 0 and 1"),
        ("--stages 0.5,1", "--stages: must be growing"),
        ("--stages nan", "--stages: must be growing"),
        ("--stages half", "--stages: must be growing"),
        (
            "--epochs 1 --stages 0.3,0.6,0.8",
            "--stages: stage 2 of 4 has no cycle of 5 steps in 9 steps",
        ),
        ("--batch_size 601", "--batch_size: there are only 600 training images"),
        ("--dataset nope", "--dataset: invalid choice"),
        ("--network nope", "--network: invalid choice"),
        ("--network VGG-16", "--network: VGG-16: image_shape: must be at least 32 pixels"),
        ("--data_path /nowhere", "--data_path: the digits come with scikit-learn"),
        ("--dataset mnist --data_path /nowhere", "--data_path: there is no folder /nowhere"),
        ("--name ../elsewhere", "--name: must be the name of a folder"),
    ],
)
def test_wrong_flags(here, capsys, flags, message):
    assert message in error_line(flags.split(), capsys)
    assert list(here.iterdir()) == []


def test_a_folder_is_not_overwritten(here, capsys):
    (here / "runs/mine").mkdir(parents=True)
    line = error_line([*TINY, "--name", "mine"], capsys)
    assert "--name: cannot make runs/mine: File exists" in line
    assert list((here / "runs/mine").iterdir()) == []


def test_help_names_every_flag(capsys):
    with pytest.raises(SystemExit) as exit_:
        compare.main(["--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    for flag in vars(compare.make_parser().parse_args([])):
        assert f"--{flag}" in text


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_in_ascii(program, monkeypatch):
    """As with `PYTHONIOENCODING=ascii`: what the encoding has no character for is escaped."""
    text = importlib.import_module(program).make_parser().format_help()
    screen = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", screen)
    with pytest.raises(SystemExit) as exit_:
        importlib.import_module(program).main(["--help"])
    assert exit_.value.code == 0
    screen.flush()
    assert screen.buffer.getvalue() == text.encode("ascii", "backslashreplace")


@pytest.mark.parametrize(
    ("line", "table"),
    [
        ("compare.py --network softmax --epochs 2 --seeds 2", "digits-1/table.txt"),
        (
            "reproduce.py digits_softmax --seeds 2 --optimizers SGD -- --tr_epochs 4",
            "results/digits_softmax/table.md",
        ),
        (
            "sharpness.py --network softmax --epochs 2 --seeds 2 --optimizers sgd --iterations 5",
            "sharpness-digits-1/table.txt",
        ),
    ],
)
def test_a_run_in_an_ascii_locale(tmp_path, line, table):
    """The screen gets escapes where it has no ±; the files are in UTF-8 anyway."""
    program, *flags = line.split()
    ascii_ = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, EXAMPLES / program, *flags],
        cwd=tmp_path,
        env={**os.environ, **ascii_, "PYTHONPATH": str(PACKAGE), "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert r"\xb1" in done.stdout
    assert "±" in (tmp_path / "runs" / table).read_text(encoding="utf-8")


def test_divergence_is_one_line(here, capsys):
    assert compare.main([*TINY, "--lr", "1e30"]) == 1
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "SGD diverged, from seed 0 in epoch" in captured.err


def test_an_interrupt_keeps_what_there_is(here, capsys, monkeypatch):
    def interrupted(*args, **kwargs):
        record = {"seed": 0, "epoch": 0, "gradients": 0, "train_loss": 2.3, "test_accuracy": 0.1}
        yield training.Epoch(record, {}, None)
        raise KeyboardInterrupt

    monkeypatch.setattr(compare, "train", interrupted)
    assert compare.main(TINY) == 130
    captured = capsys.readouterr()
    assert captured.err == "compare.py: interrupted\n"
    assert "runs/digits-1/metrics.jsonl" in captured.out
    assert len(metrics(here / "runs/digits-1")) == 1
