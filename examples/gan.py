"""A small GAN with Adam, with Lookahead around both players and with nested Lookahead.

    python examples/gan.py --dataset fashion_mnist --shrink 2 --data_path DIR

trains two fully connected players with each and with several learning rates, and measures along
each run how far the generated images are from real ones; with the fast weights, with the slow
ones and with an exponential moving average of the fast ones. Without data it takes scikit-learn's
digits. `--help` says what can be changed.
"""

import itertools
import signal
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

if __name__ == "__main__":  # Ctrl-C while the following imports take their seconds is no error.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import numpy as np
from experiments import figures, flags, sweep
from experiments.command_line import (
    add_layers,
    add_settings,
    add_sweep,
    program,
    seeds_of,
    sweep_options,
)
from experiments.config import Config
from experiments.flags import Parser
from experiments.records import Record
from experiments.report import Column, by_seed, report
from experiments.studies.gan import (
    AROUND,
    JUDGED,
    SHOWN,
    from_text,
    run_of_players,
    train_players,
)
from experiments.sweep import Entry, Results, Sweep, title_of

BASE = Config(
    model="gan",
    epochs=16,
    epoch_steps=178,  # No multiple of k, so that evaluation is in mid-cycle.
    batch_size=64,
    milestones=(),
    inner="adam",
    momentum=0.0,
    weight_decay=0.0,
    ema_decay=0.995,
)
LABELS = {"adam": "Adam", "lookahead": "Lookahead", "multilayer_lookahead": "Nested Lookahead"}
MOMENTS = 5  # Of a run, whose images are shown.
GREYS = 16  # So many are enough, and a picture of them is a small file.


def make_parser() -> Parser:
    """Returns the parser of the command line."""
    parser = Parser(
        prog="gan.py",
        description="Train a small GAN with Adam, Lookahead and nested Lookahead, and measure how "
        "good and how stable each is.",
    )
    add_settings(parser, "data", BASE, dataset="--dataset", train_images="--train_images")
    add = parser.add_argument_group("data and length").add_argument
    add(
        "--shrink",
        type=flags.count,
        default=1,
        metavar="N",
        help="make images of the means over N × N pixels (default: %(default)s)",
    )
    lengths = {"epochs": "--epochs", "epoch_steps": "--epoch_steps", "batch_size": "--batch_size"}
    add_settings(parser, "length", BASE, **lengths)
    add = parser.add_argument_group("optimizers").add_argument
    add(
        "--optimizers",
        type=flags.names_among(AROUND),
        default=tuple(AROUND),
        metavar="NAMES",
        help=f"some of {', '.join(AROUND)}, comma-separated (default: all)",
    )
    add(
        "--lr",
        dest="learning_rate",
        type=flags.different(flags.positive),
        default="0.001,0.002,0.004,0.008",
        metavar="LIST",
        help="learning rates of both players, comma-separated (default: %(default)s)",
    )
    add(
        "--ema_decay",
        type=flags.fraction,
        default=BASE.ema_decay,
        metavar="d",
        help="of the moving average of the generator's weights (default: %(default)s)",
    )
    add_layers(parser, "optimizers", "5_0.5,20_0.5")
    add_sweep(parser, seeds=5, name="--name")
    return parser


def entries_of(args: Namespace) -> list[Entry]:
    """Returns the configurations, one optimizer after the other for each learning rate."""
    given = ("dataset", "train_images", "epochs", "epoch_steps", "batch_size", "ema_decay")
    base = replace(BASE, **{name: getattr(args, name) for name in given})
    periods, sizes = zip(*args.layers, strict=True)
    of = {
        "adam": base,
        "lookahead": replace(base, sync_period=periods[0], slow_step_size=sizes[0]),
        "multilayer_lookahead": replace(base, sync_period=periods, slow_step_size=sizes),
    }
    return [
        Entry(f"{LABELS[name]}, {rate:g}", replace(of[name], optimizer=name, learning_rate=rate))
        for rate, name in itertools.product(args.learning_rate, args.optimizers)
    ]


COLUMNS = (
    Column("final", "distance", lower_is_better=True),
    Column("best of the run", "best"),
    Column("collapsed", "collapsed", "seeds"),
    Column("classes", "classes", form=".1f"),
    Column("fast weights", "fast_distance"),
    Column("collapsed", "fast_collapsed", "seeds"),
    Column("EMA", "average_distance"),
    Column("collapsed", "average_collapsed", "seeds"),
)


def note_of(results: Results) -> str:
    """Says what the numbers are."""
    judge = next(iter(results.runs.values())).judge
    return (
        f"Fréchet distance of {JUDGED:,} generated images from the test images, in features of a "
        f"classifier that is right for {100 * judge.accuracy:.1f} % of these; for the training "
        f"images it is {judge.floor:.3f}. Measured with the slow weights, where there are any; "
        "then with the fast ones, and with an exponential moving average of the fast ones. "
        "A run has collapsed if its last distance is more than twice its best, or not finite, or "
        "if the classifier sees fewer than half of the classes in the last images; a class is seen "
        "if it has a tenth of its share"
    )


