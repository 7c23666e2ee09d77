"""How sharp the minima are that optimizers find.

    python examples/sharpness.py

trains a small residual network on scikit-learn's digits with SGD, SAM, ASAM and Lookbehind
(`--optimizers` takes others), and measures the largest eigenvalue of the Hessian and the rise of
the loss within a ball around the weights. `--help` says what can be changed.
"""

import signal
import sys
from argparse import Namespace
from functools import lru_cache

if __name__ == "__main__":  # Ctrl-C while the following imports take their seconds is no error.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import jax
import jax.numpy as jnp
from experiments import flags, study, sweep
from experiments.command_line import program
from experiments.flags import Parser
from experiments.records import Record
from experiments.report import Column
from experiments.run import Run, evaluated_weights
from experiments.steps import Model, init_weights, loss_fn
from experiments.studies.sharpness import Loss, largest_eigenvalue, worst_loss
from experiments.train import Epoch

NOTE = (
    "Test accuracy in %; on the first training images, normalised by their own statistics: the "
    "loss, the Hessian's largest eigenvalue, and the rise to the largest loss found within ρ"
)


def make_parser() -> Parser:
    """Returns the parser of the command line."""
    parser = study.make_parser(
        "sharpness.py",
        "Sharpness of trained weights: the Hessian's largest eigenvalue, the worst loss nearby.",
        epochs=15,
        batch_size=64,
    )
    add = parser.add_argument_group("measurement").add_argument
    add(
        "--rho",
        dest="radius",  # `rho` is the optimizer's.
        type=flags.positive,
        default=0.05,
        metavar="ρ",
        help="radius around the weights within which the worst loss is searched for (default: "
        "%(default)s)",
    )
    add(
        "--examples",
        type=flags.count,
        default=256,
        metavar="N",
        help="training images that the loss is taken over (default: %(default)s)",
    )
    add(
        "--iterations",
        type=flags.count,
        default=15,
        metavar="N",
        help="Lanczos iterations, each a Hessian-vector product (default: %(default)s)",
    )
    return parser


@lru_cache(maxsize=1)  # What is compiled belongs to the function, so all runs share one.
def batch_loss(model: Model, examples: int) -> Loss:
    """Returns the loss on the first training images, normalised by their own statistics."""
    images, labels = (jnp.asarray(x[:examples]) for x in model.dataset.pool("train"))
    _, stats = init_weights(model, 0)  # In training mode they have no influence.
    inputs = model.dataset.standardise(images, model.input_norm)
    return jax.jit(lambda params: loss_fn(params, stats, model, inputs, labels)[0])


def measure(
    run: Run, seed: int, epoch: Epoch, *, radius: float, examples: int, iterations: int
) -> Record:
    """Measures the sharpness of the evaluated weights."""
    params, _ = evaluated_weights(run, epoch.state)
    loss, key = batch_loss(run.model, examples), jax.random.key(seed)
    found = largest_eigenvalue(loss, params, key, iterations)
    here = float(loss(params))
    return {
        "loss": here,
        "eigenvalue": found.value,
        "residual": found.residual,
        "rise": worst_loss(loss, params, radius, key, steps=10, starts=2) - here,
    }


@program(make_parser)
def main(args: Namespace, parser: Parser) -> int:
    """Runs the command line; returns the exit code."""
    options = {"radius": args.radius, "examples": args.examples, "iterations": args.iterations}
    columns = (
        Column("accuracy", "test_accuracy"),
        Column("training loss", "loss", form=".4f"),
        Column("eigenvalue", "eigenvalue", form=".3g"),
        Column(f"rise, ρ = {args.radius:g}", "rise", form=".4f"),
    )

    def measure_it(run: Run, seed: int, epoch: Epoch) -> Record:
        return measure(run, seed, epoch, **options)

    return sweep.run(study.sweep_of(args, parser, columns, NOTE, options, measure=measure_it))


if __name__ == "__main__":
    sys.exit(main())
