"""What is left of the ablations: `table.md`, `alpha.png`, `beta.png` and `results.json`."""

import itertools
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from experiments.reporting import report

# What is measured, and its name in plots and tables.
VALUES = {
    "train_loss": "training loss",
    "test_loss": "test loss",
    "gap": "test − training loss",
    "test_accuracy": "test accuracy, %",
}

CURVES = {"α": "Lookahead with α", "β": "SLRLA with β", "c": "SGD, learning rate × c"}


def write(folder: Path, results: Mapping[str, Any]) -> None:
    """Writes the results of `ablations.py` into a folder, which is made if it is not there.

    Args:
      folder: where to.
      results: `samples` has for each number of them, by the names in `VALUES`, lists of shape
        (seeds, settings): those of all `groups`, one after the other.
    """
    folder.mkdir(parents=True, exist_ok=True)
    results = {
        **results,
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        **report.circumstances(),
    }
    text = json.dumps(results, ensure_ascii=False) + "\n"
    (folder / "results.json").write_text(text, encoding="utf-8")
    (folder / "table.md").write_text(page(results), encoding="utf-8")
    plot(results, "α", "c", folder / "alpha.png")
    plot(results, "β", None, folder / "beta.png")


def values_of(results: Mapping[str, Any], samples: Any, symbol: str, name: str) -> np.ndarray:
    """A value of one group, of shape (seeds, settings); accuracy in %."""
    values = np.array(results["samples"][samples][name])
    values = 100 * values if name == "test_accuracy" else values
    sizes = [len(group["settings"]) for group in results["groups"].values()]
    parts = np.split(values, np.cumsum(sizes)[:-1], axis=1)
    return dict(zip(results["groups"], parts, strict=True))[symbol]


def verdict(test_loss: np.ndarray, settings: Sequence[float], reference: float, symbol: str) -> str:
    """Which setting has the lowest test loss, and how sure that is.

    Args:
      test_loss: of shape (seeds, settings).
      settings: the values of the parameter.
      reference: the one that switches the method off.
      symbol: what it is called.
    """
    best = int(test_loss.mean(0).argmin())
    off = list(settings).index(reference)
    by_seed = ", ".join(f"{settings[i]:g}" for i in test_loss.argmin(1))
    told = f"Lowest test loss at {symbol} = {settings[best]:g} (seed by seed at {by_seed})"
    if best == off:
        return f"{told}, where the method is switched off."
    difference = _difference(test_loss[:, best] - test_loss[:, off])
    return f"{told}: {difference} against {symbol} = {reference:g}."


def best_against_best(results: Mapping[str, Any], samples: Any) -> list[str]:
    """How the lowest test losses of the groups differ, seed by seed."""
    best = {}
    for symbol, group in results["groups"].items():
        losses = values_of(results, samples, symbol, "test_loss")
        n = int(losses.mean(0).argmin())
        best[f"{symbol} = {group['settings'][n]:g}"] = losses[:, n]
    return [
        f"- {one} against {other}: {_difference(best[one] - best[other])}"
        for one, other in itertools.combinations(best, 2)
    ]


def page(results: Mapping[str, Any]) -> str:
    """All tables, in Markdown."""
    machine, seeds = results["machine"], results["seeds"]
    versions = ", ".join(f"{package} {version}" for package, version in results["versions"].items())
    seconds = sum(entry["seconds"] for entry in results["samples"].values())
    lines = [
        f"Softmax regression on {results['dataset']}, {results['steps']:,} steps of "
        f"{results['batch_size']} images; mean ± standard deviation of {len(seeds)} seeds, each "
        "with samples and batches of its own. α: Lookahead with that α; β: SLRLA as in Algorithm "
        f"3, with α = {results['alpha']}; c: SGD with c times the learning rate of the others, "
        f"{results['learning_rate']}. "
        f"`{results['command']}` on {results['date'][:10]}, {seconds:.0f} s; "
        f"{machine['processor']}, {machine['cpu_count']} cores, backend {machine['backend']}; "
        f"{versions}.",
        "",
    ]
    for symbol, group in results["groups"].items():
        settings = group["settings"]
        for samples in results["samples"]:
            columns = {name: values_of(results, samples, symbol, name) for name in VALUES}
            lines += [
                f"#### {symbol}, {int(samples):,} samples",
                "",
                f"| {symbol} | {' | '.join(VALUES.values())} |",
                f"| --- |{' ---: |' * len(VALUES)}",
                *[
                    f"| {setting:g} | "
                    + " | ".join(
                        _mean_and_deviation(values[:, n], 2 if name == "test_accuracy" else 4)
                        for name, values in columns.items()
                    )
                    + " |"
                    for n, setting in enumerate(settings)
                ],
                "",
                verdict(columns["test_loss"], settings, group["off"], symbol),
                "",
            ]
    for samples in results["samples"]:
        lines += [f"#### Best against best in test loss, {int(samples):,} samples", ""]
        lines += [*best_against_best(results, samples), ""]
    return "\n".join(lines)


def plot(results: Mapping[str, Any], symbol: str, beside: str | None, path: Path) -> None:
    """Every value over the settings of a group as a PNG, a row for each number of samples.

    Lines are means over the seeds, bands reach from the lowest to the highest seed; the dotted
    line is where the method is switched off. Beside it may be a group of as many settings.
    """
    group = results["groups"][symbol]
    settings, off = group["settings"], list(group["settings"]).index(group["off"])
    places = np.arange(len(settings))
    with matplotlib.rc_context(report.LOOK):
        figure = Figure(figsize=(13, 3.0 * len(results["samples"]) + 0.4), layout="constrained")
        grid = figure.subplots(len(results["samples"]), len(VALUES), squeeze=False)
        for row, samples in zip(grid, results["samples"], strict=True):
            for axes, (name, label) in zip(row, VALUES.items(), strict=True):
                for n, shown in enumerate(filter(None, (symbol, beside))):
                    color, dashes = report.STYLES[n]
                    values = values_of(results, samples, shown, name)
                    look = {"color": color, "linestyle": dashes, "marker": "."}
                    axes.plot(places, values.mean(0), label=CURVES[shown], **look)
                    axes.fill_between(
                        places, values.min(0), values.max(0), color=color, alpha=0.15, linewidth=0
                    )
                switched_off = values_of(results, samples, symbol, name)[:, off].mean()
                axes.axhline(switched_off, color="0.5", linestyle=":", linewidth=1)
                axes.set_xticks(places, [f"{setting:g}" for setting in settings], fontsize=7)
                means = values_of(results, samples, symbol, name).mean(0)
                span = means.max() / means.min()
                if name.endswith("loss") and span > 5:
                    plain = FuncFormatter(lambda value, _: f"{value:g}")
                    axes.set_yscale("log")
                    axes.yaxis.set_major_formatter(plain)
                    axes.yaxis.set_minor_formatter(plain if span < 10 else NullFormatter())
                axes.set(xlabel=symbol if beside is None else f"{symbol} or {beside}")
                axes.set_title(f"{label}; {int(samples):,} samples", fontsize=9, pad=6)
        if beside is not None:
            grid[0, 0].legend(fontsize=8)
        figure.savefig(path, dpi=100)


def _difference(values: np.ndarray) -> str:
    spread = f" ± {values.std(ddof=1):.4f}" if len(values) > 1 else ""
    lower = f"lower from {(values < 0).sum()} of {len(values)} seeds"
    return f"{values.mean():+.4f}{spread} ({lower})"


def _mean_and_deviation(values: np.ndarray, digits: int) -> str:
    mean = f"{values.mean():.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {values.std(ddof=1):.{digits}f}"