def report_of(results: Results) -> list[str]:
    """Writes pictures and tables; returns the lines to print."""
    if not results.runs:
        return []
    title = title_of(next(iter(results.runs.values())))
    rates = sorted({run.stages.learning_rates[0] for run in results.runs.values()})
    grid = [[n for n, r in results.runs.items() if r.stages.learning_rates[0] == q] for q in rates]
    draw_distances(results, grid, title)
    draw_images(results, grid, title)
    pictures = ["gan.png", "images.png"]
    return report(results, COLUMNS, note_of(results), pictures=pictures, compared=False)


def of(results: Results, label: str) -> list[Record]:
    """Returns the records of an entry."""
    return [record for record in results.records if record["optimizer"] == label]


def draw_distances(results: Results, grid: Sequence[Sequence[str]], title: str) -> None:
    """Draws the distances over the steps, a panel for each learning rate."""
    seeds = len({record["seed"] for record in results.records})
    title = f"{title}; mean and range of {seeds} seed{'s' if seeds > 1 else ''}"
    size = (max(3.6 * len(grid), 6), 4.2)
    with figures.picture(results.folder / "gan.png", size, title, dpi=100) as figure:
        panels, finite = figure.subplots(1, len(grid), sharey=True, squeeze=False)[0], False
        for axes, labels in zip(panels, grid, strict=True):
            lines = {label.partition(",")[0]: (label, "distance") for label in labels}
            lines |= {
                f"EMA of {name}": (label, "average_distance")
                for name, (label, _) in lines.items()
                if name == "Adam"
            }
            for name, look in figures.styles(list(lines)):
                label, measure = lines[name]
                records = of(results, label)
                values = by_seed(records, measure)[:, 1:]
                values = np.where(np.isfinite(values), values, np.nan)
                finite |= np.isfinite(values).any()
                steps = sorted({record["steps"] for record in records})[1:]
                axes.plot(steps, values.mean(0), linewidth=1.8, **look)
                band = {"color": look["color"], "alpha": 0.15, "linewidth": 0}
                axes.fill_between(steps, values.min(0), values.max(0), **band)
            rate = results.runs[labels[0]].stages.learning_rates[0]
            axes.set(title=f"Learning rate {rate:g}", xlabel="step")
        panels[0].set(ylabel="Fréchet distance", yscale="log" if finite else "linear")
        panels[-1].legend(fontsize=8)


def draw_images(results: Results, grid: Sequence[Sequence[str]], title: str) -> None:
    """Draws what the first seed generates from the same noise along each run; rows are moments."""
    title = f"{title}; images of one seed along each run, from the same noise"
    size = (2.6 * max(map(len, grid)) + 0.6, 2.3 * len(grid) + 0.4)
    with figures.picture(results.folder / "images.png", size, title, dpi=80) as figure:
        panels = figure.subplots(len(grid), max(map(len, grid)), squeeze=False)
        for axes in panels.flat:
            axes.set_axis_off()
        for row, labels in zip(panels, grid, strict=True):
            for axes, label in zip(row, labels, strict=False):
                records = of(results, label)
                moments = np.unique(np.linspace(1, results.runs[label].epochs, MOMENTS, dtype=int))
                shown = [records[n] for n in moments]
                height, width, channels = results.runs[label].dataset.image_shape
                images = np.stack([from_text(record["images"]) for record in shown])
                images = images // (256 // GREYS) * (255 // (GREYS - 1))
                images = images.reshape(len(shown), SHOWN, height, width, channels)
                mosaic = images.transpose(0, 2, 1, 3, 4).reshape(len(shown) * height, -1, channels)
                axes.set_axis_on()
                mosaic = mosaic.squeeze(-1) if channels == 1 else mosaic
                axes.imshow(mosaic, cmap="gray", interpolation="nearest")
                places = (np.arange(len(shown)) + 0.5) * height
                axes.set_yticks(places, [f"{r['steps']:,}" for r in shown], fontsize=7)
                axes.set_xticks([])
                axes.set_title(label, fontsize=9, pad=4)


@program(make_parser)
def main(args: Namespace, parser: Parser) -> int:
    """Runs the command line; returns the exit code."""
    further = {"shrink": args.shrink}
    asked = Sweep(
        entries=entries_of(args),
        seeds=seeds_of(args),
        report=report_of,
        further=further,
        run_of=partial(run_of_players, **further),
        train=train_players,
        one_device=True,
        **sweep_options(args, parser),
    )
    return sweep.run(asked)


if __name__ == "__main__":
    sys.exit(main())
