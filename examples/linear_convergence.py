"""How fast AdaLoss and its baselines converge where AdaLoss is proved to converge linearly.

    python examples/linear_convergence.py

trains linear regressions and two-layer ReLU networks of several widths with AdaLoss,
AdaGrad-Norm, SGD_Constant and SGD_DecaySqrt, each from many b0. The error is drawn over the steps
on a logarithmic axis, where linear convergence is a straight line, and its slope is measured. It
also tries SGD_Constant around b0 = η L / 2, below which it diverges on a quadratic.
"""

import signal
import sys
from argparse import Namespace
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

if __name__ == "__main__":  # Ctrl-C while the following imports take their seconds is no error.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import numpy as np
from experiments import figures, flags
from experiments.command_line import add_sweep, program, seeds_of
from experiments.flags import Parser
from experiments.optimizers import OPTIMIZERS
from experiments.parts import measured, provenance, run, table_of
from experiments.report import Column, markdown
from experiments.robustness import DIVERGED, add_methods, axes_of, label_of
from experiments.settings import Settings
from experiments.studies.convergence import (
    BASE,
    FLOOR,
    Problem,
    bend,
    drawn,
    errors,
    over_runs,
    problems,
    slope,
)

SLOPE = Column("slope", "slope", form=".4f")
BEND = Column("bend", "bend")
# Where SGD_Constant is tried, in multiples of η L / 2.
MULTIPLES = (0.25, 0.5, 0.9, 0.99, 1.01, 1.1, 2.0, 4.0)
DRAWN = 50  # Points of a curve.


def make_parser() -> Parser:
    """Returns the parser of the command line."""
    parser = Parser(
        prog="linear_convergence.py",
        description="Convergence of AdaLoss and its baselines in linear regression and two-layer "
        "networks, from many b0.",
    )
    add = parser.add_argument_group("problems").add_argument
    add(
        "--widths",
        type=flags.different(flags.count),
        default="100,1000,4000",
        metavar="LIST",
        help="of the networks, comma-separated (default: %(default)s)",
    )
    add(
        "--steps",
        type=flags.number("a whole number, at least 16", lambda n: n >= 16, int),
        default=1_000,
        metavar="N",
        help="steps of each run (default: %(default)s)",
    )
    add_methods(parser)
    add_sweep(parser, seeds=5, name="--name", data=False)
    return parser


def solve(problem: Problem, args: Namespace, seeds: Sequence[int]) -> Settings:
    """Trains with every method, b0 and seed, and measures slopes.

    Returns:
      What `parts.measured` does; `curves` of each entry, the mean over the seeds of log10 of the
      error relative to the first, at the steps in `steps_drawn`; and `around`, the slopes of
      SGD_Constant with b0 in `MULTIPLES` of η L / 2, None where it diverges.
    """
    data = drawn(problem, seeds, args.steps)
    b0 = np.repeat(np.array(args.b0)[:, None], len(seeds), axis=1)
    shown = steps_drawn(args.steps)
    measures, curves = {}, {}
    for name in args.methods:
        paths = errors(problem, name, data, b0)
        measures[name] = {"slope": over_runs(slope, paths), "bend": over_runs(bend, paths)}
        for value, of_value in zip(args.b0, paths[..., shown], strict=True):
            label = label_of(OPTIMIZERS[name].label, value)
            curves[label] = np.log10(of_value / of_value[:, :1]).mean(axis=0)
    limits = np.multiply.outer(MULTIPLES, BASE.learning_rate * data["smoothness"] / 2)
    around = over_runs(slope, errors(problem, "sgd_constant", data, limits))
    return measured(measures, args.b0) | {
        "curves": {label: rounded(curve, 2) for label, curve in curves.items()},
        "around": [rounded(of_multiple, 4) for of_multiple in around],
    }


def steps_drawn(steps: int) -> np.ndarray:
    """Returns the steps at which curves are drawn."""
    return np.unique(np.linspace(0, steps - 1, DRAWN, dtype=int))


def rounded(values: np.ndarray, digits: int) -> list[float | None]:
    """Returns numbers as JSON has them; None for those that are not finite."""
    return [round(float(v), digits) if np.isfinite(v) else None for v in values]


