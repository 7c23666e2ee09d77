"""What is left of a run: its folder, the settings, a table and the curves."""

import importlib.metadata
import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter
from rich import box
from rich.table import Table

import slrla_jax

RUNS = Path("runs")
PACKAGES = ("jax", "jaxlib", "optax", "flax", "numpy", "scikit-learn")

# Okabe and Ito's colours, told apart by the colour-blind too, and in print by the dashes.
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
# What is the same in all plots, for Matplotlib.
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

# Accuracies in a record, and of which weights they are.
WEIGHTS = {
    "test_accuracy": "evaluated weights",
    "recalibrated_test_accuracy": "the same, batch normalisation recalibrated",
    "fast_test_accuracy": "fast weights",
}

Records = Sequence[Mapping[str, Any]]


def new_folder(name: str | None, dataset: str) -> Path:
    """Makes the folder of a run: of that name, or of the data set's with a number.

    Raises:
      FileExistsError: if there is one of that name.
    """
    if name is not None:
        folder = RUNS / name
        folder.mkdir(parents=True)
        return folder
    number = 1
    while True:
        folder = RUNS / f"{dataset}-{number}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            number += 1
        else:
            return folder


def write_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Writes the settings of a run with the versions and the machine it runs on."""
    about = {**settings, **circumstances()}
    (folder / "settings.json").write_text(json.dumps(about, indent=2) + "\n")


def circumstances() -> dict[str, Any]:
    """The versions, and the machine."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return {
        "versions": {
            "python": platform.python_version(),
            "slrla_jax": slrla_jax.__version__,
            **{package: importlib.metadata.version(package) for package in PACKAGES},
        },
        "machine": {
            "platform": platform.platform(),
            "processor": names[0] if names else platform.machine(),
            "cpu_count": os.cpu_count(),
            "backend": jax.default_backend(),
            "devices": [device.device_kind for device in jax.devices()],
        },
    }


def stages_in_words(stages: Sequence[tuple[float, int]]) -> str:
    """The learning rate of each stage, and the step at which it ends."""
    rates = [f"{rate:.2g} to {'' if q else 'step '}{end:,}" for q, (rate, end) in enumerate(stages)]
    return f"learning rate {', '.join(rates)}"


def by_seed(records: Records, optimizer: str, value: str) -> np.ndarray:
    """A value in an optimizer's records, as an array of seeds × epochs; NaN if not there."""
    mine = [record for record in records if record["optimizer"] == optimizer]
    seeds = sorted({record["seed"] for record in mine})
    return np.array(
        [
            [
                record.get(value, np.nan)
                for record in sorted(mine, key=lambda record: record["epoch"])
                if record["seed"] == seed
            ]
            for seed in seeds
        ]
    )


def table(records: Records, labels: Mapping[str, str]) -> Table:
    """What came out, for each optimizer as mean and deviation over the seeds."""
    result = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 0, 0, 1),
        title="Accuracy in % on the test images, and training loss",
    )
    result.add_column("", style="bold", no_wrap=True)
    for header in (
        "accuracy\nfinal",
        "\nbest",
        "fast weights\nbest",
        "training loss\nfinal",
        "gradients\na run",
    ):
        result.add_column(header, justify="right", no_wrap=True)
    for name, label in labels.items():
        test, fast = (
            100 * by_seed(records, name, f"{weights}test_accuracy") for weights in ("", "fast_")
        )
        budgets = sorted(set(by_seed(records, name, "gradients")[:, -1]))
        result.add_row(
            label,
            mean_and_deviation(test[:, -1]),
            mean_and_deviation(test[:, 1:].max(axis=1)),
            mean_and_deviation(fast[:, 1:].max(axis=1)),
            mean_and_deviation(by_seed(records, name, "train_loss")[:, -1], ".4f"),
            " / ".join(f"{budget:,}" for budget in budgets),
        )
    return result


def comparison(records: Records, labels: Mapping[str, str]) -> list[str]:
    """How the final accuracies of the others differ from the first one's, seed by seed."""
    first, *others = labels
    final = {name: 100 * by_seed(records, name, "test_accuracy")[:, -1] for name in labels}
    lines = []
    for name in others:
        difference = final[name] - final[first]
        lines.append(
            f"{labels[name]} − {labels[first]}: {mean_and_deviation(difference, '+z.2f')} points; "
            f"better from {(difference > 0).sum()} of {len(difference)} seeds, "
            f"worse from {(difference < 0).sum()}"
        )
    return lines


