"""Pictures of records: curves over the epochs, and bars of what was measured at the end."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from experiments.records import Record
from experiments.report import Column, by_seed
from experiments.run import Run

# Okabe and Ito's colours, which the colour-blind can tell apart; in print the dashes can.
STYLES = (
    ("#0072B2", "-"),
    ("#D55E00", (0, (6, 1.5))),
    ("#009E73", (0, (6, 1.5, 1, 1.5))),
    ("#CC79A7", (0, (3, 1.5))),
    ("#56B4E9", (0, (1, 1))),
    ("#E69F00", (0, (8, 1.5, 1, 1.5, 1, 1.5))),
    ("#000000", (0, (2, 2))),
    ("#999999", "-"),
)
LOOK = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlepad": 18,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
}
# Characters of a title on an inch of a picture's width.
PER_INCH = 13


@contextmanager
def picture(path: Path, size: tuple[float, float], title: str, dpi: int = 140) -> Iterator[Figure]:
    """Gives a figure to draw into, and writes it as a PNG with a title above."""
    with matplotlib.rc_context(LOOK):
        figure = Figure(figsize=size, layout="constrained")
        yield figure
        lines = textwrap.fill(title, int(PER_INCH * size[0]))
        figure.suptitle(lines, fontsize=9, x=0.01, ha="left", color="0.3")
        figure.savefig(path, dpi=dpi)


def styles(labels: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields each label with the look of its line."""
    for n, label in enumerate(labels):
        color, dashes = STYLES[n % len(STYLES)]
        yield label, {"color": color, "linestyle": dashes, "label": label}


def curves(records: Sequence[Record], runs: Mapping[str, Run], title: str, path: Path) -> None:
    """Draws training loss and test accuracy over the epochs.

    Lines are means over the seeds, bands reach from the lowest to the highest seed. Where the
    training loss of the evaluated weights is not known in every epoch, it is the mean loss of
    the batches. Stages are those of the first run; where the learning rates of others are other
    multiples of theirs, they are given in multiples of the first.
    """
    seeds = len({record["seed"] for record in records})
    spread = f"mean and range of {seeds} seeds" if seeds > 1 else "one seed"
    first = next(iter(runs.values()))
    with picture(path, (10, 4.2), f"{title}; {spread}") as figure:
        loss, accuracy = figure.subplots(1, 2)
        for label, look in styles(list(runs)):
            mine = [record for record in records if record["optimizer"] == label]
            evaluated = by_seed(mine, "train_loss")
            sparse = np.isnan(evaluated).any()
            _curve(loss, by_seed(mine, "batch_loss") if sparse else evaluated, **look)
            _curve(accuracy, by_seed(mine, "test_accuracy"), **look)
        same = len({run.stages.learning_rates for run in runs.values()}) == 1
        for axes in (loss, accuracy):
            _mark_stages(axes, first, relative=not same)
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        loss.set(title="Training loss", ylabel="cross-entropy")
        log_axis(loss)
        if len(runs) > 1:
            loss.legend(loc="upper right")
        accuracy.set(title="Test accuracy", ylabel="% of the test images")
        stages = first.stages.ends
        from_epoch = stages[0][1] // first.steps_per_epoch if len(stages) > 1 else 0
        accuracy.set_ylim(*_limits(accuracy, from_epoch))


