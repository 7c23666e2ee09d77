"""Local training: both mappings against literal loops, bytes against XLA's, shards, errors."""

import json
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import local_training
import numpy as np
import pytest
from error_lines import error_line
from experiments import data, train
from experiments.checkpoints import Checkpoints
from experiments.devices import AXIS
from experiments.local import traffic
from experiments.local.cycle import divided_settings
from experiments.local.methods import LocalConfig
from experiments.local.run import run_of_workers
from experiments.local.shards import shard_batches, shards
from experiments.local.table import rows
from experiments.report import Column
from experiments.signals import Stop
from experiments.steps import init_weights
from jax.sharding import AbstractMesh, AxisType, Mesh
from jax.sharding import PartitionSpec as P
from scipy import stats

DIGITS = data.load("digits")
BASE = LocalConfig(
    model="softmax",
    optimizer="local",
    workers=4,
    epochs=2,
    epoch_steps=6,
    sync_period=3,
    batch_size=16,
    eval_every=2,
    milestones=(),
    annealing="cosine",
    learning_rate=0.05,
    momentum=0.8,
    weight_decay=0.01,
    outer_learning_rate=0.7,
    outer_momentum=0.5,
    recalibrate=False,
)
SEED = 3


def trained(config, devices):
    """The last epoch of a run on some of the devices."""
    run = run_of_workers(config, DIGITS, on=jax.devices()[:devices])
    return [*train.train(run, [SEED])][-1]


def matrix(params):
    head = jax.device_get(params)["head"]
    return np.concatenate([head["kernel"], head["bias"][None]])


def literal(config):
    """The weights after a run, in float64, one worker after the other."""
    images, labels = DIGITS.pool("train")
    x = np.float64(DIGITS.standardise(images, True)).reshape(len(images), -1)
    x, y = np.append(x, np.ones((len(x), 1)), axis=1), np.eye(10)[labels]

    def gradient(w, some):
        logits = x[some] @ w
        p = np.exp(logits - logits.max(1, keepdims=True))
        return x[some].T @ (p / p.sum(1, keepdims=True) - y[some]) / len(some)

    workers, steps = config.workers, config.epochs * config.epoch_steps
    model = run_of_workers(config, DIGITS, on=jax.devices()[:1]).model
    slow, b = np.float64(matrix(init_weights(model, SEED)[0])), 0
    fast, trace = [slow] * workers, [0] * workers
    parts = shards(DIGITS, config.split, workers, SEED)
    stream = shard_batches(parts, SEED, config.batch_size, 0, 0, 1)
    for step, batch in zip(range(steps), stream, strict=False):
        rate = config.learning_rate * (1 + np.cos(np.pi * step / steps)) / 2
        each = [gradient(w, some) for w, some in zip(fast, np.split(batch, workers), strict=True)]
        if config.optimizer == "data_parallel":
            each = [np.mean(each, axis=0)] * workers
        for n in range(workers):
            pull = config.beta * (fast[n] - slow) + config.weight_decay * fast[n]
            trace[n] = config.momentum * trace[n] + each[n] + pull
            fast[n] = fast[n] - rate * trace[n]
        if config.optimizer == "local" and (step + 1) % config.sync_period == 0:
            s = slow - np.mean(fast, axis=0)
            b = config.outer_momentum * b + s
            slow = slow - config.outer_learning_rate * (config.outer_momentum * b + s)
            fast = [slow] * workers
    return slow if config.optimizer == "local" else fast[0]


# Training


@pytest.mark.parametrize(
    "changes",
    [
        {"beta": 0.3, "split": "class"},
        {"optimizer": "data_parallel", "sync_period": 1},
    ],
)
def test_workers_on_devices_and_on_one_are_literal_loops(changes):
    config = replace(BASE, **changes)
    here, there = (trained(config, devices) for devices in (1, config.workers))
    assert here.record == pytest.approx(there.record, rel=1e-5)
    for epoch in (here, there):
        np.testing.assert_allclose(matrix(epoch.state.params), literal(config), atol=2e-6)
    sizes = {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(there.state)}
    assert sizes == {config.workers}


