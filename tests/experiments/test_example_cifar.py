"""The command lines of Lookbehind's released code: what they mean, and a run."""

import json

import example_cifar
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from experiments import data, sweep
from experiments.command_line import single
from experiments.config import Config
from experiments.optimizers import OPTIMIZERS
from experiments.schedules import stages_of, with_milestones_that_fit

from slrla_jax import lookbehind

WEIGHTS = {"kernel": True, "scale": True, "bias": False}
SMALL = ["--dataset", "digits", "--model", "softmax"]


@pytest.fixture
def cifar(monkeypatch):
    """Black pictures in the place of CIFAR, which is not here."""

    def load(name, folder=None):
        classes = {"cifar10": 10, "cifar100": 100}[name]
        images, labels = np.zeros((256, 32, 32, 3), np.uint8), np.zeros(256, np.int32)
        return data.Dataset(
            name=name,
            classes=classes,
            mean=np.zeros(3, np.float32),
            std=np.ones(3, np.float32),
            augmented=True,
            train_images=images,
            train_labels=labels,
            test_images=images,
            test_labels=labels,
        )

    monkeypatch.setattr(data, "load", load)


def run_of(*flags):
    parser = example_cifar.make_parser()
    args = parser.parse_args(flags)
    (run,) = sweep.build(single(example_cifar.config(args), args, parser)).values()
    return run


def some_params():
    rng = np.random.default_rng(0)
    shapes = {"kernel": (4, 3), "scale": (3,), "bias": (3,)}
    return {
        name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()
    }


def grad_fn(params, _=0):
    x = jnp.linspace(-1.0, 2.0, 20).reshape(5, 4)

    def loss(p):
        return jnp.mean(jnp.sin(x @ p["kernel"] * p["scale"] + p["bias"]) ** 2)

    return jax.grad(loss)(params)


def steps_of(tx, params, count=3):
    """The params after each of some steps."""
    state, path = tx.init(params), []
    for _ in range(count):
        updates, state = optax.with_extra_args_support(tx).update(
            grad_fn(params), state, params, grad_fn=grad_fn
        )
        params = optax.apply_updates(params, updates)
        path.append(params)
    return path


def inner(lr=0.1, momentum=0.9, weight_decay=5e-4):
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.sgd(lr, momentum))


@pytest.mark.parametrize(
    ("command", "by_hand"),
    [
        (
            "--minimizer Lookbehind_SAM --rho 0.05 --k 2 --alpha -1",
            lookbehind(inner(), 2, 0.05, "adaptive"),
        ),
        (
            "--minimizer Lookbehind_ASAM --rho 0.5 --k 2 --alpha -1",
            lookbehind(
                inner(), 2, 0.5, "adaptive", adaptive_rho=True, eta=0.0, weight_mask=WEIGHTS
            ),
        ),
        ("--minimizer LookbehindSAM --k 3 --alpha 0.5", lookbehind(inner(), 3, 0.05, 0.5)),
        (
            "--minimizer LookbehindASAM --alpha 0.2 --eta 0.01",
            lookbehind(inner(), 2, 0.5, 0.2, adaptive_rho=True, eta=0.01, weight_mask=WEIGHTS),
        ),
        ("--minimizer SAM --rho 0.1", lookbehind(inner(), 1, 0.1, 1.0)),
        (
            "--minimizer asam",
            lookbehind(inner(), 1, 0.5, 1.0, adaptive_rho=True, eta=0.0, weight_mask=WEIGHTS),
        ),
        (
            "--minimizer SGD --lr 0.3 --momentum 0.5 --weight_decay 0.01",
            inner(0.3, 0.5, 0.01),
        ),
        ("", lookbehind(inner(), 2, 0.05, "adaptive")),
    ],
)
def test_what_a_command_line_means(command, by_hand):
    run = run_of(*SMALL, *command.split())
    params = some_params()
    for got, expected in zip(steps_of(run.tx, params), steps_of(by_hand, params), strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, expected)
    assert run.slow_params is None
    assert run.model.input_norm


@pytest.mark.parametrize(
    ("command", "network", "size"),
    [
        ("--minimizer Lookbehind_SAM --rho 0.05 --k 2 --alpha -1", "ResNet-34", "21,282,122"),
        (
            "--minimizer Lookbehind_ASAM --rho 0.5 --k 2 --alpha -1 --dataset CIFAR100 "
            "--model resnet50",
            "ResNet-50",
            "23,705,252",
        ),
    ],
)
def test_the_released_command_lines(cifar, command, network, size):
    run = run_of(*command.split())
    dataset = "cifar100" if "CIFAR100" in command else "cifar10"
    assert sweep.title_of(run) == (
        f"{dataset}, 256 training and 256 test images; {network}, {size} parameters; "
        "200 epochs, 400 steps of 128 images"
    )
    assert run.dataset.augmented
    assert run.gradients_per_step == 3
    assert [end for _, end in run.stages.ends] == [100, 200, 300, 400]
    np.testing.assert_allclose([rate for rate, _ in run.stages.ends], [0.1, 0.01, 0.001, 1e-4])
    if dataset == "cifar10":
        expected = 255 * np.array([0.2471, 0.2435, 0.2616])
        np.testing.assert_allclose(run.dataset.std, expected, rtol=1e-6)
        np.testing.assert_array_equal(run.model.dataset.std, run.dataset.std)


