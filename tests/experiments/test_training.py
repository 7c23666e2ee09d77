"""The training loop: devices, evaluation, checkpoints, and resuming after a kill."""

import dataclasses
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import main
import numpy as np
import optax
import pytest
from experiments import data, devices, evaluation, steps, train
from experiments import models as networks
from experiments.checkpoints import CheckpointError, Checkpoints
from experiments.run import Run
from experiments.schedules import Stages
from experiments.signals import Stop
from experiments.steps import Model, init_state, init_weights
from experiments.train import Stopped
from flax import nnx

import slrla_jax

EXAMPLES = Path(main.__file__).parent
PACKAGE = Path(slrla_jax.__file__).parent.parent


@pytest.fixture(scope="module")
def small():
    """A few of the digits: 48 to train on, 50 to test on."""
    whole = data.load("digits").with_training_images(48)
    return dataclasses.replace(
        whole, test_images=whole.test_images[:50], test_labels=whole.test_labels[:50]
    )


class Dropped(nnx.Module):
    """A linear layer behind batch normalisation and dropout: all that a state can have."""

    def __init__(self, image_shape, classes, *, dtype=None, rngs):
        self.norm = nnx.BatchNorm(image_shape[-1], momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.head = nnx.Linear(int(np.prod(image_shape)), classes, dtype=dtype, rngs=rngs)

    def __call__(self, x, *, train):
        x = self.norm(x, use_running_average=not train)
        return self.head(self.dropout(x.reshape(len(x), -1), deterministic=not train))


def make_run(dataset, network=Dropped, *, one_device=True, tx=None, steps=18, **settings):
    make = functools.partial(network, dataset.image_shape, dataset.classes)
    if one_device:
        settings["devices"] = jax.devices()[:1]
    return Run(
        **{
            "label": "test",
            "model": Model(make, dataset),
            "dataset": dataset,
            "tx": tx or slrla_jax.slrla_sgd(0.1, 0.2, 7, 5, 0.5, weight_decay=1e-3),
            "slow_params": slrla_jax.slow_params,
            "stages": Stages((0.1,), (steps,)),
            "epochs": 3,
            "steps_per_epoch": 6,
            "batch_size": 8,
            "recalibrate": network is Dropped,
            **settings,
        }
    )


def records(run, seeds=(0,), **options):
    return [epoch.record for epoch in train.train(run, seeds, **options)]


def saved_state(checkpoints, run, seed=0):
    example = init_state(run.model, run.tx, seed)
    return checkpoints.restore(example)


def as_numbers(tree):
    leaves = [
        jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        for x in jax.tree.leaves(tree)
    ]
    return [np.asarray(x) for x in leaves]


def assert_same_bits(one, other):
    for a, b in zip(as_numbers(one), as_numbers(other), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def assert_close_records(one, other):
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            # One image more or less may be on the right side of a border.
            slack = {"rtol": 1e-4} if "accuracy" not in name else {"atol": 0.03}
            np.testing.assert_allclose(a[name], b[name], err_msg=name, **slack)


# Steps


def test_several_steps_in_one_call_are_the_same_steps(small):
    one, several = (
        records(make_run(small, steps_per_dispatch=n, epochs=2, steps=11)) for n in (1, 4)
    )
    assert_close_records(one, several)
    assert one[-1]["test_loss"] < one[0]["test_loss"]


def test_a_step_takes_the_place_of_the_state_before(small):
    run = make_run(small, networks.SoftmaxRegression)
    compiled = devices.compile_steps(run.model, run.tx, tuple(run.devices), together=False)
    pool = compiled.put_pool((small.train_images, small.train_labels))
    before = compiled.put_state(init_state(run.model, run.tx, 0))
    compiled.train(pool, before, compiled.put_batches(np.arange(8)[None, None]))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))


def test_eight_devices_give_the_run_of_one(small):
    """Batch normalisation over the global batch, recalibration and all."""

    def network(*args, **options):
        layer = Dropped(*args, **options)
        layer.dropout = nnx.Dropout(0.0)
        return layer

    alone = records(make_run(small, network, recalibrate=True))
    shared = make_run(
        small,
        network,
        one_device=False,
        recalibrate=True,
    )
    assert len(shared.devices) == 8
    assert_close_records(alone, records(shared))


