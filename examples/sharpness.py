"""How sharp the minima are that optimizers find.

    python examples/sharpness.py

trains a small residual network on scikit-learn's digits with SGD, SAM, ASAM and Lookbehind
(`--optimizers` takes any of the package's), and measures, of the loss on some training images
as one batch, the Hessian's largest eigenvalue and the worst loss within a distance ρ.
`--help` says what can be changed.
"""

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
from experiments.reporting import measures
from experiments.reporting.measures import Measure
from experiments.running import flags, trained
from experiments.running.trained import OnStep, Record
from experiments.studies.sharpness import Loss, largest_eigenvalue, worst_loss
from experiments.training import Run, init_state, loss_fn

COLUMNS = (
    Measure("test_accuracy", "accuracy\nin %", scale=100),
    Measure("loss", "training\nloss", ".4f"),
    Measure("eigenvalue", "largest\neigenvalue", ".3g"),
    Measure("rise", "rise of loss\nwithin ρ", ".4f"),
)


def make_parser() -> flags.Parser:
    """The command line."""
    parser = trained.make_parser(
        "sharpness.py",
        "Sharpness of trained weights: the Hessian's largest eigenvalue, the worst loss nearby.",
        epochs=15,
        batch_size=64,
    )
    add = parser.add_argument_group("what is measured").add_argument
    add(
        "--rho",
        type=flags.positive,
        default=0.05,
        metavar="ρ",
        help="how far from the weights the worst loss is looked for (default: %(default)s)",
    )
    add(
        "--examples",
        type=flags.count,
        default=256,
        metavar="N",
        help="training images that the loss is of (default: %(default)s)",
    )
    add(
        "--iterations",
        type=flags.count,
        default=15,
        metavar="N",
        help="of Lanczos, products of the Hessian with a vector (default: %(default)s)",
    )
    return parser


def batch_loss(run: Run, examples: int) -> Loss:
    """The loss on the first training images, normalised by their own statistics."""
    images, labels = (
        jnp.asarray(x[:examples]) for x in (run.dataset.train_images, run.dataset.train_labels)
    )
    stats = init_state(run.model, run.tx, 0).stats  # They have no influence.
    inputs = run.dataset.standardise(images, run.model.input_norm)
    return jax.jit(lambda params: loss_fn(params, stats, run.model, inputs, labels)[0])


def measure(
    loss: Loss, rho: float, iterations: int, run: Run, seed: int, on_step: OnStep
) -> Record:
    """Trains, and measures the sharpness."""
    params, _, record = trained.train_one(run, seed, on_step=on_step)
    key = jax.random.key(seed)
    found = largest_eigenvalue(loss, params, key, iterations)
    here = float(loss(params))
    return record | {
        "loss": here,
        "eigenvalue": found.value,
        "residual": found.residual,
        "rise": worst_loss(loss, params, rho, key, steps=10, starts=2) - here,
    }


def draw(records: Sequence[Record], labels: Mapping[str, str], title: str, folder: Path) -> None:
    """The two measures of sharpness beside the accuracy."""
    measures.plot(records, labels, COLUMNS, title, folder / "sharpness.png")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = make_parser()
    args = parser.parse_args(argv)
    runs = trained.runs_of(args, parser, trained.dataset_of(args, parser))
    # One function for all, since what is compiled belongs to it.
    loss = batch_loss(next(iter(runs.values())), args.examples)
    return trained.carry_out(
        args, parser, runs, partial(measure, loss, args.rho, args.iterations), COLUMNS, draw
    )


if __name__ == "__main__":
    sys.exit(main())
