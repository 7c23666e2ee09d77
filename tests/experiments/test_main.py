"""The command lines of the SLRLA paper: what their flags mean, and what is wrong with others."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import main
import numpy as np
import optax
import pytest
from error_lines import error_line
from experiments import data, optimizers, schedules, sweep
from experiments.config import Config

import slrla_jax
from slrla_jax import Stage

PAPER = "--dataset CIFAR10 --network ResNet-18 --input_norm --wd 1e-3 --lr 1e-1"
SMALL = "--dataset digits --network softmax --input_norm --tr_epochs 2 --milestones 1"
OPTIMIZER = "--optim, --lookahead or --slr"


@pytest.fixture(scope="module")
def cifar():
    """256 images of noise in the shape of CIFAR's."""
    rng = np.random.default_rng(0)

    def part(size):
        return rng.integers(0, 256, (size, 32, 32, 3), np.uint8), np.arange(size, dtype="i4") % 10

    (train, train_labels), (test, test_labels) = part(256), part(10)
    return data.Dataset(
        name="cifar10",
        classes=10,
        mean=np.full(3, 125, "f4"),
        std=np.full(3, 60, "f4"),
        augmented=True,
        train_images=train,
        train_labels=train_labels,
        test_images=test,
        test_labels=test_labels,
    )


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def sweep_of(flags):
    parser = main.make_parser()
    return main.sweep_of(parser.parse_args(flags.split()), parser)


def run_of(flags):
    (run,) = sweep.build(sweep_of(flags)).values()
    return run


def path(tx, steps=40):
    """Params after each step on a quadratic whose slope changes from step to step."""
    params = jnp.asarray([1.0, -2.0])
    state, seen = tx.init(params), []

    @jax.jit
    def step(params, state, i):
        updates, state = tx.update(params + jnp.sin(i), state, params)
        return optax.apply_updates(params, updates), state

    for i in range(steps):
        params, state = step(params, state, jnp.asarray(i, "float32"))
        seen.append(params)
    return np.asarray(seen)


def momentum_sgd(rate, weight_decay=1e-3):
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.sgd(rate, momentum=0.9))


# 256 images make two batches an epoch: stages end after steps 6, 12, 16 and 20.
RATES = optax.piecewise_constant_schedule(0.1, {6: 0.2, 12: 0.2, 16: 0.2})
TEN = f"{PAPER} --tr_epochs 10"


@pytest.mark.parametrize(
    ("flags", "tx", "slow"),
    [
        ("--exp_name sgd_vanilla", momentum_sgd(RATES), False),
        ("--lookahead 5_0.8", slrla_jax.lookahead(momentum_sgd(RATES), 5, 0.8), True),
        (
            "--lookahead 5_0.8,2_0.5,2_1",
            slrla_jax.multilayer_lookahead(momentum_sgd(RATES), (5, 2, 2), (0.8, 0.5, 1.0)),
            True,
        ),
        (
            "--lookahead 5_0.8 --slr 5_0.2",
            optax.chain(
                slrla_jax.stagewise_prox(0.4, 5), slrla_jax.lookahead(momentum_sgd(RATES), 5, 0.8)
            ),
            True,
        ),
        (
            "--lookahead 3_0.5 --slr 7_0.1",
            optax.chain(
                slrla_jax.stagewise_prox(0.2, 7), slrla_jax.lookahead(momentum_sgd(RATES), 3, 0.5)
            ),
            True,
        ),
        (
            "--slr 4_0.3",
            optax.chain(slrla_jax.stagewise_prox(0.6, 4), momentum_sgd(RATES)),
            False,
        ),
        (
            "--optim adamw --momentum 0.8 --lookahead 5_0.8",
            slrla_jax.lookahead(optax.adamw(RATES, b1=0.8, weight_decay=1e-3), 5, 0.8),
            True,
        ),
        (
            "--optim RAdam",
            optax.chain(optax.add_decayed_weights(1e-3), optax.radam(RATES)),
            False,
        ),
        (
            "--optim AdaBound",
            slrla_jax.adabound(RATES, weight_decay=1e-3, base_lr=0.1),
            False,
        ),
    ],
)
def test_the_released_meaning_of_the_flags(cifar, monkeypatch, flags, tx, slow):
    monkeypatch.setattr(data, "load", lambda name, folder: cifar)
    made = run_of(f"{TEN} {flags}")
    np.testing.assert_allclose(path(made.tx), path(tx), rtol=1e-5, atol=1e-6)
    assert (made.slow_params is not None) == slow
    assert made.dataset.augmented
    np.testing.assert_allclose([rate for rate, _ in made.stages.ends], [0.1, 0.02, 0.004, 0.0008])
    assert [end for _, end in made.stages.ends] == [6, 12, 16, 20]
    np.testing.assert_allclose(made.stages.schedule(15), 0.004, rtol=1e-6)
    np.testing.assert_allclose(made.learning_rate(16), 0.004, rtol=1e-6)


