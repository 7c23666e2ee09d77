"""How much methods depend on b0: what the programs that train with several values have in common.

    parser = make_parser("fine_tuning.py", "Fine-tuning with ...", BASE)
    args = parser.parse_args(argv)
    sweep.run(sweep_of(args, parser, BASE, Column("accuracy", "test_accuracy"), "Accuracy in %"))

AdaLoss and its baselines divide each step by some b, which starts from b0. Each of them is trained
with each b0, from the same initial weights and on the same batches. The table has a row for each
b0 and a column for each method; its last row is how far apart a method's results are.

A program with a parser of its own adds the flags of methods and b0 with `add_methods`, and makes
its sweep of `entries_of` and `report_robustness`.
"""

import re
from argparse import Namespace
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from experiments import figures, flags
from experiments.command_line import add_settings, add_sweep, config_of, seeds_of, sweep_options
from experiments.config import Config
from experiments.flags import Parser
from experiments.optimizers import OPTIMIZERS
from experiments.report import Column, by_seed, cell, markdown, report
from experiments.settings import Settings
from experiments.sweep import Entry, Results, Sweep, title_of

METHODS = tuple(name for name, row in OPTIMIZERS.items() if "b0" in row.settings)
B0 = "0.01,0.1,1,10,100"
# Its square is a number in float32, too.
POSSIBLE = flags.number("from 1e-15 to 1e15", lambda b0: 1e-15 <= b0 <= 1e15)
DIVERGED = "diverged"
SPREAD = "best − worst"


# The command line


def make_parser(prog: str, description: str, base: Config, **options: Any) -> Parser:
    """Returns a parser with the flags that the programs have in common.

    Args:
      prog: the program.
      description: of what it does.
      base: has the defaults.
      options: of `add_sweep`.
    """
    parser = Parser(prog=prog, description=description)
    add_settings(
        parser,
        "data and model",
        base,
        dataset="--dataset",
        train_images="--train_images",
        model="--network",
    )
    add_settings(
        parser,
        "training",
        base,
        epochs="--epochs",
        batch_size="--batch_size",
        learning_rate="--lr",
    )
    add_methods(parser)
    add_sweep(parser, seeds=5, name="--name", **options)
    return parser


def add_methods(parser: Parser) -> None:
    """Adds the flags of methods and b0."""
    add = parser.add_argument_group("methods").add_argument
    add(
        "--methods",
        type=flags.names_among(METHODS),
        default=METHODS,
        metavar="NAMES",
        help=f"some of {', '.join(METHODS)}, comma-separated (default: all)",
    )
    add(
        "--b0",
        type=flags.different(POSSIBLE),
        default=B0,
        metavar="LIST",
        help="values of b0, comma-separated (default: %(default)s)",
    )


def label_of(method: str, b0: float) -> str:
    """Returns the label of an entry, from that of its method; the table takes it apart again."""
    return f"{method}, b0 = {b0:g}"


def entries_of(args: Namespace, base: Config) -> list[Entry]:
    """Returns each method with each b0; the other settings are those of the flags and `base`."""
    return [
        Entry(label_of(OPTIMIZERS[name].label, b0), config_of(args, base, optimizer=name, b0=b0))
        for name in args.methods
        for b0 in args.b0
    ]


def sweep_of(
    args: Namespace, parser: Parser, base: Config, column: Column, note: str, **options: Any
) -> Sweep:
    """Returns the sweep of a program.

    Args:
      args: the flags.
      parser: their parser.
      base: what the flags have no say in.
      column: the measure, any field of the records.
      note: what the numbers are.
      options: of the `Sweep`, besides those that the flags are for: what is trained, and how it is
        measured.
    """
    picture = f"{Path(parser.prog).stem}.png"
    given = {
        "entries": entries_of(args, base),
        "seeds": seeds_of(args),
        "report": partial(report_robustness, column=column, note=note, picture=picture),
        "one_device": True,
        **sweep_options(args, parser),
    }
    return Sweep(**given | options)


# Table and picture