def test_the_optimizer_gets_loss_and_further_gradients(small):
    """SAM through the loop, as it is written down; statistics move once a step."""
    run = make_run(small, tx=slrla_jax.sam(optax.sgd(0.1), 0.05), slow_params=None)
    state = init_state(run.model, run.tx, 0)
    batch = np.arange(8)
    pool = (small.train_images, small.train_labels)
    inputs = small.standardise(small.train_images[batch])

    def gradient(params):
        value = functools.partial(
            steps.loss_fn, model=run.model, inputs=inputs, labels=small.train_labels[batch]
        )
        return jax.grad(value, has_aux=True)(params, state.stats)

    first, (stats, _) = gradient(state.params)
    norm = optax.tree.norm(first)
    climbed = jax.tree.map(lambda p, g: p + 0.05 * g / norm, state.params, first)
    second, _ = gradient(climbed)
    want = jax.tree.map(lambda p, g: p - 0.1 * g, state.params, second)
    got, _ = steps.train_step(run.model, run.tx, pool, state, batch)
    for a, b in zip(jax.tree.leaves(got.params), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    for a, b in zip(as_numbers(got.stats), as_numbers(stats), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    assert optax.tree.norm(optax.tree.sub(second, first)) > 1e-3


def test_the_optimizer_gets_the_loss_of_the_batch(small):
    """AdaLoss through the loop is AdaLoss by hand, with the loss that `loss_fn` has."""
    tx = slrla_jax.adaloss(0.1)
    run = make_run(small, networks.SoftmaxRegression, tx=tx, slow_params=None)
    state = init_state(run.model, run.tx, 0)
    batch, pool = np.arange(8), (small.train_images, small.train_labels)
    inputs = small.standardise(small.train_images[batch])
    value_and_grad = jax.value_and_grad(steps.loss_fn, has_aux=True)
    (loss, _), gradients = value_and_grad(
        state.params, state.stats, run.model, inputs, small.train_labels[batch]
    )
    updates, _ = tx.update(gradients, state.opt_state, state.params, value=loss)
    got, reported = steps.train_step(run.model, run.tx, pool, state, batch)
    np.testing.assert_allclose(reported, loss, rtol=1e-6)
    want = optax.apply_updates(state.params, updates)
    for a, b in zip(jax.tree.leaves(got.params), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_augmentation_is_a_function_of_seed_and_step(small):
    one, again, other = (
        records(
            make_run(
                dataclasses.replace(small, augmented=augmented),
                networks.SoftmaxRegression,
                epochs=1,
                steps=6,
            )
        )
        for augmented in (True, True, False)
    )
    assert one == again
    assert one[1]["train_loss"] != other[1]["train_loss"]


def test_images_are_augmented_differently_in_each_step_and_place(small):
    """The same image, eight times in a batch of eight devices, in two steps: not twice alike."""
    seen = []

    class Seeing(networks.SoftmaxRegression):
        def __call__(self, x, *, train):
            jax.debug.callback(lambda x: seen.append(np.asarray(x)), x)
            return super().__call__(x, train=train)

    image = np.random.default_rng(0).uniform(0, 16, (1, 8, 8, 1)).astype(np.float32)
    images = np.repeat(image, 48, axis=0)
    data_ = dataclasses.replace(small, train_images=images, augmented=True)
    run = make_run(data_, Seeing, one_device=False, tx=optax.sgd(0.1), slow_params=None)
    state, pool = init_state(run.model, run.tx, 0), (data_.train_images, data_.train_labels)
    for _ in range(2):
        state, _ = steps.train_step(run.model, run.tx, pool, state, np.arange(8))
    jax.effects_barrier()
    shown = {x.tobytes() for batch in seen for x in batch}
    assert len(seen) == 2
    assert len(shown) > 12  # Of sixteen; a shift may come twice.


# Evaluation


def test_scores_count_every_image_once(small):
    run = make_run(small, networks.SoftmaxRegression)
    params, stats = init_weights(run.model, 0)
    logits = nnx.merge(run.model.graph, params, stats)(
        small.standardise(small.test_images), train=False
    )
    right = np.argmax(logits, -1) == small.test_labels
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, small.test_labels)
    # 50 images on 8 devices: six places in the last batch are empty.
    shared = make_run(small, networks.SoftmaxRegression, one_device=False, epochs=1, steps=1)
    first = records(shared)[0]
    np.testing.assert_allclose(first["test_accuracy"], np.mean(right), rtol=1e-6)
    np.testing.assert_allclose(first["test_loss"], np.mean(losses), rtol=1e-5)


def test_evaluation_uses_running_statistics_and_drops_nothing(small):
    run = make_run(small)
    state = init_state(run.model, run.tx, 0)
    pool = small.test_images, small.test_labels
    counted = np.ones(50, bool)
    loss, right = steps.eval_step(
        run.model, pool, state.params, state.stats, np.arange(50), counted
    )
    inputs = np.asarray(small.standardise(small.test_images), np.float64).reshape(50, -1)
    inputs /= np.sqrt(1 + 1e-5)  # The running statistics are still 0 and 1.
    head = jax.tree.map(lambda x: np.asarray(x, np.float64), state.params["head"])
    logits = inputs @ head["kernel"] + head["bias"]
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(50), small.test_labels]
    np.testing.assert_allclose(loss, losses.sum(), rtol=1e-5)
    assert right == np.sum(logits.argmax(1) == small.test_labels)


def test_evaluation_may_be_rarer(small):
    often, rare = (
        records(make_run(small, networks.SoftmaxRegression, eval_every=n)) for n in (1, 2)
    )
    assert ["test_accuracy" in record for record in rare] == [True, False, True, True]
    for a, b in zip(often, rare, strict=True):
        assert a == b | {name: a[name] for name in a.keys() - b.keys()}


def test_recalibrated_statistics_are_means_over_batches(small):
    run = make_run(small)
    compiled = devices.compile_steps(run.model, run.tx, tuple(run.devices), together=False)
    state = init_state(run.model, run.tx, 0)
    pool = compiled.put_pool((small.train_images, small.train_labels))
    batches = [np.arange(8), np.arange(8, 16), np.arange(3, 11)]
    stats = evaluation.recalibrated(compiled, pool, state.params, state.stats, iter(batches))
    pixels = [np.asarray(small.standardise(small.train_images[b]), np.float64) for b in batches]
    np.testing.assert_allclose(
        stats["norm"]["mean"], np.mean([x.mean((0, 1, 2)) for x in pixels], axis=0), rtol=1e-4
    )
    np.testing.assert_allclose(
        stats["norm"]["var"], np.mean([x.var((0, 1, 2)) for x in pixels], axis=0), rtol=1e-4
    )


# Checkpoints


@pytest.mark.parametrize("moment", [3, 8, 12])
def test_resuming_equals_not_stopping(small, tmp_path, moment):
    """Stopped within a cycle of 5, between anchors of 7 and, but for 12, within an epoch of 6."""
    run = make_run(small)
    whole = Checkpoints(tmp_path / "whole", {"a": 1})
    want = records(run, checkpoints=whole)

    parts = Checkpoints(tmp_path / "parts", {"a": 1}, every=moment)
    before = []
    for epoch in train.train(run, (0,), checkpoints=parts):
        before.append(epoch.record)
        if len(before) == 2:
            break
    parts.wait()
    assert parts.last in (moment, 6)
    assert records(run, checkpoints=parts) == want
    assert_same_bits(saved_state(parts, run)[1], saved_state(whole, run)[1])


def test_a_state_may_be_donated_while_it_is_saved(small, tmp_path):
    """It is large enough for the writing to take longer than the steps that overwrite it."""
    run = make_run(small)
    state = init_state(run.model, run.tx, 0)
    state = state._replace(params=state.params | {"large": jnp.arange(4e6)})
    saved = jax.tree.map(jnp.copy, state)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state):
        return state._replace(params=jax.tree.map(lambda x: x + 1, state.params))

    checkpoints = Checkpoints(tmp_path, {})
    checkpoints.save(1, state, [])
    for _ in range(20):
        state = step(state)
    jax.block_until_ready(state)
    checkpoints.wait()
    assert_same_bits(checkpoints.restore(state)[1], saved)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_the_end_of_an_epoch(small, tmp_path, number):
    run = make_run(small)
    want = Checkpoints(tmp_path / "whole", {})
    records(run, checkpoints=want)
    checkpoints = Checkpoints(tmp_path / "parts", {})
    with Stop() as stop:
        epochs = train.train(run, (0,), checkpoints=checkpoints, stop=stop)
        for _ in range(2):
            next(epochs)
        os.kill(os.getpid(), number)
        with pytest.raises(Stopped, match="stopped after 6 of 18 steps") as stopped:
            next(epochs)
    assert stopped.value.number == number
    records(run, checkpoints=checkpoints)
    assert_same_bits(saved_state(checkpoints, run)[1], saved_state(want, run)[1])


