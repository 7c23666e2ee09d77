"""Theorems 1 to 4 on Lookahead, run: what they predict, beside what is measured.

    python examples/theory.py

Problems whose population risk and empirical minimum are known, all α, β and data sets of which are
trained at once. Errors of optimisation and generalisation and the excess risk are measured against
what a theorem says they depend on, and exponents are fitted. `--help` says what can be changed.
"""

import signal
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # Ctrl-C while the following imports take their seconds is no error.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import jax
import numpy as np
from experiments import flags
from experiments.command_line import add_sweep, program, seeds_of
from experiments.config import SettingError
from experiments.flags import Parser
from experiments.parts import provenance, run
from experiments.report import markdown
from experiments.theory import (
    convex,
    polyak_lojasiewicz,
    promise,
    regulariser,
    stability,
    stages,
    strongly_convex,
    sync_period,
)
from experiments.theory.plots import number

STUDIES = {
    "convex": convex,
    "strongly_convex": strongly_convex,
    "polyak_lojasiewicz": polyak_lojasiewicz,
    "sync_period": sync_period,
    "stages": stages,
    "promise": promise,
    "regulariser": regulariser,
    "stability": stability,
}
# The parts of the results by their titles: each a study and one of its problems.
PARTS = {
    f"{study.TITLE}: {problem}": (name, problem)
    for name, study in STUDIES.items()
    for problem in study.PROBLEMS
}
LEAST = 2_000  # Steps; with fewer not every problem has a first stage of Theorem 4.
DIGITS = 4
FORM = ".3g"


def make_parser() -> Parser:
    """Returns the parser of the command line."""
    parser = Parser(
        prog="theory.py",
        description="Measure what Theorems 1 to 4 on Lookahead and SLRLA predict, on problems "
        "whose population risk and empirical minimum are known. Every seed draws a data set, and "
        "which sample each step takes.",
    )
    add = parser.add_argument_group("experiments").add_argument
    add(
        "--theorems",
        type=flags.names_among(STUDIES),
        default=",".join(STUDIES),
        metavar="LIST",
        help="comma-separated, of %(default)s (default: all)",
    )
    add(
        "--steps",
        type=flags.number(f"a whole number, at least {LEAST:,}", lambda n: n >= LEAST, int),
        default=40_000,
        metavar="N",
        help="gradients of the longest runs (default: %(default)s)",
    )
    add_sweep(parser, seeds=20, name="--name", data=False)
    return parser


def parts_of(args: Namespace, data_sets: int) -> dict[str, Callable[[], Any]]:
    """Returns what computes each problem of the theorems that are asked for."""

    def compute(study: Any, problem: str) -> Any:
        with jax.enable_x64(True):
            return plain(study.measure(study.PROBLEMS[problem], data_sets, args.steps))

    return {
        title: partial(compute, STUDIES[name], problem)
        for title, (name, problem) in PARTS.items()
        if name in args.theorems
    }


def plain(tree: Any) -> Any:
    """Returns what JSON has, with so many digits as pictures need."""
    if isinstance(tree, Mapping):
        return {name: plain(value) for name, value in tree.items()}
    if isinstance(tree, list | tuple | np.ndarray):
        return [plain(value) for value in tree]
    if isinstance(tree, float):
        return float(f"{tree:.{DIGITS}g}") if np.isfinite(tree) else None
    return tree.item() if isinstance(tree, np.generic) else tree


def picture_of(title: str) -> str:
    """Returns the name of a part's picture."""
    return f"{'_'.join(PARTS[title])}.png".replace(" ", "_")


def computed(results: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Returns title, study and results of the parts that there are, in the order of `PARTS`."""
    parts = results["parts"]
    return [
        (title, STUDIES[name], parts[title]) for title, (name, _) in PARTS.items() if title in parts
    ]


def page(results: Mapping[str, Any]) -> str:
    """Returns the tables, in Markdown."""
    lines = []
    for title, study, part in computed(results):
        lines += [f"#### {title}", "", f"{study.PREDICTION}.", "", part["text"] + ".", ""]
        rows = [("what", "predicted", "measured", "95 % interval")]
        rows += [
            (row["what"], number(row["predicted"], "g"), number(row["value"], FORM), between(row))
            for row in part["fits"]
        ]
        lines += [*markdown(rows), "", f"![{title}]({picture_of(title)})", ""]
    return "\n".join([*lines, provenance(results), ""])


def between(row: Mapping[str, Any]) -> str:
    """Returns an interval."""
    return f"{number(row['low'], FORM)} to {number(row['high'], FORM)}"


def draw(results: Mapping[str, Any], folder: Path) -> None:
    """Draws a picture of each part."""
    for title, study, part in computed(results):
        heading = f"{title}. Predicted: {study.PREDICTION}. {part['text']}"
        study.draw(part, heading, folder / picture_of(title))


@program(make_parser)
def main(args: Namespace, parser: Parser) -> int:
    """Runs the command line; returns the exit code."""
    seeds = seeds_of(args)
    if len(seeds) < 2:
        raise SettingError("seeds", f"must be 2 or more, got {len(seeds)}")
    asked = {"steps": args.steps, "seeds": list(seeds)}
    return run(args, parser, "theory", asked, parts_of(args, len(seeds)), page, draw)


if __name__ == "__main__":
    sys.exit(main())