def test_a_run_that_was_stopped_resumes_bit_for_bit(tmp_path):
    config = replace(BASE, workers=2)
    run = run_of_workers(config, DIGITS, on=jax.devices()[:2])
    whole = [*train.train(run, [SEED])][-1]

    def checkpoints():
        return Checkpoints(tmp_path, {}, every=config.sync_period)

    stop = Stop()

    def ask(step, loss):
        stop.number = 15

    with pytest.raises(train.Stopped):
        [*train.train(run, [SEED], checkpoints=checkpoints(), stop=stop, on_step=ask)]
    resumed = [*train.train(run, [SEED], checkpoints=checkpoints())][-1]
    assert resumed.record == whole.record
    for one, other in zip(
        jax.tree.leaves(resumed.state), jax.tree.leaves(whole.state), strict=True
    ):
        assert (one == other).all()


# Bytes


def compiled_bytes(text):
    """What a worker sends in a compiled program, by the shapes in its text."""
    sent = 0
    for results, name in re.findall(r"= (.*?) (all-[\w-]+)\(", text):
        for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", results):
            size = np.prod([int(n) for n in shape.split(",") if n], dtype=int)
            size *= {"f32": 4, "u16": 2, "s8": 1}[dtype]
            sent += {"all-reduce": 2, "all-gather": 1, "all-to-all": 1}[name] * 3 / 4 * size
    return sent


@pytest.mark.parametrize(
    ("changes", "bytes_each"),
    [
        ({"optimizer": "data_parallel", "sync_period": 1}, 4 * 650),
        ({}, 4 * 650),
        # A bias of 10 numbers is padded to 12; a scale of 4 bytes goes with each of 2 × 4 chunks.
        ({"send": "int8"}, 640 + 12 + 2 * 4 * 4),
    ],
)
def test_bytes_are_those_of_the_compiled_program_and_of_the_formula(changes, bytes_each):
    run = run_of_workers(replace(BASE, **changes), DIGITS, on=jax.devices()[:4])
    mesh = Mesh(np.array(jax.devices()[:4]), (AXIS,))
    program, _ = divided_settings(run.config)
    compiled = traffic.lowered_cycle(run.model, program, run.steps, mesh).compile().as_text()
    # The mean of the loss and of the accuracy are all-reduced as well.
    assert traffic.sent_in_a_cycle(run) == 2 * 3 / 4 * (bytes_each + 2 * 4)
    assert compiled_bytes(compiled) == traffic.sent_in_a_cycle(run)


def test_bytes_of_every_collective_on_a_ring():
    def program(x):
        whole = jax.lax.all_gather(x.astype(jnp.int8), AXIS, tiled=True)
        part = jax.lax.psum_scatter(x, AXIS, tiled=True)
        moved = jax.lax.ppermute(x, AXIS, [(0, 1), (1, 0)])
        exchanged = jax.lax.all_to_all(x.astype(jnp.bfloat16), AXIS, 0, 0)
        return whole.sum(), part, moved, exchanged, jax.lax.psum(x, AXIS)

    def lowered(function):
        mesh = AbstractMesh((2,), (AXIS,), axis_types=(AxisType.Auto,))
        mapped = jax.shard_map(function, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False)
        return jax.jit(mapped).trace(jax.ShapeDtypeStruct((2, 3), jnp.float32)).lower()

    found = traffic.collectives(lowered(program))
    sent = {each.name.removeprefix("stablehlo."): traffic.bytes_sent(each, 2) for each in found}
    assert sent == {
        "all_gather": 6,
        "reduce_scatter": 12,
        "collective_permute": 24,
        "all_to_all": 6,
        "all_reduce": 24,
    }
    with pytest.raises(ValueError, match="all_reduce is in a loop or a branch"):
        traffic.collectives(
            lowered(lambda x: jax.lax.fori_loop(0, 3, lambda _, y: jax.lax.psum(y, AXIS), x))
        )


# Shards


@pytest.mark.parametrize("split", ["even", "class"])
def test_each_worker_has_examples_of_its_own(split):
    parts = shards(DIGITS, split, 4, SEED)
    assert parts.shape == (4, 150)
    assert len(np.unique(parts)) == 600
    classes = [len(set(DIGITS.train_labels[part])) for part in parts]
    assert classes == [10] * 4 if split == "even" else max(classes) <= 4
    assert (parts != shards(DIGITS, split, 4, SEED + 1)).any()

    whole = shard_batches(parts, SEED, 16, 5, 0, 1)
    of_two = [shard_batches(parts, SEED, 16, 5, process, 2) for process in range(2)]
    later = shard_batches(parts, SEED, 16, 0, 0, 1)
    assert [next(later) for _ in range(5)][4].shape == (16,)
    for _ in range(40):
        batch = next(whole)
        np.testing.assert_array_equal(batch, np.concatenate([next(part) for part in of_two]))
        np.testing.assert_array_equal(batch, next(later))
        for own, part in zip(np.split(batch, 4), parts, strict=True):
            assert set(own) <= set(part)