def test_a_request_to_stop_is_granted_within_an_epoch(small, tmp_path):
    class AskedForTheNinthTime:
        times, number = 0, None

        @property
        def requested(self):
            self.times += 1
            return self.times == 9

    run = make_run(small)
    want = records(run)
    checkpoints = Checkpoints(tmp_path, {})
    with pytest.raises(Stopped, match="stopped after 8 of 18 steps"):
        records(run, checkpoints=checkpoints, stop=AskedForTheNinthTime())
    assert checkpoints.last == 8
    assert records(run, checkpoints=checkpoints) == want


def test_seeds_together_are_resumed_too(small, tmp_path):
    run = make_run(small, networks.SoftmaxRegression)
    want = records(run, (1, 2))
    checkpoints = Checkpoints(tmp_path, {}, every=4)
    epochs = train.train(run, (1, 2), checkpoints=checkpoints)
    for _ in range(4):
        next(epochs)
    checkpoints.wait()
    assert records(run, (1, 2), checkpoints=checkpoints) == want


@pytest.mark.parametrize("moment", [None, 23, 26, 29])
def test_an_extended_run_is_one_that_was_longer_from_the_start(small, tmp_path, moment):
    """Stopped in the extension too, or not: after 20 steps in three epochs it has two more of 6."""
    run = make_run(small, steps=20)
    longer = dataclasses.replace(run, epochs=5, stages=run.stages.longer(12), more_epochs=2)
    assert [longer.end_of(epoch) for epoch in range(6)] == [0, 6, 12, 20, 26, 32]
    steps_ = (0, 1, 6, 7, 18, 19, 20, 21, 26, 27, 32)
    assert [longer.epoch_of(step) for step in steps_] == [0, 1, 1, 2, 3, 3, 3, 4, 4, 5, 5]
    whole = Checkpoints(tmp_path / "whole", {})
    want = records(longer, checkpoints=whole)
    assert [record["steps"] for record in want] == [0, 6, 12, 20, 26, 32]

    parts = Checkpoints(tmp_path / "parts", {}, every=moment)
    finished = records(run, checkpoints=parts)
    assert finished == want[:4]
    if moment is not None:

        class AskedAt:
            number = None
            requested = property(lambda self: parts.last == moment)

        with pytest.raises(Stopped, match=f"stopped after {moment} of 32 steps"):
            records(longer, checkpoints=parts, stop=AskedAt())
    assert records(longer, checkpoints=parts) == want
    assert_same_bits(saved_state(parts, run)[1], saved_state(whole, run)[1])


