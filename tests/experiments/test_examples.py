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
from error_lines import error_line
from experiments import data, names, report, sweep
from experiments import models as networks
from experiments import train as loop
from experiments.config import Config
from experiments.optimizers import OPTIMIZERS
from experiments.run import Run
from experiments.schedules import Stages, stage_lengths, stages_of
from experiments.steps import Model

import slrla_jax

EXAMPLES = Path(compare.__file__).parent
PACKAGE = Path(slrla_jax.__file__).parent.parent
PROGRAMS = (
    *("ablations", "bilinear_game", "compare", "example_cifar", "fine_tuning", "gan"),
    *("leaving_workers", "linear_convergence", "local_training", "main", "noisy_weights"),
    *("policy_gradient", "reproduce", "sequential", "sharpness", "text_classifier", "theory"),
    *("train", "when"),
)
TINY = ["--network", "softmax", "--epochs", "2", "--seeds", "2"]


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def without_times(folder):
    return [{n: v for n, v in r.items() if n != "timing"} for r in metrics(folder)]


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
    run = Run(
        label=optimizer.label,
        model=Model(make, dataset),
        dataset=dataset,
        tx=optimizer.make(config, stages),
        slow_params=optimizer.slow_params,
        stages=stages,
        epochs=epochs,
        steps_per_epoch=5,
        batch_size=10,
        devices=jax.devices()[:1],
    )
    groups = [seeds] if together else [[seed] for seed in seeds]
    return [epoch.record for group in groups for epoch in loop.train(run, group)]


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
        "results.json",
        "settings.json",
        "table.md",
    }

    records = metrics(folder)
    assert [(r["optimizer"], r["seed"], r["epoch"]) for r in records] == [
        (optimizer, seed, epoch)
        for optimizer in ("SGD", "SLA", "SLRLA")
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
        if r["epoch"] == 2 and r["optimizer"] != "SGD"
    )
    assert any(
        r["fast_test_accuracy"] != r["test_accuracy"]
        for r in records
        if r["epoch"] == 1 and r["optimizer"] != "SGD"
    )

    settings = json.loads((folder / "settings.json").read_text())
    assert [r["stage"] for r in records[:3]] == [1, 2, 4]
    assert settings["entries"]["SLA"]["slow_step_size"] == 0.8
    assert settings["processes"][0]["versions"]["slrla_jax"] == slrla_jax.__version__
    results = json.loads((folder / "results.json").read_text())
    assert {entry["gradients"] for entry in results["entries"].values()} == {20}

    picture = folder / "curves.png"
    assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert picture.stat().st_size < 300_000
    assert matplotlib.image.imread(picture).std() > 0.05

    page = (folder / "table.md").read_text()
    assert page == report.page(results, report.TRAINING)
    table = [line for line in page.splitlines() if line.startswith("|")]
    assert max(map(len, table)) <= 80
    final = [100 * r["test_accuracy"] for r in records if r["optimizer"] == "SLRLA"][2::3]
    assert f"{np.mean(final):.2f} ± {np.std(final, ddof=1):.2f}" in table[-1]
    for line in table:
        assert line in done.stdout
    assert done.stdout.rstrip().endswith(str(folder))


def test_two_runs_are_the_same_in_two_folders(here):
    for _ in range(2):
        assert compare.main([*TINY, "--optimizers", "sgd,slrla"]) == 0
    assert {folder.name for folder in (here / "runs").iterdir()} == {
        "compare-digits-1",
        "compare-digits-2",
    }
    one, two = (without_times(here / f"runs/compare-digits-{n}") for n in (1, 2))
    assert one == two


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
    assert names.find(name.upper().replace("_", "-"), OPTIMIZERS) == name
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
    assert {r["stage"] for r in metrics(here / "runs/compare-digits-1")} == {1, 2}