def page(results: Settings) -> str:
    """Returns all tables, in Markdown."""
    seeds, parts = results["seeds"], results["parts"]
    lines = [
        f"{results['steps']:,} steps with η = {BASE.learning_rate:g}; mean ± standard deviation of "
        f"{len(seeds)} seeds, each with a problem of its own. {provenance(results)}",
        "",
        "The slope is that of log10 of the error a step, over the second half of the steps until "
        f"the error is {FLOOR:g} of the first. The bend is the slope of the last quarter of these "
        "steps over that of the second: 1 if convergence is linear, 0.65 if the error falls like "
        "exp(−√t). The error is the squared distance to the solution, and the loss of networks.",
        "",
    ]
    for title, part in parts.items():
        for column in (SLOPE, BEND):
            lines += [f"#### {title}: {column.header}", "", *table_of(part, column, seeds), ""]
    rows = [
        [f"{multiple:g}", *(around(part["around"][n]) for part in parts.values())]
        for n, multiple in enumerate(MULTIPLES)
    ]
    lines += ["#### SGD_Constant with b0 in multiples of η L / 2: slope", ""]
    lines += [*markdown([["b0 / (η L / 2)", *parts], *rows]), ""]
    for picture in pictures(parts):
        lines += [f"![Error over the steps, by method and b0]({picture})", ""]
    return "\n".join(lines)


def around(slopes: Sequence[float | None]) -> str:
    """Returns a cell of the last table: the mean slope, or from how many seeds it diverges."""
    lost = slopes.count(None)
    if lost:
        return DIVERGED if lost == len(slopes) else f"{DIVERGED} ({lost} of {len(slopes)})"
    return f"{np.mean(slopes):.4f}"


def pictures(titles: Iterable[str]) -> dict[str, list[str]]:
    """Returns which problems each picture shows."""
    networks = [title for title in titles if "network" in title]
    regressions = [title for title in titles if "network" not in title]
    return {"regression.png": regressions, "networks.png": networks}


def draw(results: Settings, folder: Path) -> None:
    """Draws the pictures."""
    for picture, titles in pictures(results["parts"]).items():
        draw_errors(results, titles, folder / picture)


def draw_errors(results: Settings, titles: Sequence[str], path: Path) -> None:
    """Draws the error over the steps: a row for each problem, a panel for each method."""
    methods, values = axes_of(results["parts"][titles[0]]["curves"])
    steps = steps_drawn(results["steps"])
    title = (
        f"Error relative to the first, η = {BASE.learning_rate:g}; geometric mean of "
        f"{len(results['seeds'])} seeds"
    )
    size = (2.6 * len(methods) + 1, 2.3 * len(titles) + 0.6)
    with figures.picture(path, size, title, dpi=80) as figure:
        grid = figure.subplots(len(titles), len(methods), sharex=True, sharey=True, squeeze=False)
        for row, problem in zip(grid, titles, strict=True):
            curves = results["parts"][problem]["curves"]
            for axes, name in zip(row, methods, strict=True):
                for label, look in figures.styles([f"b0 = {b0:g}" for b0 in values]):
                    curve = np.array(curves[f"{name}, {label}"], float)
                    axes.plot(steps, 10**curve, linewidth=1.6, **look)
                axes.set(yscale="log", ylim=(FLOOR, 30))
                axes.set_title(name, fontsize=10, pad=6)
                axes.grid(axis="y", color="0.92")
            row[0].set_ylabel(problem.replace(", ", ",\n"), fontsize=9)
        for axes in grid[-1]:
            axes.set_xlabel("step")
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center")


@program(make_parser)
def main(args: Namespace, parser: Parser) -> int:
    """Runs the command line; returns the exit code."""
    seeds = seeds_of(args)
    settings = {
        "methods": args.methods,
        "b0": args.b0,
        "steps": args.steps,
        "seeds": list(seeds),
    }
    parts = {
        title: partial(solve, problem, args, seeds)
        for title, problem in problems(args.widths).items()
    }
    return run(args, parser, "linear_convergence", settings, parts, page, draw)


if __name__ == "__main__":
    sys.exit(main())