def test_another_number_of_devices_may_resume(small, tmp_path):
    run = make_run(small, networks.SoftmaxRegression, one_device=False)
    want = records(run)
    checkpoints = Checkpoints(tmp_path, {})
    epochs = train.train(run, (0,), checkpoints=checkpoints)
    for _ in range(2):
        next(epochs)
    checkpoints.wait()
    assert_close_records(
        records(dataclasses.replace(run, devices=jax.devices()[:4]), checkpoints=checkpoints), want
    )


def test_a_checkpoint_of_another_run_is_refused(small, tmp_path):
    run = make_run(small, networks.SoftmaxRegression, epochs=1, steps=2)
    records(run, checkpoints=Checkpoints(tmp_path, {"lr": 0.1, "k": 5}))
    with pytest.raises(CheckpointError, match=r"of another run: lr is 0.1 there and 0.2 here$"):
        records(run, checkpoints=Checkpoints(tmp_path, {"lr": 0.2, "k": 5}))
    both = r"--lr is 0.1 there and 0.2 here, --k is 5 there and not given here$"
    with pytest.raises(CheckpointError, match=both):
        records(run, checkpoints=Checkpoints(tmp_path, {"lr": 0.2}, flag_of=lambda n: f"--{n}"))


def test_a_state_with_other_arrays_is_refused(small, tmp_path, capfd):
    """As other data under the same name would have it; no word of Orbax's is needed."""
    run = make_run(small, networks.SoftmaxRegression, epochs=1, steps=2)
    records(run, checkpoints=Checkpoints(tmp_path, {}))
    larger = dataclasses.replace(
        small,
        train_images=small.train_images.repeat(2, axis=1),
        test_images=small.test_images.repeat(2, axis=1),
    )
    other = make_run(larger, networks.SoftmaxRegression, epochs=1, steps=2)
    capfd.readouterr()
    with pytest.raises(CheckpointError, match=r"float32\[64,10\] there and float32\[128,10\] here"):
        records(other, checkpoints=Checkpoints(tmp_path, {}))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("part", ["state", "progress"])