# The program

FLAGS = (
    "--dataset digits --network softmax --workers 2 --epochs 1 --epoch_steps 4 --batch_size 8 "
    "--sync_period 2 --outer 1_0 --learning_rates 0.001,0.1 --seeds 2 --name mine"
)


def test_each_entry_is_tuned_and_compared_from_fresh_seeds(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert local_training.main(FLAGS.split()) == 0
    results = json.loads((tmp_path / "runs/mine/comparison/results.json").read_text())
    assert results["seeds"] == [2, 3]
    assert "600 training and 1,197 test images" in results["title"]
    first = results["entries"]["2 workers, k 2, η 1, μ 0"]
    assert first["config"]["learning_rate"] == 0.1
    assert first["measured"]["exchanges"]["final"]["mean"] == 2
    sent = 4 * 650 + 8  # Twice ½ of it in a cycle.
    assert first["measured"]["megabytes"]["final"]["mean"] == pytest.approx(
        2 * sent / 1e6, abs=1e-5
    )
    tuning = json.loads((tmp_path / "runs/mine/tuning/results.json").read_text())
    assert tuning["seeds"] == [0, 1]
    assert "400 training and 200 test images" in tuning["title"], "of which none is a test image"
    assert len(tuning["entries"]) == 4
    capsys.readouterr()
    assert local_training.main(FLAGS.split()) == 0
    assert "compiling" not in capsys.readouterr().out, "what is finished is not run again"


def test_gains_are_paired_with_data_parallel_and_with_what_is_not_added():
    def entry(values, **changes):
        measured = {"accuracy": {"final": {"mean": np.mean(values), "std": 1, "by_seed": values}}}
        measured["megabytes"] = {"final": {"mean": 0.5}}
        return {"config": replace(BASE, **changes).as_json(), "measured": measured}

    entries = {
        "a": entry([1.0, 2.0, 3.0], optimizer="data_parallel", sync_period=1),
        "b": entry([2.0, 4.0, 6.0]),
        "c": entry([2.5, 4.5, 6.5], beta=0.1),
    }
    header, _, a, b, c = rows({"entries": entries}, [Column("accuracy", "accuracy")])
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in (header, a, b, c)]
    assert cells[0] == [
        "",
        "β",
        "learning rate",
        "accuracy",
        "MB sent",
        "gain over data parallel",
        "over β 0",
    ]
    half_width = stats.t.ppf(0.975, 2) / np.sqrt(3)
    assert cells[1][-2:] == ["–", "–"]
    assert cells[2][-2:] == [f"+2.00 ± {half_width:.2f}", "–"]
    assert cells[3][-2:] == [f"+2.50 ± {half_width:.2f}", "+0.50 ± 0.00"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--workers 9", "--workers: must be one for each of the 8 devices, got 9"),
        ("--workers 3", "--batch_size: must be a multiple of the 3 workers, got 8"),
        ("--sync_period 3", "--sync_period: must divide the 4 steps of an epoch, got 3"),
        ("--network resnet", "--network: resnet has BatchNorm, whose running statistics would be"),
        ("--outer 1", "--outer: must be η_μ, got '1'"),
        ("--outer 1_1", "--outer: must be at least 0 and below 1, got '1'"),
        ("--outer 1_0,1_0", "--outer: must be different pairs"),
        ("--send int4", "--send: must be different names among float32, bfloat16, int8"),
        ("--split odd", "--split: must be different names among even, class"),
        ("--save_every 3", "--save_every: must be a multiple of the sync periods 2, got 3"),
        (
            "--dataset python_reference --network narrow_transformer --split class",
            "--split: python_reference has no classes to split by",
        ),
    ],
)
def test_flags_that_are_wrong(flags, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert said in error_line(local_training.main, f"{FLAGS} {flags}", capsys)
    assert not (tmp_path / "runs").exists()
