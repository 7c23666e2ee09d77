"""How well trained weights bear noise.

    python examples/noisy_weights.py

trains a small residual network on scikit-learn's digits with SGD, SAM, ASAM and Lookbehind
(`--optimizers` takes any of the package's), multiplies each weight with a random factor around
1, and plots what is left of the accuracy over the size of this noise. `--help` says what can be
changed.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from experiments.reporting.measures import Measure
from experiments.running import flags, trained
from experiments.running.trained import OnStep, Record
from experiments.studies import noise
from experiments.training import Model, Run, eval_step

Accuracy = Callable[[Any, Any], jax.Array]


def make_parser() -> flags.Parser:
    """The command line."""
    parser = trained.make_parser(
        "noisy_weights.py",
        "Accuracy of trained weights under Gaussian noise of growing size.",
        epochs=15,
        batch_size=64,
    )
    add = parser.add_argument_group("what is measured").add_argument
    add(
        "--sizes",
        type=flags.listed(flags.not_negative),
        default="0,0.1,0.2,0.3,0.4,0.5",
        metavar="LIST",
        help="σ of the noise, relative to each weight (default: %(default)s)",
    )
    add(
        "--draws",
        type=flags.count,
        default=5,
        metavar="N",
        help="of the noise, for each network (default: %(default)s)",
    )
    return parser


def accuracy_of(model: Model) -> Accuracy:
    """The accuracy on the test images, of params and running statistics."""
    dataset = model.dataset
    size = min(dataset.test_size, trained.EXAMPLES)
    pool = jnp.asarray(dataset.test_images[:size]), jnp.asarray(dataset.test_labels[:size])

    @jax.jit
    def accuracy(params: Any, stats: Any) -> jax.Array:
        _, correct = eval_step(model, pool, params, stats, jnp.arange(size), jnp.ones(size, bool))
        return correct / size

    return accuracy


def measure(
    accuracy: Accuracy, sizes: Sequence[float], draws: int, run: Run, seed: int, on_step: OnStep
) -> Record:
    """Trains, and measures the accuracy under noise; `noisy` has the shape (sizes, draws)."""
    params, stats, record = trained.train_one(run, seed, on_step=on_step)
    key = jax.random.key(seed)
    noisy = noise.under_noise(lambda p: accuracy(p, stats), params, sizes, key, draws)
    means = {
        f"accuracy_{size:g}": float(value)
        for size, value in zip(sizes, noisy.mean(axis=1), strict=True)
    }
    return record | means | {"noisy": noisy.tolist()}


def draw(
    sizes: Sequence[float],
    records: Sequence[Record],
    labels: Mapping[str, str],
    title: str,
    folder: Path,
) -> None:
    """The accuracy over the size of the noise, draws of all seeds together."""
    del title
    curves = {
        label: 100 * np.concatenate([r["noisy"] for r in records if r["optimizer"] == name], axis=1)
        for name, label in labels.items()
    }
    noise.plot(curves, sizes, "% of the test images", folder / "noisy_weights.png")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = make_parser()
    args = parser.parse_args(argv)
    runs = trained.runs_of(args, parser, trained.dataset_of(args, parser))
    accuracy = accuracy_of(next(iter(runs.values())).model)
    columns = [Measure(f"accuracy_{size:g}", f"% at\nσ {size:g}", scale=100) for size in args.sizes]
    return trained.carry_out(
        args,
        parser,
        runs,
        partial(measure, accuracy, args.sizes, args.draws),
        columns,
        partial(draw, args.sizes),
    )


if __name__ == "__main__":
    sys.exit(main())