def test_a_damaged_checkpoint_is_one_line(small, tmp_path, part):
    run = make_run(small, networks.SoftmaxRegression, epochs=1, steps=2)
    records(run, checkpoints=Checkpoints(tmp_path, {}))
    files = [path for path in (tmp_path / "2" / part).rglob("*") if path.is_file()]
    assert files
    for path in files:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=r"2 cannot be read: ") as error:
        records(run, checkpoints=Checkpoints(tmp_path, {}))
    assert "\n" not in str(error.value)


def test_flipped_bits_are_noticed(small, tmp_path):
    """In the arrays of the newest checkpoint; the message names the older one beside it."""
    run = make_run(small, networks.SoftmaxRegression, epochs=1, steps=4)
    saved = Checkpoints(tmp_path / "saved", {}, every=2)
    records(run, checkpoints=saved)
    _, state, _ = saved_state(saved, run)
    rng, said = np.random.default_rng(0), []
    for n in range(12):  # Each in a folder of its own: what was read once is not read again.
        folder = tmp_path / str(n)
        shutil.copytree(tmp_path / "saved", folder)
        files = [path for path in (folder / "4" / "state").rglob("*") if path.is_file()]
        file = max(files, key=lambda path: path.stat().st_size)
        content = bytearray(file.read_bytes())
        content[rng.integers(len(content))] ^= 1
        file.write_bytes(content)
        try:
            assert_same_bits(saved_state(Checkpoints(folder, {}), run)[1], state)
        except CheckpointError as error:
            said.append(str(error))
    assert len(said) >= 6
    assert all("to resume from step 2" in message and "\n" not in message for message in said)


def test_divergence_names_the_last_good_checkpoint(small, tmp_path):
    huge = optax.join_schedules([lambda _: 0.1, lambda _: 1e38], [8])
    run = make_run(small, networks.SoftmaxRegression, tx=optax.sgd(huge), slow_params=None)
    checkpoints = Checkpoints(tmp_path, {})
    with pytest.raises(train.Diverged, match=r"in epoch 2 .*the last good checkpoint: 6"):
        records(run, checkpoints=checkpoints)
    checkpoints.wait()
    assert checkpoints.last == 6


# The program


def command(tmp_path, *flags):
    return [
        sys.executable,
        str(EXAMPLES / "main.py"),
        *("--dataset", "digits", "--network", "softmax", "--input_norm", "--tr_epochs", "4"),
        *("--seeds", "2", "--train_batch_size", "48", "--save_every", "4"),
        *("--lookahead", "5_0.8", "--slr", "7_0.2"),
        *("--root", str(tmp_path)),
        *flags,
    ]