def leads(
    records: Sequence[Record],
    runs: Mapping[str, Run],
    column: Column,
    title: str,
    path: Path,
) -> None:
    """Draws a measure over the steps, and seed by seed its difference to that of the first entry.

    Lines are means over the seeds, bands reach from the lowest to the highest seed.
    """
    seeds = len({record["seed"] for record in records})
    spread = f"mean and range of {seeds} seeds" if seeds > 1 else "one seed"
    with picture(path, (10, 4.2), f"{title}; {spread}") as figure:
        whole, lead = figure.subplots(1, 2)
        ends, first = [], None
        for label, look in styles(list(runs)):
            mine = [r for r in records if r["optimizer"] == label and column.measure in r]
            steps = np.unique([record["steps"] for record in mine])
            values = by_seed(mine, column.measure)
            first = values if first is None else first
            for axes, shown in ((whole, values), (lead, values - first)):
                axes.plot(steps, shown.mean(axis=0), linewidth=1.8, **look)
                axes.fill_between(
                    steps, shown.min(axis=0), shown.max(axis=0), color=look["color"], alpha=0.15
                )
            ends.append((values - first)[:, len(steps) // 4 :])
        low, high = min(map(np.min, ends)), max(map(np.max, ends))
        margin = 0.1 * (high - low) + 1e-3
        lead.set_ylim(low - margin, high + margin)
        whole.set(title=column.header, xlabel="step")
        lead.set(title=f"Difference to {next(iter(runs))}", xlabel="step")
        log_axis(whole)
        whole.legend(loc="best")


def bars(
    records: Sequence[Record],
    labels: Sequence[str],
    columns: Sequence[Column],
    title: str,
    path: Path,
) -> None:
    """Draws a panel for each measure and a row for each entry."""
    last = max(record["epoch"] for record in records)
    size = (1.6 + 3.2 * len(columns), 1.9 + 0.4 * len(labels))
    with picture(path, size, f"{title}; dots are seeds, bars their mean") as figure:
        panels = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
        for axes, column in zip(panels, columns, strict=True):
            for row, (label, look) in enumerate(styles(labels)):
                mine = [r for r in records if r["optimizer"] == label and r["epoch"] <= last]
                values = by_seed(mine, column.measure)[:, -1]
                axes.plot(values, [row] * len(values), "o", color=look["color"], alpha=0.6)
                axes.plot(values.mean(), row, "|", color=look["color"], ms=18, mew=2)
            axes.set_title(column.header, fontsize=10, pad=8)
            axes.grid(axis="x", color="0.9")
            axes.set_axisbelow(True)
        panels[0].set_yticks(range(len(labels)), labels)
        panels[0].set_ylim(len(labels) - 0.5, -0.5)


def log_axis(axes: Axes) -> None:
    """Makes the y axis logarithmic if it spans a factor of 5, with plain numbers on it."""
    values = np.concatenate([line.get_ydata() for line in axes.lines])
    if values.min() <= 0 or values.max() < 5 * values.min():
        return
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _curve(axes: Axes, values: np.ndarray, **look: Any) -> None:
    """Draws the mean and the range over the seeds; values are seeds × epochs, NaN for none.

    Where not every epoch has a value, those that have one are dots.
    """
    epochs = np.flatnonzero(~np.isnan(values).any(axis=0))
    values = values[:, epochs]
    dots = "o" if np.diff(epochs).max(initial=1) > 1 else ""
    axes.plot(epochs, values.mean(axis=0), linewidth=1.8, marker=dots, markersize=4, **look)
    axes.fill_between(
        epochs, values.min(axis=0), values.max(axis=0), color=look["color"], alpha=0.15, linewidth=0
    )


def _mark_stages(axes: Axes, run: Run, *, relative: bool) -> None:
    """Shades every other stage, and writes its learning rate above it."""
    begin, first = 0.0, run.stages.learning_rates[0]
    for q, (rate, last_step) in enumerate(run.stages.ends):
        end = last_step / run.steps_per_epoch
        if q % 2:
            axes.axvspan(begin, end, color="0.94", linewidth=0, zorder=0)
        shown = f"{rate / first:.2g} ×" if relative else f"{rate:.2g}"
        axes.text(
            (begin + end) / 2,
            1.02,
            f"{'learning rate ' if q == 0 else ''}{shown}",
            transform=axes.get_xaxis_transform(),
            ha="center",
            fontsize=8,
            color="0.4",
        )
        begin = end
    axes.set_xlim(0, begin)


def _limits(axes: Axes, from_epoch: int) -> tuple[float, float]:
    """Returns limits for the lines from an epoch on; before it they rise too far to be seen."""
    ends = np.concatenate([line.get_ydata()[line.get_xdata() >= from_epoch] for line in axes.lines])
    low, high = ends.min(), ends.max()
    margin = 0.5 * (high - low) + 0.2
    return max(low - margin, 0), min(high + margin, 100)
