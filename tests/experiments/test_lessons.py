"""The lessons in `examples/`: run as a user runs them, and read as a reader finds them."""

import ast
import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
import sam_batchnorm
import slrla_stages
from flax import nnx

import slrla_jax

ROOT = Path(slrla_jax.__file__).parent.parent

# The accuracy in percent that every "final test accuracy" must reach, and how many there are.
LESSONS = {
    "lookahead_flax": (97, 1),
    "slrla_stages": (95, 1),
    "sam_batchnorm": (93, 2),
    "data_parallel": (95, 1),
    "checkpoints": (93, 1),
    "linen_train_state": (96, 1),
    "gan_lookahead": (80, 2),
}
ALLOWED = {"slrla_jax", "optax", "flax", "jax", "numpy", "sklearn"}

every_lesson = pytest.mark.parametrize("name", LESSONS)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs a lesson once, in a folder of its own and without the tests' eight devices."""

    @functools.cache
    def run(name):
        folder = tmp_path_factory.mktemp(name)
        paths = filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        env.pop("XLA_FLAGS", None)
        done = subprocess.run(
            [sys.executable, ROOT / "examples" / f"{name}.py"],
            cwd=folder,
            env=env,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout, folder

    return run


def source(name):
    return (ROOT / "examples" / f"{name}.py").read_text()


def imported(name):
    """The top-level modules that a lesson imports, wherever it does."""
    found = set()
    for node in ast.walk(ast.parse(source(name))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("." * node.level + (node.module or "").split(".")[0])
    return found


def accuracies(output):
    return [float(x) for x in re.findall(r"final test accuracy.*: ([\d.]+)%", output)]


@every_lesson
def test_it_trains_to_its_accuracy(name, run):
    output, _ = run(name)
    least, number = LESSONS[name]
    found = accuracies(output)
    assert len(found) == number, output
    assert min(found) >= least, output


@every_lesson
def test_it_prints_a_few_lines(name, run):
    lines = run(name)[0].splitlines()
    assert 3 <= len(lines) <= 14
    assert all(len(line) <= 120 for line in lines)


@every_lesson
def test_its_docstring_has_the_command_and_the_result(name, run):
    docstring = ast.get_docstring(ast.parse(source(name)))
    assert f"    python examples/{name}.py\n" in docstring
    assert re.search(r"\d+ s \(\d+ s of CPU time\)", docstring)
    # The digits that are left of the result elsewhere may be others, by the rounding of a machine.
    stated = [float(x) for x in re.findall(r"([\d.]+) %", docstring)]
    assert len(stated) == LESSONS[name][1]
    np.testing.assert_allclose(stated, accuracies(run(name)[0]), atol=2)


@every_lesson
def test_it_is_short_and_of_the_usual_shape(name):
    assert 60 <= len(source(name).splitlines()) <= 135
    functions = {
        node.name for node in ast.parse(source(name)).body if isinstance(node, ast.FunctionDef)
    }
    assert {"loss_fn", "train_step", "eval_step", "main"} <= functions


@every_lesson
def test_it_imports_nothing_else(name):
    allowed = ALLOWED | sys.stdlib_module_names
    assert imported(name) - allowed == ({"orbax"} if name == "checkpoints" else set())


@every_lesson
def test_it_is_in_the_table(name):
    readme = (ROOT / "examples" / "README.md").read_text()
    lessons = readme.split("## Lessons")[1].split("\n## ")[0]
    assert len(re.findall(rf"^\| `{name}\.py` \|", lessons, re.MULTILINE)) == 1


def test_slow_weights_are_others_than_fast_ones_in_mid_cycle(run):
    for name in ("lookahead_flax", "linen_train_state"):
        pairs = re.findall(r"([\d.]+)% with the fast weights, ([\d.]+)%", run(name)[0])
        assert len(pairs) == 8
        assert sum(fast != slow for fast, slow in pairs) >= 3


def test_one_lookahead_and_two_differ_in_alternating_steps_alone(run):
    """At the first sync only the generator's last gradient is another."""
    lines = run("gan_lookahead")[0].splitlines()[:2]
    apart = re.compile(r"(\w+), .* discriminators (\S+), generators (\S+) apart")
    (one, *same), (other, discriminators, generators) = (apart.fullmatch(x).groups() for x in lines)
    assert (one, other) == ("simultaneous", "alternating")
    assert same == ["0", "0"]
    assert discriminators == "0"
    assert 0 < float(generators) < 0.1


def test_stages_anchor_at_the_weights_that_they_begin_with():
    (images, labels), _ = slrla_stages.load_data()
    model = slrla_stages.MLP(nnx.Rngs(0))
    stages = [slrla_jax.Stage(1, 0.1, 0.1, 2), slrla_jax.Stage(2, 0.1, 0.1, 2)]
    optimizer = nnx.Optimizer(model, slrla_jax.slrla(optax.sgd, stages), wrt=nnx.Param)
    for step in range(6):
        found = jax.device_get(nnx.as_pure(nnx.state(model, nnx.Param)))
        slrla_stages.train_step(model, optimizer, images[:32], labels[:32])
        if step in (0, 2):
            begins = found
        anchor = nnx.as_pure(optax.tree.get(optimizer.opt_state, "anchor_params"))
        assert jax.tree.all(jax.tree.map(np.array_equal, anchor, begins)), step


def test_stages_have_the_epochs_that_they_are_made_of():
    assert slrla_stages.cycles(4, 5) == 30  # 4 · 37 = 148 steps, and two more to end on a sync
    assert slrla_stages.cycles(5, 5) == 37


@pytest.mark.parametrize("make", [slrla_jax.sam, slrla_jax.lookbehind])
def test_statistics_are_those_of_the_unperturbed_pass(make):
    (images, labels), _ = sam_batchnorm.load_data()
    batch = images[:32], labels[:32]
    params, stats = sam_batchnorm.PARAMS, sam_batchnorm.STATS
    tx = make(optax.sgd(0.1), rho=1.0)
    _, expected = jax.jit(sam_batchnorm.loss_fn)(params, stats, *batch)
    _, after, _, _ = sam_batchnorm.train_step(tx, params, stats, tx.init(params), *batch)
    assert optax.tree.allclose(after, expected, rtol=1e-5)
    assert not optax.tree.allclose(after, stats, rtol=1e-2)


def test_lookbehind_counts_its_own_steps_to_the_end_of_the_decay():
    assert float(rate_after(1, sam_batchnorm.EPOCHS * sam_batchnorm.STEPS_PER_EPOCH)) == 0
    assert float(rate_after(2, sam_batchnorm.EPOCHS * sam_batchnorm.STEPS_PER_EPOCH)) == (
        pytest.approx(0.05)
    )


def rate_after(inner_steps, steps):
    """The learning rate that the descent has after so many steps of its own, from its update."""
    tx = sam_batchnorm.descent(inner_steps)
    state = optax.tree.set(tx.init(0.0), count=steps)
    return -tx.update(1.0, state)[0]


def test_data_parallel_has_eight_devices(run):
    lines = run("data_parallel")[0].splitlines()
    assert lines[0] == "8 devices, 8 images of each batch on each of them"
    for line, way in zip(lines[1:], ("pmap", "sharded jit"), strict=False):
        distance = re.fullmatch(rf"{way}: .* one device to within (\S+)", line)[1]
        assert float(distance) < 1e-5


def test_checkpoints_are_resumed_and_evaluated_elsewhere(run):
    output, folder = run("checkpoints")
    assert output.startswith("resumed at step 101: bit-for-bit the uninterrupted run at step 202\n")
    assert {"101", "202", "slow_weights.npz"} <= set(os.listdir(folder / "runs" / "checkpoints"))


def test_exported_weights_need_flax_or_numpy_alone(run):
    output, folder = run("checkpoints")
    (stated,) = accuracies(output)
    assert float(re.search(r"in NumPy alone: ([\d.]+)%", output)[1]) == stated

    code = EVALUATION.format(path=str(folder / "runs/checkpoints/slow_weights.npz"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    in_flax, in_numpy = map(float, done.stdout.split())
    assert (round(in_flax, 2), round(in_numpy, 2)) == (stated, stated)


EVALUATION = """
import sys
import numpy as np
from sklearn.datasets import load_digits

w = dict(np.load({path!r}))
images, labels = load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(1797)[1200:]
images, labels = np.float32(images[order] / 16), labels[order]
logits = np.maximum(images @ w["hidden/kernel"] + w["hidden/bias"], 0)
logits = logits @ w["output/kernel"] + w["output/bias"]
in_numpy = 100 * (logits.argmax(-1) == labels).mean()
assert "jax" not in sys.modules

from flax import linen as nn
from flax.traverse_util import unflatten_dict

class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(10, name="output")(nn.relu(nn.Dense(128, name="hidden")(x)))

logits = Net().apply({{"params": unflatten_dict(w, sep="/")}}, images)
print(100 * float((logits.argmax(-1) == labels).mean()), in_numpy)
assert "slrla_jax" not in sys.modules
"""