def environment():
    paths = [str(PACKAGE), os.environ.get("PYTHONPATH", "")]
    kept = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    return {**kept, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def run_program(tmp_path, *flags, **options):
    return subprocess.run(
        command(tmp_path, *flags),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        **options,
    )


def metrics(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    return [{k: v for k, v in r.items() if k not in ("timing", "optimizer")} for r in found]


def last_state(folder, seed):
    """The bytes of the last state on disk, read without the program."""
    import orbax.checkpoint as ocp

    with ocp.CheckpointManager(folder / "checkpoints" / f"seed_{seed}") as manager:
        step = manager.latest_step()
        return step, manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore())
        ).state


KILLS = int(os.environ.get("SLRLA_KILLS", "2"))


def test_killed_and_resumed_it_ends_as_if_it_had_not_been(tmp_path):
    """SIGKILL at random moments; the number of them may be set for a longer test."""
    done = run_program(tmp_path, "--exp_name", "whole")
    assert done.returncode == 0, done.stderr
    rng = np.random.default_rng(0)
    killed = 0
    while killed < KILLS:
        process = subprocess.Popen(
            command(tmp_path, "--exp_name", "parts", "--resume"),
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        # It is killed when it has begun so many more saves, the last perhaps only half done.
        wanted = rng.integers(1, 4)
        seen = set(saves(tmp_path / "parts"))
        while process.poll() is None and len(set(saves(tmp_path / "parts")) - seen) < wanted:
            pass
        if process.poll() is not None:
            break
        process.kill()
        killed += 1
        assert process.wait() == -signal.SIGKILL
    assert killed == KILLS
    done = run_program(tmp_path, "--exp_name", "parts", "--resume")
    assert done.returncode == 0, done.stderr
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    for seed in (0, 1):
        (step, want), (again, got) = (last_state(tmp_path / n, seed) for n in ("whole", "parts"))
        assert step == again == 48
        assert_same_bits(got, want)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_mid_save_is_one_true_line(tmp_path, number, code):
    """It comes while the second checkpoint is written; what is said last can be relied on."""
    process = subprocess.Popen(
        command(tmp_path, "--exp_name", "run", "--seeds", "1"),
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and len(saves(tmp_path / "run")) < 2:
        pass
    process.send_signal(number)
    said = process.communicate(timeout=120)[1].splitlines()
    assert process.returncode == code, said
    assert "Traceback" not in "".join(said)
    step = int(re.fullmatch(r"main.py: stopped after (\d+) of 48 steps; .*", said[-1])[1])
    assert said[-1].endswith("; --resume resumes from there")
    assert last_state(tmp_path / "run", 0)[0] == step
    assert not (tmp_path / "run/.lock").exists()


def test_a_second_signal_ends_it_at_once(tmp_path):
    code = (
        "import os, signal, time\nfrom experiments.signals import Stop\n"
        "with Stop() as stop:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    assert stop.requested and stop.number == signal.SIGINT\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('never')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=EXAMPLES, check=False
    )
    assert (done.returncode, done.stdout) == (143, "")
    assert done.stderr.strip() == "stopping after this step; once more to stop at once"


def saves(folder):
    """Checkpoints that are there or being written."""
    return [str(path) for path in folder.glob("checkpoints/seed_*/[0-9]*")]


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path):
    """A limit on the size of files stands for it: to write beyond is an error as well."""
    limited = (
        "import resource, runpy, signal, sys\n"
        "from experiments.checkpoints import Checkpoints\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "save = Checkpoints.save\n"
        "def limit(self, step, *rest):\n"
        "    if step >= 8:\n"
        "        self.wait()\n"
        "        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        "    save(self, step, *rest)\n"
        "Checkpoints.save = limit\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    program = command(tmp_path, "--exp_name", "full")
    environment_ = environment()
    environment_["PYTHONPATH"] += os.pathsep + str(EXAMPLES)
    done = subprocess.run(
        [program[0], "-c", limited, *program[1:]],
        env=environment_,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "cannot be written" in done.stderr
    assert "the last good one is of step 4" in done.stderr
    assert run_program(tmp_path, "--exp_name", "full", "--resume").returncode == 0
    assert run_program(tmp_path, "--exp_name", "whole").returncode == 0
    assert metrics(tmp_path / "full") == metrics(tmp_path / "whole")