def report_robustness(results: Results, column: Column, note: str, picture: str) -> list[str]:
    """Writes the picture, the table and the numbers; returns the lines to print."""
    if results.runs:
        draw(results, column, results.folder / picture)
    note += f". Last row: {SPREAD} over b0, of these means"
    if results.diverged:
        note += "; at least (≥) so much where some entries have none, as they diverged"
    return report(
        results, [column], note, pictures=[picture], compared=False, tabulate=table_over_b0
    )


def table_over_b0(summary: Settings, columns: Sequence[Column]) -> list[str]:
    """Returns a table of the first column's measure: a row for each b0, a column for each method.

    An entry that has diverged from some seed has no number. Where a method has such entries, its
    spread is that of the others, and marked as the least that it can be.
    """
    column, entries = columns[0], summary["entries"]
    diverged = Counter(map(label_in, summary["diverged"]))
    methods, values = axes_of([*entries, *diverged])

    def shown(method: str, b0: float) -> str:
        label = label_of(method, b0)
        if label not in diverged:
            return cell(entries[label], column) if label in entries else "–"
        seeds = len(summary["seeds"])
        some = f" ({diverged[label]} of {seeds})" if diverged[label] < seeds else ""
        return DIVERGED + some

    def spread(method: str) -> str:
        labels = [label_of(method, b0) for b0 in values]
        there = [entries[label]["measured"][column.measure] for label in labels if label in entries]
        means = [measured["final"]["mean"] for measured in there]
        at_least = "≥ " if diverged.keys() & labels else ""
        return f"{at_least}{np.ptp(means):{column.form}}" if means else "–"

    rows = [[f"{b0:g}", *(shown(method, b0) for method in methods)] for b0 in values]
    return markdown([["b0", *methods], *rows, [SPREAD, *map(spread, methods)]])


def draw(results: Results, column: Column, path: Path) -> None:
    """Draws the measure over b0, a line for each method.

    Lines are means over the seeds, bands reach from the lowest to the highest seed. Where an entry
    has diverged the line is broken, and a cross at the bottom is in its place.
    """
    diverged = set(map(label_in, results.diverged))
    methods, values = axes_of([*results.runs, *diverged])
    seeds = len({record["seed"] for record in results.records})
    spread = f"mean and range of {seeds} seeds" if seeds > 1 else "one seed"
    title = f"{title_of(next(iter(results.runs.values())))}; {spread}"
    with figures.picture(path, (8, 4.2), title) as figure:
        axes = figure.subplots()
        for row, (method, look) in enumerate(figures.styles(methods)):
            labels = [label_of(method, b0) for b0 in values]
            final = np.full((seeds, len(values)), np.nan)
            for n, label in enumerate(labels):
                if label in results.runs:
                    mine = [r for r in results.records if r["optimizer"] == label]
                    final[:, n] = by_seed(mine, column.measure)[:, -1]
            axes.plot(values, final.mean(axis=0), marker="o", markersize=4, linewidth=1.8, **look)
            band = {"color": look["color"], "alpha": 0.15, "linewidth": 0}
            axes.fill_between(values, final.min(axis=0), final.max(axis=0), **band)
            lost = [b0 for b0, label in zip(values, labels, strict=True) if label in diverged]
            bottom = {"transform": axes.get_xaxis_transform(), "color": look["color"]}
            axes.plot(lost, [0.03 + 0.05 * row] * len(lost), "x", mew=2, **bottom)
        if diverged:
            axes.margins(y=0.2)
            axes.plot([], [], "x", color="0.4", mew=2, label=DIVERGED)
        axes.set(xscale="log", xlabel="b0", ylabel=column.header)
        axes.set_xticks(values, [f"{b0:g}" for b0 in values])
        axes.minorticks_off()
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))


def label_in(line: str) -> str:
    """Returns the label of the entry that a line about a diverged seed begins with."""
    return re.match(r".+?, b0 = [^ ,]+", line)[0]


def axes_of(labels: Iterable[str]) -> tuple[list[str], list[float]]:
    """Returns the methods among labels, in their order, and the values of b0, the lowest first."""
    methods, values = zip(*(label.split(", b0 = ") for label in labels), strict=True)
    return list(dict.fromkeys(methods)), sorted(set(map(float, values)))