def quarters(steps):
    """The stages of the released recipe for a run of so many steps."""
    config = Config(milestones=(0.25, 0.5, 0.75), stages_in="steps", decay=0.1)
    return stages_of(with_milestones_that_fit(config, steps, 1), steps, 1)


@pytest.mark.parametrize("name", ["sgd", "sam", "lookbehind_sam", "lookbehind_asam"])
def test_the_learning_rate_is_that_of_the_training_step(name):
    """On a plane the gradient is the same everywhere, and each update shows the learning rate."""
    stages = quarters(9)
    assert [end for _, end in stages.ends] == [2, 4, 6, 9]
    config = Config(momentum=0.0, weight_decay=0.0, ascent_steps=4, slow_step_size=1.0)
    tx = optax.with_extra_args_support(OPTIMIZERS[name].make(config, stages))
    descents = 4 if name.startswith("lookbehind") else 1
    slope = {"kernel": jnp.ones((2, 2))}
    params = {"kernel": jnp.zeros((2, 2))}
    state = tx.init(params)
    for step, rate in enumerate([0.1, 0.1, 0.01, 0.01, 1e-3, 1e-3, 1e-4, 1e-4, 1e-4]):
        updates, state = tx.update(slope, state, params, grad_fn=lambda params, i: slope)
        np.testing.assert_allclose(updates["kernel"], -descents * rate, rtol=1e-5)
        np.testing.assert_allclose(stages.schedule(step), rate, rtol=1e-5)


@pytest.mark.parametrize(
    ("steps", "ends"), [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (4, [1, 2, 3, 4])]
)
def test_a_short_run_has_fewer_stages(steps, ends):
    stages = quarters(steps)
    assert [end for _, end in stages.ends] == ends
    rates = list(stages.learning_rates)
    np.testing.assert_allclose(rates, 0.1 ** np.arange(1, len(ends) + 1))
    np.testing.assert_allclose([stages.schedule(end - 1) for end in ends], rates, rtol=1e-6)


def test_a_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = [*SMALL, "--epochs", "4", "--batch_size", "80", "--exp_name", "tiny", "--lr", "0.5"]
    assert example_cifar.main(flags) == 0
    records = [
        json.loads(line) for line in (tmp_path / "runs/tiny/metrics.jsonl").read_text().splitlines()
    ]
    # Seven batches an epoch, three gradients a batch.
    assert [r["steps"] for r in records] == [0, 7, 14, 21, 28]
    assert [r["gradients"] for r in records] == [0, 21, 42, 63, 84]
    rates = [r["learning_rate"] for r in records]
    np.testing.assert_allclose(rates, [0.5, 0.5, 0.05, 0.005, 0.0005], rtol=1e-5)
    assert [r["stage"] for r in records] == [1, 1, 2, 3, 4]
    assert records[-1]["test_accuracy"] > 0.8
    assert "fast_test_accuracy" not in records[-1]
    settings = json.loads((tmp_path / "runs/tiny/settings.json").read_text())
    assert settings["entries"]["Lookbehind-SAM"]["ascent_steps"] == 2
    assert (tmp_path / "runs/tiny/curves.png").stat().st_size < 300_000
    shown = capsys.readouterr().out
    assert "\nseed 0  epoch 4/4  loss " in shown
    assert "84 gradients per run" in shown


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--minimizer Lookahead", "--minimizer: must be one of sgd, sam, asam, look"),
        ("--alpha -2", "--alpha: must be more than 0 and at most 1, or -1, got '-2'"),
        ("--alpha 0", "--alpha: must be"),
        ("--rho -0.1", "--rho: must be 0 or more, got '-0.1'"),
        ("--k 0", "--k: must be a whole number, at least 1, got '0'"),
        ("--eta -1", "--eta: must be 0 or more"),
        ("--model nope", "--model: must be one of"),
        ("--minimizer SAM --k 5", "error: --k: has no effect on SAM"),
        ("--minimizer SGD --rho 0.5", "error: --rho: has no effect on SGD"),
        ("--minimizer Lookbehind_SAM --eta 0.1", "error: --eta: has no effect on Lookbehind-SAM"),
        ("--input_norm", "unrecognized arguments: --input_norm"),
    ],
)
def test_wrong_flags(tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    try:
        code = example_cifar.main([*SMALL, *flags.split()])
    except SystemExit as exit_:
        code = exit_.code
    assert code == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert list(tmp_path.iterdir()) == []