def test_the_released_recipe_is_the_default(cifar, monkeypatch):
    monkeypatch.setattr(data, "load", lambda name, folder: cifar)
    flags = f"{PAPER} --exp_name sgd_vanilla"
    made, asked = run_of(flags), sweep_of(flags)
    assert (made.epochs, made.batch_size, made.steps) == (100, 128, 200)
    assert [end for _, end in made.stages.ends] == [60, 120, 160, 200]
    assert (asked.root / asked.name).as_posix() == "runs/sgd_vanilla"
    assert "11,173,962 parameters" in sweep.title_of(made)


def test_settings_of_each_stage_are_algorithm_3(cifar, monkeypatch):
    monkeypatch.setattr(data, "load", lambda name, folder: cifar)
    flags = "--stage_betas 0.1,0.4,0,1 --stage_alphas 0.5,0.8,1,0.3 --stage_ks 2,3,2,4"
    made = run_of(f"{TEN} {flags}")
    tx = slrla_jax.slrla(
        momentum_sgd,
        [
            Stage(3, 0.1, 0.1, 2, 0.5),
            Stage(2, 0.02, 0.4, 3, 0.8),
            Stage(2, 0.004, 0.0, 2, 1.0),
            Stage(1, 0.0008, 1.0, 4, 0.3),
        ],
    )
    assert [end for _, end in made.stages.ends] == [6, 12, 16, 20]
    np.testing.assert_allclose(path(made.tx), path(tx), rtol=1e-5, atol=1e-6)
    alike = run_of(f"{TEN} --stage_betas 0.3")
    assert [end for _, end in alike.stages.ends] == [5, 10, 15, 20]


@pytest.mark.parametrize(
    ("milestones", "ks", "lengths"),
    [
        ((0.3, 0.6, 0.8), None, (30, 30, 20, 20)),
        ((3, 6), None, (30, 30, 40)),
        ((0.5,), (7, 4), (49, 52)),
        ((0.3, 0.6, 0.8), (5, 10, 8, 3), (30, 30, 16, 24)),
    ],
)
def test_stages_end_at_milestones(milestones, ks, lengths):
    assert schedules.stage_lengths(100, milestones, epoch=10, sync_periods=ks) == lengths