def test_too_many_stages():
    with pytest.raises(ValueError, match="stage 2 of 4 has no cycle of 5 steps in 9 steps"):
        stage_lengths(9, (0.3, 0.6, 0.8), sync_periods=(5,) * 4)


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
        ("--optimizers foo", "--optimizers: must be different names among sgd, sla, slrla"),
        ("--optimizers sgd,sgd", "--optimizers: must be different names"),
        (
            "--stages 0.9,0.3",
            "--stages: must be increasing fractions below 1, or",
        ),
        ("--stages 0.5,1", "--stages: must be increasing"),
        ("--stages nan", "--stages: must be a positive number, got 'nan'"),
        ("--stages half", "--stages: must be a positive number, got 'half'"),
        ("--stages 0.3,0.6,0.8 --epochs 1", "--stages: stage 2 of 4 has no cycle of 5 steps"),
        (
            "--epochs 1 --stages 0.3,0.6,0.8",
            "--stages: stage 2 of 4 has no cycle of 5 steps in 9 steps",
        ),
        ("--batch_size 601", "--batch_size: must be from 1 to 600, the number of training images"),
        ("--dataset nope", "--dataset: must be one of digits, mnist"),
        ("--network nope", "--network: must be one of resnet, small_vgg"),
        ("--network VGG-16", "--network: VGG-16: image_shape: must be at least 32 pixels"),
        ("--data_path /nowhere", "--data_path: the digits come with scikit-learn"),
        ("--dataset mnist --data_path /nowhere", "--data_path: there is no folder /nowhere"),
        ("--name ../elsewhere", "--name: must be the name of a folder"),
    ],
)
def test_wrong_flags(here, capsys, flags, message):
    assert message in error_line(compare.main, flags.split(), capsys)
    assert list(here.iterdir()) == []


def test_a_folder_is_not_overwritten(here, capsys):
    (here / "runs/mine").mkdir(parents=True)
    line = error_line(compare.main, [*TINY, "--name", "mine"], capsys)
    assert "--name: there is a run in runs/mine; --resume resumes it" in line
    assert list((here / "runs/mine").iterdir()) == []