def plot(
    records: Records,
    labels: Mapping[str, str],
    stages: Sequence[tuple[float, int]],
    title: str,
    path: Path,
) -> None:
    """Training loss and test accuracy over the epochs, as a PNG.

    Lines are means over the seeds, bands reach from the lowest to the highest seed. Stages are
    given by their learning rates and the steps at which they end.
    """
    with matplotlib.rc_context(LOOK):
        figure = Figure(figsize=(10, 4.2), layout="constrained")
        loss, accuracy = figure.subplots(1, 2)
        for (name, label), (color, dashes) in zip(
            labels.items(), STYLES * len(labels), strict=False
        ):
            look = {"color": color, "linestyle": dashes, "label": label}
            evaluated = by_seed(records, name, "train_loss")
            streamed = np.isnan(evaluated).all()
            _curve(loss, by_seed(records, name, "batch_loss") if streamed else evaluated, **look)
            _curve(accuracy, 100 * by_seed(records, name, "test_accuracy"), **look)
        per_epoch = by_seed(records, next(iter(labels)), "steps")[0, 1]
        for axes in (loss, accuracy):
            _mark_stages(axes, stages, per_epoch)
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        loss.set(title="Training loss", yscale="log", ylabel="cross-entropy")
        plain = FuncFormatter(lambda value, _: f"{value:g}")
        low, high = loss.get_ylim()
        loss.yaxis.set_major_formatter(plain)
        loss.yaxis.set_minor_formatter(plain if high < 10 * low else NullFormatter())
        loss.legend(loc="upper right")
        accuracy.set(title="Test accuracy", ylabel="% of the test images")
        from_epoch = stages[0][1] // per_epoch if len(stages) > 1 else 0
        accuracy.set_ylim(*_limits(accuracy, from_epoch))
        seeds = len({record["seed"] for record in records})
        spread = f"mean and range of {seeds} seeds" if seeds > 1 else "one seed"
        figure.suptitle(f"{title}; {spread}", fontsize=10, x=0.01, ha="left", color="0.3")
        figure.savefig(path, dpi=140)


def _curve(axes: Axes, values: np.ndarray, **look: Any) -> None:
    """One optimizer's mean and range over the seeds, values being seeds × epochs, NaN for none.

    Where not every epoch has a value, those that have are dots.
    """
    epochs = np.flatnonzero(~np.isnan(values).any(axis=0))
    values = values[:, epochs]
    dots = "o" if np.diff(epochs).max(initial=1) > 1 else ""
    axes.plot(epochs, values.mean(axis=0), linewidth=1.8, marker=dots, markersize=4, **look)
    axes.fill_between(
        epochs, values.min(axis=0), values.max(axis=0), color=look["color"], alpha=0.15, linewidth=0
    )


def _mark_stages(axes: Axes, stages: Sequence[tuple[float, int]], steps_per_epoch: int) -> None:
    """Every other stage shaded, and the learning rate of each above it."""
    begin = 0.0
    for q, (rate, last_step) in enumerate(stages):
        end = last_step / steps_per_epoch
        if q % 2:
            axes.axvspan(begin, end, color="0.94", linewidth=0, zorder=0)
        axes.text(
            (begin + end) / 2,
            1.02,
            f"{'learning rate ' if q == 0 else ''}{rate:.2g}",
            transform=axes.get_xaxis_transform(),
            ha="center",
            fontsize=8,
            color="0.4",
        )
        begin = end
    axes.set_xlim(0, begin)


def _limits(axes: Axes, from_epoch: int) -> tuple[float, float]:
    """Limits for what the lines do from an epoch on; up to it they rise too far to be seen."""
    ends = np.concatenate([line.get_ydata()[line.get_xdata() >= from_epoch] for line in axes.lines])
    low, high = ends.min(), ends.max()
    margin = 0.5 * (high - low) + 0.2
    return max(low - margin, 0), min(high + margin, 100)


def summary(records: Records, counts: str) -> Iterator[str]:
    """Accuracies of one optimizer in the final epoch and in the best, which `counts` chooses."""
    name = records[0]["optimizer"]
    seeds = len({record["seed"] for record in records})
    best = np.nanargmax(by_seed(records, name, counts)[:, 1:], axis=1) + 1
    yield f"Accuracy in % on the test images, {seeds} seed{'s' if seeds > 1 else ''}"
    for value, weights in WEIGHTS.items():
        accuracy = 100 * by_seed(records, name, value)
        if not np.isnan(accuracy).all():
            final, at_best = accuracy[:, -1], accuracy[np.arange(len(best)), best]
            yield (
                f"{weights}: final {mean_and_deviation(final)}, "
                f"best epoch {mean_and_deviation(at_best)}"
            )


def notes(records: Records) -> str:
    """What one has to know to read the table."""
    seeds = len({record["seed"] for record in records})
    spread = f"Mean ± standard deviation of {seeds} seeds" if seeds > 1 else "One seed"
    return (
        f"{spread}; accuracy and loss are those of the slow weights, of which SGD has none. "
        "After the last step, a sync, fast and slow weights are the same. Best is each seed's "
        "best epoch, chosen on the test images."
    )


def mean_and_deviation(values: np.ndarray, form: str = ".2f") -> str:
    """Mean ± standard deviation, of a single value itself; a dash where there is none."""
    if np.isnan(values).any():
        return "–"
    mean = f"{values.mean():{form}}"
    return mean if len(values) == 1 else f"{mean} ± {values.std(ddof=1):{form.lstrip('+z')}}"