@pytest.mark.parametrize(
    ("flags", "milestones", "ends"),
    [
        ("--tr_epochs 1", (), [4]),
        ("--tr_epochs 2", (0.6,), [4, 8]),
        ("--tr_epochs 3", (0.6, 0.8), [4, 8, 12]),
        ("--tr_epochs 4", (0.3, 0.6, 0.8), [4, 8, 12, 16]),
        ("--tr_epochs 4 --milestones none", (), [16]),
        # In cycles of five steps.
        ("--tr_epochs 1 --stage_betas 0.1", (), [5]),
        ("--tr_epochs 4 --stage_betas 0.1", (0.3, 0.6), [5, 10, 20]),
        ("--tr_epochs 2 --stage_ks 50", (), [50]),
        ("--tr_epochs 2 --stage_ks 3,2", (0.6,), [3, 9]),
    ],
)
def test_a_short_run_has_fewer_stages(flags, milestones, ends):
    """Four steps in an epoch; the first stage is always there, with the learning rate of --lr."""
    flags = f"--dataset digits --network softmax {flags}"
    made, config = run_of(flags), sweep_of(flags).entries[0].config
    steps = made.epochs * made.steps_per_epoch
    if config.fit_milestones:
        config = schedules.with_milestones_that_fit(config, steps, made.steps_per_epoch)
    assert config.milestones == milestones
    assert len(made.stages.lengths) == len(milestones) + 1
    assert [end for _, end in made.stages.ends] == ends
    rates = [0.1, 0.02, 0.004, 0.0008][: len(ends)]
    np.testing.assert_allclose([rate for rate, _ in made.stages.ends], rates)
    np.testing.assert_allclose([made.learning_rate(end) for end in ends], rates, rtol=1e-6)


def test_a_run_of_one_epoch(here, capsys):
    flags = "--dataset digits --network softmax --tr_epochs 1 --exp_name short --lookahead 5_0.8"
    assert main.main([*flags.split(), "--train_batch_size", "40"]) == 0
    assert "\nlearning rate 0.1 to step 15\n" in capsys.readouterr().out
    assert (here / "runs/short/curves.png").exists()


@pytest.mark.parametrize("optimizer", optimizers.INNER)
def test_every_inner_optimizer_decays_weights(optimizer):
    """In the gradient or beside it: with a gradient of zero, weights shrink."""
    params = jnp.asarray([1.0])
    for weight_decay in (0.0, 0.1):
        config = Config(weight_decay=weight_decay)
        tx = optax.with_extra_args_support(optimizers.INNER[optimizer](0.1, config))
        updates, _ = tx.update(jnp.zeros(1), tx.init(params), params, value=1.0)
        assert (updates[0] < 0) == (weight_decay > 0)


@pytest.mark.parametrize(
    ("name", "b_squared"),
    [
        ("adaloss", [4 + 0.5 * 2.0, 4 + 0.5 * 2.0 + 0.5 * 1.0]),
        ("adagrad_norm", [4 + 9.0, 4 + 9.0 + 9.0]),
        ("sgd_constant", [4.0, 4.0]),
        ("sgd_decay_sqrt", [4 + 0.5, 4 + 1.0]),
    ],
)
def test_adaloss_and_its_baselines_divide_the_gradient(name, b_squared):
    """By b, which does not divide the weight decay."""
    settings = {"b0": 2.0, "loss_weight": 0.5, "loss_offset": 1.0}
    config = Config(momentum=0.0, weight_decay=0.1, **settings)
    tx = optax.with_extra_args_support(optimizers.INNER[name](0.5, config))
    params, state = jnp.asarray([1.0]), tx.init(jnp.asarray([1.0]))
    for loss, b2 in zip((3.0, 0.0), b_squared, strict=True):  # |f − c| is 2 and 1.
        updates, state = tx.update(jnp.asarray([3.0]), state, params, value=loss)
        np.testing.assert_allclose(updates, [-0.5 * (3.0 / b2**0.5 + 0.1)], rtol=1e-6)