def test_help_names_every_flag(capsys):
    with pytest.raises(SystemExit) as exit_:
        compare.main(["--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    for action in compare.make_parser()._actions:
        assert all(flag in text for flag in action.option_strings)
    assert "0.3,0.6,0.8" in text


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
        ("compare.py --network softmax --epochs 2 --seeds 2", "compare-digits-1/table.md"),
        (
            "reproduce.py digits_softmax --seeds 2 --optimizers SGD --set epochs=4",
            "digits_softmax/table.md",
        ),
        (
            "sharpness.py --network softmax --epochs 2 --seeds 2 --optimizers sgd --iterations 5",
            "sharpness-digits-1/table.md",
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


def test_a_diverged_entry_does_not_end_the_table(here, capsys, monkeypatch):
    """A loss of 1e30 is finite and hopeless."""
    good = compare.BASE
    bad = dataclasses.replace(good, learning_rate=1e30)
    small = {"model": "softmax", "epochs": 2}
    entries = [
        sweep.Entry(name, dataclasses.replace(config, **small), name)
        for name, config in (("one", good), ("two", bad), ("three", good))
    ]

    def report_of(results):
        return report.report(results, report.TRAINING, "Accuracy in %")

    asked = sweep.Sweep(entries=entries, seeds=range(2), report=report_of, name="mine")
    assert sweep.run(asked) == 1
    table = (here / "runs/mine/table.md").read_text()
    rows = [line for line in table.splitlines() if line.startswith("|")]
    assert [row.split()[1] for row in rows[2:]] == ["one", "three"]
    for seed in (0, 1):
        assert f"two diverged, from seed {seed} in epoch 1 (step " in table
    assert "two diverged, from seed 0" in capsys.readouterr().out
    # All entries: there is no table to be had.
    assert compare.main([*TINY, "--lr", "1e30", "--optimizers", "sgd"]) == 1
    captured = capsys.readouterr()
    assert "SGD diverged, from seed 0 in epoch" in captured.out
    assert "Traceback" not in captured.err


@pytest.mark.parametrize(("loss", "diverges"), [(1e16, True), (1e3, False), (np.nan, True)])
def test_a_hopeless_loss_is_a_diverged_run(small, loss, diverges):
    class Wrong(networks.SoftmaxRegression):
        def __call__(self, x, *, train):
            logits = super().__call__(x, train=train)
            return logits.at[:, 0].add(loss) if train else logits

    if diverges:
        with pytest.raises(loop.Diverged, match=r"in epoch 1 \(step "):
            train(small, "sgd", seeds=[0], network=Wrong)
    else:
        train(small, "sgd", seeds=[0], network=Wrong)


def test_a_loss_that_is_not_finite_before_training_is_the_datas_fault(small):
    constant = dataclasses.replace(small, std=np.zeros(1, np.float32), mean=small.mean * 0)
    with pytest.raises(loop.Diverged, match=r"not finite before the first step; see the data$"):
        train(constant, "sgd", seeds=[0])


def test_an_interrupted_comparison_is_resumed(here, capsys, monkeypatch):
    """What is finished is not run again; the seed that was interrupted is, from its start."""
    flags = [*TINY, "--optimizers", "sgd,slrla", "--name", "mine"]
    assert compare.main([*flags[:-1], "whole"]) == 0
    times = iter(range(10_000))
    with monkeypatch.context() as stopped:
        asked = property(lambda self: next(times) > 24)
        stopped.setattr("experiments.signals.Stop.requested", asked)
        capsys.readouterr()
        assert compare.main(flags) == 143
    said = capsys.readouterr().err
    assert said.startswith("compare.py: stopped after ")
    assert said.endswith("; --resume runs what is not finished\n")
    before = metrics(here / "runs/mine")
    assert 0 < len(before) < 12
    assert compare.main([*flags, "--resume"]) == 0
    assert "done before" in capsys.readouterr().out
    assert without_times(here / "runs/mine") == without_times(here / "runs/whole")
    assert metrics(here / "runs/mine")[:3] == before[:3]
    assert compare.main([*flags, "--resume", "--seeds", "3"]) == 0
    assert capsys.readouterr().out.count("done before") == 4


def test_a_finished_comparison_is_resumed_with_another_seed(here, capsys):
    """The first seed is not run again, and both are in the table."""
    flags = [*TINY[:-2], "--name", "mine", "--seeds"]
    assert compare.main([*flags, "1"]) == 0
    before = metrics(here / "runs/mine")
    one = json.loads((here / "runs/mine/results.json").read_text())
    capsys.readouterr()
    assert compare.main([*flags, "2", "--resume"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.split() for line in shown if line.endswith("done before")] == [
        [label, "seed", "0", "done", "before"] for label in ("SGD", "SLA", "SLRLA")
    ]
    after = metrics(here / "runs/mine")
    assert [r for r in after if r["seed"] == 0] == before
    assert len(after) == 2 * len(before)
    both = json.loads((here / "runs/mine/results.json").read_text())
    assert (one["seeds"], both["seeds"]) == ([0], [0, 1])
    page = (here / "runs/mine/table.md").read_text()
    assert "Mean ± standard deviation of 2 seeds; " in page
    for label, entry in both["entries"].items():
        final, first = (
            e["measured"]["test_accuracy"]["final"] for e in (entry, one["entries"][label])
        )
        assert final["by_seed"][:1] == first["by_seed"]
        mean, deviation = np.mean(final["by_seed"]), np.std(final["by_seed"], ddof=1)
        (row,) = (line for line in page.splitlines() if line.startswith(f"| {label} "))
        assert f"| {mean:.2f} ± {deviation:.2f} |" in row


def test_the_runner_changes_nothing(here):
    """Records of the program are those of the loop alone."""
    assert compare.main([*TINY, "--optimizers", "slrla", "--name", "mine"]) == 0
    args = compare.make_parser().parse_args([*TINY, "--optimizers", "slrla"])
    (run,) = sweep.build(compare.sweep_of(args, compare.make_parser())).values()
    alone = [epoch.record for seed in (0, 1) for epoch in loop.train(run, [seed])]
    assert [{"optimizer": "SLRLA", **r} for r in alone] == without_times(here / "runs/mine")
