"""How well trained weights bear noise.

    python examples/noisy_weights.py

trains a small residual network on scikit-learn's digits with SGD, SAM, ASAM and Lookbehind
(`--optimizers` takes others), multiplies each weight by a random factor around 1, and plots the
accuracy that is left over the size of this noise. `--help` says what can be changed.
"""

import signal
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # Ctrl-C while the following imports take their seconds is no error.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import jax
import jax.numpy as jnp
import numpy as np
from experiments import figures, flags, study, sweep
from experiments.command_line import program
from experiments.flags import Parser
from experiments.records import Record
from experiments.report import Column
from experiments.run import Run, evaluated_weights
from experiments.steps import Model, eval_step
from experiments.studies.noise import under_noise
from experiments.sweep import Results
from experiments.train import Epoch

# Of a large data set so many test images are enough.
EXAMPLES = 2_000


def make_parser() -> Parser:
    """Returns the parser of the command line."""
    parser = study.make_parser(
        "noisy_weights.py",
        "Accuracy of trained weights under Gaussian noise of increasing size.",
        epochs=15,
        batch_size=64,
    )
    add = parser.add_argument_group("measurement").add_argument
    add(
        "--sizes",
        type=flags.listed(flags.not_negative),
        default="0,0.1,0.2,0.3,0.4,0.5",
        metavar="LIST",
        help="σ of the noise, relative to each weight, comma-separated (default: %(default)s)",
    )
    add(
        "--draws",
        type=flags.count,
        default=5,
        metavar="N",
        help="draws of the noise for each network (default: %(default)s)",
    )
    return parser


@lru_cache(maxsize=1)  # What is compiled belongs to the function, so all runs share one.
def accuracy_of(model: Model) -> Callable[[Any, Any], jax.Array]:
    """Returns the accuracy on the test images as a function of params and statistics."""
    size = min(model.dataset.test_size, EXAMPLES)
    pool = tuple(jnp.asarray(x[:size]) for x in model.dataset.pool("test"))

    @jax.jit
    def accuracy(params: Any, stats: Any) -> jax.Array:
        _, correct = eval_step(model, pool, params, stats, jnp.arange(size), jnp.ones(size, bool))
        return correct / size

    return accuracy


def measure(run: Run, seed: int, epoch: Epoch, *, sizes: Sequence[float], draws: int) -> Record:
    """Measures the accuracy under noise; `noisy` has the shape (sizes, draws)."""
    params, stats = evaluated_weights(run, epoch.state)
    accuracy = accuracy_of(run.model)
    noisy = under_noise(lambda p: accuracy(p, stats), params, sizes, jax.random.key(seed), draws)
    means = zip(sizes, noisy.mean(axis=1), strict=True)
    return {f"accuracy_{size:g}": float(mean) for size, mean in means} | {"noisy": noisy.tolist()}


def draw(results: Results, title: str, path: Path, *, sizes: Sequence[float]) -> None:
    """Draws the accuracy over the size of the noise, the draws of all seeds together."""
    with figures.picture(path, (7, 4.4), f"{title}; mean ± deviation of all draws") as figure:
        axes = figure.subplots()
        for label, look in figures.styles(list(results.runs)):
            noisy = [
                r["noisy"] for r in results.records if r["optimizer"] == label and "noisy" in r
            ]
            values = 100 * np.concatenate(noisy, axis=1)
            mean, deviation = values.mean(axis=1), values.std(axis=1)
            axes.plot(sizes, mean, linewidth=1.8, **look)
            band = {"color": look["color"], "alpha": 0.15, "linewidth": 0}
            axes.fill_between(sizes, mean - deviation, mean + deviation, **band)
        axes.set(xlabel="noise σ, relative to each weight", ylabel="% of the test images")
        axes.legend()


@program(make_parser)
def main(args: Namespace, parser: Parser) -> int:
    """Runs the command line; returns the exit code."""
    options = {"sizes": args.sizes, "draws": args.draws}
    note = f"Test accuracy in % under noise of σ times each weight, {args.draws} draws per network"
    columns = [Column(f"σ = {size:g}", f"accuracy_{size:g}") for size in args.sizes]

    def measure_it(run: Run, seed: int, epoch: Epoch) -> Record:
        return measure(run, seed, epoch, **options)

    def draw_it(results: Results, title: str, path: Path) -> None:
        draw(results, title, path, sizes=args.sizes)

    return sweep.run(
        study.sweep_of(args, parser, columns, note, options, draw_it, measure=measure_it)
    )


if __name__ == "__main__":
    sys.exit(main())