def test_a_run_leaves_its_settings_and_is_resumed(here, capsys):
    flags = f"{SMALL} --lookahead 5_0.8 --slr 5_0.2 --train_batch_size 80 --exp_name mine"
    flags += " --bf16 --seeds 2 --tensorboard --train_images 400"
    assert main.main(flags.split()) == 0
    folder = here / "runs/mine"
    assert {path.name for path in folder.iterdir()} == {
        "checkpoints",
        "curves.png",
        "metrics.jsonl",
        "results.json",
        "settings.json",
        "table.md",
        "tensorboard",
    }
    assert len(list((folder / "tensorboard").iterdir())) == 1
    settings = json.loads((folder / "settings.json").read_text())
    config = settings["entries"]["SLRLA (released form)"]
    assert (config["sync_period"], config["beta"], config["anchor_period"]) == (5, 0.4, None)
    assert config["data"] == run_of(flags).dataset.fingerprint()
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [(r["seed"], r["epoch"], r["gradients"], r["stage"]) for r in records] == [
        (seed, epoch, 5 * epoch, max(epoch, 1)) for seed in (0, 1) for epoch in (0, 1, 2)
    ]
    timing = records[1]["timing"]
    assert 0 <= timing["waited"] <= timing["seconds"] <= timing["wall"]
    table = (folder / "table.md").read_text()
    final = [100 * r["test_accuracy"] for r in records if r["epoch"] == 2]
    assert f"{np.mean(final):.2f} ± {np.std(final, ddof=1):.2f}" in table
    assert "fast weights" in table
    capsys.readouterr()

    with pytest.raises(SystemExit):
        main.main([*flags.split(), "--lr", "x"])
    assert "--lr: must be a positive number" in capsys.readouterr().err
    assert main.main(flags.split()) == 2
    assert "--resume resumes it" in capsys.readouterr().err
    assert main.main([*flags.split(), "--resume", "--lr", "0.3"]) == 1
    assert "of another run: --lr is 0.1 there and 0.3 here" in capsys.readouterr().err
    # What is only written of a run may be different.
    shown = flags.replace(" --tensorboard", " --batch_norm recalibrated").split()
    assert main.main([*shown, "--resume"]) == 0
    again = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert again == records
    assert capsys.readouterr().out.count("done before") == 2
    # Those of other seeds are kept, but the table has what was asked for.
    assert main.main([*flags.replace("--seeds 2", "--seeds 1").split(), "--resume"]) == 0
    assert (folder / "metrics.jsonl").read_text().count("\n") == 6
    assert "One seed" in (folder / "table.md").read_text()
    assert len(json.loads((folder / "settings.json").read_text())["processes"]) == 3


def test_a_run_with_other_flags_is_refused_in_one_line(here, capsys, monkeypatch):
    """Also where the optimizer's state has another structure, or the network other weights."""
    flags = [*SMALL.split(), "--train_batch_size", "40", "--exp_name", "mine", "--resume"]
    assert main.main(flags) == 0

    def refused(more):
        capsys.readouterr()
        assert main.main([*flags, *more.split()]) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1
        where, _, message = captured.err.partition(" is of another run: ")
        # Another optimizer is another entry in the settings, and its checkpoints tell.
        checkpoint = here / "runs/mine/checkpoints/seed_0/30"
        assert where in ("main.py: runs/mine", f"main.py: {checkpoint}")
        return message.removesuffix("\n")

    for more, message in {
        "--momentum 0": "--momentum is 0.9 there and 0.0 here",
        "--network resnet": "--network is 'softmax' there and 'resnet' here",
        "--tr_epochs 3": "--tr_epochs is 2 there and 3 here; --extend_epochs lengthens a finished "
        "run",
        "--train_batch_size 80 --bf16": "--bf16 is False there and True here, --train_batch_size "
        "is 40 there and 80 here",
        "--train_images 400": "--train_images is not given there and 400 here, the data are "
        "not the same",
        "--optim Adam": f"{OPTIMIZER} is 'sgd' there and 'adam' here, --optim is 'sgd' there and "
        "'adam' here",
        "--lookahead 5_0.8": f"{OPTIMIZER} is 'sgd' there and 'lookahead' here",
        "--lookahead 3_0.8": f"{OPTIMIZER} is 'sgd' there and 'lookahead' here, --lookahead (k) is "
        "5 there and 3 here",
        "--slr 7_0.2": f"{OPTIMIZER} is 'sgd' there and 'prox_released' here, --slr (2β) is 0.0 "
        "there and 0.4 here, --slr (S) is not given there and 7 here",
        "--stage_betas 0,1": "--stage_betas, --stage_alphas or --stage_ks is False there and True "
        f"here, {OPTIMIZER} is 'sgd' there and 'slrla' here, --stage_betas is 0.0 there and "
        "[0.0, 1.0] here",
    }.items():
        assert refused(more) == message
    # As another version of the package may have it.
    (here / "runs/mine/metrics.jsonl").unlink()
    other = replace(optimizers.OPTIMIZERS["sgd"], make=lambda *args: optax.adam(1e-3))
    monkeypatch.setitem(optimizers.OPTIMIZERS, "sgd", other)
    assert main.main(flags) == 1
    said = capsys.readouterr().err
    assert "all settings are the same, but opt_state.0.count is not there and int32[] here" in said
    assert said.count("\n") == 1


def metrics(folder):
    """What the metrics have but for the times and the run's name."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) | {"timing": None, "optimizer": None} for line in lines]


@pytest.mark.parametrize(
    "more", ["--lookahead 5_0.8 --slr 7_0.2", "--stage_ks 4 --stage_betas 0.1"]
)
def test_a_finished_run_is_extended(here, capsys, more):
    """In the first case an epoch has 15 steps, in the other the run is rounded up to 32."""
    flags = [*SMALL.split(), *more.split(), "--train_batch_size", "40", "--eval_every", "2"]
    for name in ("mine", "twice"):
        assert main.main([*flags, "--exp_name", name]) == 0
    before = metrics(here / "runs/mine")
    end = before[-1]["steps"]
    assert end == (32 if "--stage_ks" in more else 30)
    capsys.readouterr()
    extended = [*flags, "--exp_name", "mine", "--resume", "--extend_epochs", "3"]
    assert main.main(extended) == 0
    assert f"2 epochs and 3 more, {end + 45} steps" in capsys.readouterr().out
    after = metrics(here / "runs/mine")
    assert after[:3] == before
    assert [r["steps"] for r in after[3:]] == [end + 15, end + 30, end + 45]
    assert [r["stage"] for r in after[3:]] == [2, 2, 2]
    assert {r["learning_rate"] for r in after[3:]} == {before[-1]["learning_rate"]}
    assert ["test_accuracy" in r for r in after] == [True, False, True, False, True, True]
    settings = json.loads((here / "runs/mine/settings.json").read_text())
    assert [config["epochs"] for config in settings["entries"].values()] == [2]
    assert [process["more_epochs"] for process in settings["processes"]] == [0, 3]
    results = json.loads((here / "runs/mine/results.json").read_text())
    assert [entry["gradients"] for entry in results["entries"].values()] == [end + 45]

    # In two parts it is the same, but for the evaluation where the first part ended.
    for n in ("1", "3"):
        twice = [*flags, "--exp_name", "twice", "--resume", "--extend_epochs", n]
        assert main.main(twice) == 0
    parts = metrics(here / "runs/twice")
    assert "test_accuracy" in parts[3]
    assert [{k: r[k] for k in want} for r, want in zip(parts, after, strict=True)] == after

    # Without the flag it would be shorter than it is.
    for short in ([], ["--extend_epochs", "2"]):
        capsys.readouterr()
        assert main.main([*flags, "--exp_name", "mine", "--resume", *short]) == 2
        captured = capsys.readouterr()
        assert captured.err == (
            f"main.py: error: --resume: the run in runs/mine is at step {end + 45} and would end "
            f"at step {end + 15 * len(short)}; --extend_epochs 3 or more extends it\n"
        )
    assert main.main(extended) == 0
    assert metrics(here / "runs/mine") == after


def test_only_a_finished_run_is_extended(here, capsys, monkeypatch):
    flags = [*SMALL.split(), "--train_batch_size", "40", "--exp_name", "mine"]

    def error(*more):
        capsys.readouterr()
        assert main.main([*flags, "--extend_epochs", "2", *more]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1
        return captured.err

    assert "--extend_epochs: needs --resume, and a finished run" in error()
    assert "--extend_epochs: there is no run in runs/mine" in error("--resume")
    assert list(here.iterdir()) == []

    with monkeypatch.context() as stopped:
        asked = iter([False] * 20 + [True])
        stopped.setattr(
            "experiments.signals.Stop.requested", property(lambda self: next(asked)), raising=False
        )
        assert main.main(flags) == 143
    assert "--extend_epochs: seed 0 is at step 20 of 30 in runs/mine; " in error("--resume")
    assert main.main([*flags, "--resume"]) == 0
    # Of two seeds the second was not trained yet: the first is not extended either.
    said = error("--resume", "--seeds", "2")
    assert "--extend_epochs: seed 1 is at step 0 of 30 in runs/mine; " in said
    assert "--resume without it finishes the run first" in said
    assert len(metrics(here / "runs/mine")) == 3
    with pytest.raises(SystemExit):
        main.main([*flags, "--resume", "--extend_epochs", "0"])
    assert "--extend_epochs: must be a whole number, at least 1, got '0'" in capsys.readouterr().err


def test_damaged_metrics_are_restored_from_the_checkpoints(here, capsys):
    flags = [*SMALL.split(), "--train_batch_size", "40", "--exp_name", "mine"]
    assert main.main(flags) == 0
    path = here / "runs/mine/metrics.jsonl"
    whole = path.read_text()
    first, *others = whole.splitlines()
    for kind, second in {
        "no text": b"\xff\x00\x0c\xe2\x80\xa8",
        "no JSON": b'{"seed": 0, "epo',
        "no record": b"[1]",
        "another's record": b'{"epoch": 1}',
    }.items():
        path.write_bytes(b"\n".join([first.encode(), second, others[1].encode(), b""]))
        capsys.readouterr()
        assert main.main([*flags, "--resume"]) == 0, kind
        said = "runs/mine/metrics.jsonl had 1 damaged line, whose content is restored or run again"
        assert capsys.readouterr().out.count(said) == 1
        records, before = (
            [json.loads(line) for line in text.splitlines()] for text in (path.read_text(), whole)
        )
        # The checkpoints have all of it but the times.
        del before[1]["timing"]
        assert records == before


@pytest.mark.parametrize("name", ["metrics.jsonl", "settings.json"])
def test_a_file_that_cannot_be_written_is_one_line(here, capsys, name):
    flags = [*SMALL.split(), "--train_batch_size", "40", "--exp_name", "mine", "--resume"]
    (here / "runs/mine" / name).mkdir(parents=True)
    assert main.main(flags) == 2
    said = capsys.readouterr().err
    assert f"--root: cannot write runs/mine/{name}: Is a directory; once it is removed" in said
    assert said.count("\n") == 1
    (here / "runs/mine" / name).rmdir()
    assert main.main(flags) == 0


def test_without_tensorboardx_there_is_no_folder(here, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main.main(f"{SMALL} --train_batch_size 40 --tensorboard".split()) == 2
    assert "--tensorboard: needs the extra `tensorboard`" in capsys.readouterr().err
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--lookahead 5", "--lookahead: must be k_α, got '5'"),
        ("--lookahead 5_0.8,5", "--lookahead: must be k_α, got '5'"),
        ("--lookahead 5_0.8,2_0.5 --slr 5_0.1", "--slr: goes with one layer of Lookahead"),
        ("--lookahead 0_0.8", "--lookahead: must be a whole number, at least 1, got '0'"),
        ("--lookahead 5_1.8", "--lookahead: must be more than 0 and at most 1, got '1.8'"),
        ("--slr 5_-1", "--slr: must be 0 or more, got '-1'"),
        ("--optim Adagrad", "--optim: must be one of sgd, adam"),
        ("--network ResNet-19", "--network: must be one of resnet"),
        ("--dataset CIFAR-11", "--dataset: must be one of digits"),
        ("--milestones 0.5,2", "--milestones: must be increasing fractions below 1, or"),
        ("--milestones 0.3,0.6,0.8", "--milestones: stage 1 of 4 has no epoch in 2 epochs"),
        ("--milestones 0.6,0.3", "--milestones: must be increasing"),
        ("--milestones 1,2", "--milestones: stage 3 of 3 has no epoch in 2 epochs"),
        ("--gamma 0", "--gamma: must be a positive number"),
        ("--momentum 1", "--momentum: must be at least 0 and below 1, got '1'"),
        ("--stage_betas 1,2,3", "--stage_betas: must be one value or 2, for 2 stages, got (1.0"),
        ("--stage_ks 5 --lookahead 5_0.8", "not with --lookahead or --slr"),
        ("--stage_ks 50", "--milestones: stage 1 of 2 has no cycle of 50 steps in 2 epochs"),
        ("--train_images 601", "--train_images: cannot train on 601 images of digits"),
        ("--train_batch_size 800", "--train_batch_size: must be from 1 to 600, the number of"),
        ("--train_batch_size 100", "--train_batch_size: must be a multiple of the 8 devices"),
        ("--network VGG-16", "--network: VGG-16: image_shape: must be at least 32"),
        ("--lookahead 1000_0.5", "--lookahead (k): a run of 30 steps never syncs with a period of"),
        ("--lookahead 7_0.5,5_0.5", "--lookahead (k): a run of 30 steps never syncs with a period"),
        ("--data_path /nowhere", "--data_path: the digits come with scikit-learn"),
        ("--SEED -1", "--SEED/--seed: must be a whole number from 0 to 2147483647, got '-1'"),
        ("--SEED 2147483648", "--SEED/--seed: must be a whole number from 0 to 2147483647"),
        ("--SEED 2147483647 --seeds 2", "--seeds: must end at 2147483647"),
        ("--exp_name a/b", "--exp_name: must be the name of a folder"),
        ("--save_every 0", "--save_every: must be a whole number"),
    ],
)
def test_wrong_flags(here, capsys, flags, message):
    assert message in error_line(main.main, f"{SMALL} --train_batch_size 40 {flags}", capsys)
    assert list(here.iterdir()) == []


# What a run is compared by, and what is kept


def test_the_checkpoint_of_another_seed_is_refused(here, capsys):
    flags = [*SMALL.split(), "--train_batch_size", "40", "--exp_name", "mine"]
    assert main.main(flags) == 0
    folder = here / "runs/mine/checkpoints"
    (folder / "seed_0").rename(folder / "seed_1")
    capsys.readouterr()
    assert main.main([*flags, "--resume", "--SEED", "1"]) == 1
    assert "of another run: --SEED is [0] there and [1] here" in capsys.readouterr().err


@pytest.mark.parametrize("change", ["a pixel", "a label", "fewer images"])
def test_other_data_under_the_same_name_are_refused(here, capsys, monkeypatch, change):
    """By the settings, and by the checkpoints alone."""
    flags = [*SMALL.split(), "--train_batch_size", "40", "--exp_name", "mine"]
    assert main.main(flags) == 0
    digits = data.load("digits")
    images, labels = digits.train_images.copy(), digits.train_labels.copy()
    if change == "a pixel":
        images[0, 0, 0, 0] += 1
    elif change == "a label":
        labels[0] = (labels[0] + 1) % 10
    else:
        images, labels = images[:-40], labels[:-40]
    other = replace(digits, train_images=images, train_labels=labels)
    monkeypatch.setattr(data, "load", lambda name, folder: other)
    for where in ("runs/mine", here / "runs/mine/checkpoints/seed_0/30"):
        capsys.readouterr()
        assert main.main([*flags, "--resume"]) == 1
        captured = capsys.readouterr()
        said = f"main.py: {where} is of another run: the data are not the same\n"
        assert (captured.err, captured.out) == (said, "")
        (here / "runs/mine/settings.json").unlink(missing_ok=True)


def test_other_versions_and_devices_are_told_and_recorded(here, capsys):
    flags = [*SMALL.split(), "--train_batch_size", "40", "--exp_name", "mine", "--seeds"]
    assert main.main([*flags, "1"]) == 0
    path = here / "runs/mine/settings.json"
    settings = json.loads(path.read_text())
    origin = settings["processes"][0]
    origin["versions"]["jax"] = "0.0.1"
    origin["machine"]["devices"] = ["TPU v5"]
    path.write_text(json.dumps(settings))
    assert main.main([*flags, "2", "--resume"]) == 0
    shown = capsys.readouterr().out
    (line,) = [line for line in shown.splitlines() if line.startswith("Resumed with ")]
    assert f"jax 0.0.1 before and {jax.__version__} now" in line
    assert "devices ['TPU v5'] before" in line
    assert line.endswith("results may differ in the last bits")
    processes = json.loads(path.read_text())["processes"]
    assert processes[0] == origin
    assert [process["seeds"] for process in processes] == [[0], [0, 1]]


def test_the_best_epoch_is_kept(here, monkeypatch):
    """Beside the newest two; of equally good epochs it is the first."""
    accuracies = iter([0.1, 0.5, 0.9, 0.9, 0.6, 0.5, 0.4])

    def evaluate(*args):
        return {"test_accuracy": np.array([next(accuracies)]), "test_loss": np.array([1.0])}

    monkeypatch.setattr("experiments.train.evaluate", evaluate)
    flags = f"{SMALL} --train_batch_size 40 --exp_name mine --tr_epochs 6 --milestones none"
    assert main.main(flags.split()) == 0
    kept = {int(p.name) for p in (here / "runs/mine/checkpoints/seed_0").iterdir()}
    assert kept == {30, 75, 90}
    results = json.loads((here / "runs/mine/results.json").read_text())
    assert results["entries"]["SGD"]["measured"]["best_epoch"] == [2]


def test_epoch_lines_fit_into_80_columns(here, capsys):
    flags = f"{SMALL} --train_batch_size 40 --exp_name {'long' * 20} --lookahead 5_0.8 --slr 7_0.1"
    assert main.main(flags.split()) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "seed 0  compiling" in lines
    epochs = [line for line in lines if line.startswith("seed 0  epoch ")]
    assert len(epochs) == 2
    assert max(map(len, epochs)) <= 80


# As processes


def start(*flags, **options):
    environment = {n: v for n, v in os.environ.items() if n != "XLA_FLAGS"}
    root = Path(slrla_jax.__file__).parent.parent
    paths = [str(root), os.environ.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    return subprocess.Popen(
        [sys.executable, *options.pop("python", ()), str(Path(main.__file__)), *flags],
        env={**environment, **options.pop("env", {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_without_the_device_that_is_asked_for(tmp_path):
    process = start(*SMALL.split(), cwd=tmp_path, env={"JAX_PLATFORMS": "cuda"})
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 2
    assert said.splitlines()[-1].startswith("main.py: error: JAX_PLATFORMS: JAX finds no device")
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_while_modules_are_imported(tmp_path):
    """It comes when a module that is imported late has been: the others take a second more."""
    process = start(*SMALL.split(), cwd=tmp_path, python=("-X", "importtime"))
    for line in process.stderr:
        if line.endswith("numpy\n"):
            process.send_signal(signal.SIGINT)
            break
    _, said = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGINT
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_has_read_enough(tmp_path):
    """It reads one line of a run, as `head -1` does."""
    process = start(*SMALL.split(), "--train_batch_size", "40", cwd=tmp_path)
    assert process.stdout.readline().startswith("digits, 600 training and 1,197 test images; ")
    process.stdout.close()
    _, said = process.communicate(timeout=120)
    assert (process.returncode, said) == (128 + signal.SIGPIPE, "")
