"""What is left of the ablations: `table.md`, `alpha.png`, `beta.png` and `results.json`."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import report
from matplotlib.figure import Figure

# What is measured, and its name in plots and tables.
VALUES = {
    "train_loss": "training loss",
    "test_loss": "test loss",
    "gap": "test − training loss",
    "test_accuracy": "test accuracy, %",
}


def write(folder: Path, results: Mapping[str, Any]) -> None:
    """Writes the results of `ablations.py` into a folder, which is made if it is not there.

    Args:
      folder: where to.
      results: `samples` has for each number of them, by the names in `VALUES`, lists of shape
        (seeds, settings): all of `alphas`, then all of `betas`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    results = {
        **results,
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        **report.circumstances(),
    }
    (folder / "results.json").write_text(json.dumps(results, ensure_ascii=False) + "\n")
    (folder / "table.md").write_text(page(results))
    for symbol, settings, reference in ablations(results):
        plot(results, symbol, settings, reference, folder / f"{NAMES[symbol]}.png")


NAMES = {"α": "alpha", "β": "beta"}


def ablations(results: Mapping[str, Any]) -> list[tuple[str, Sequence[float], float]]:
    """Symbol, settings, and the setting that switches the method off."""
    return [("α", results["alphas"], 1.0), ("β", results["betas"], 0.0)]


def values_of(results: Mapping[str, Any], samples: Any, symbol: str, name: str) -> np.ndarray:
    """A value of one ablation, of shape (seeds, settings); accuracy in %."""
    values = np.array(results["samples"][samples][name])
    values = 100 * values if name == "test_accuracy" else values
    first = len(results["alphas"])
    return values[:, :first] if symbol == "α" else values[:, first:]


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
    difference = test_loss[:, best] - test_loss[:, off]
    spread = f" ± {difference.std(ddof=1):.4f}" if len(difference) > 1 else ""
    return (
        f"{told}: {difference.mean():+.4f}{spread} against {symbol} = {reference:g}, "
        f"lower from {(difference < 0).sum()} of {len(difference)} seeds."
    )


def page(results: Mapping[str, Any]) -> str:
    """All tables, in Markdown."""
    machine, seeds = results["machine"], results["seeds"]
    versions = ", ".join(f"{package} {version}" for package, version in results["versions"].items())
    seconds = sum(entry["seconds"] for entry in results["samples"].values())
    lines = [
        f"Softmax regression on {results['dataset']}, {results['steps']:,} steps of "
        f"{results['batch_size']} images; mean ± standard deviation of {len(seeds)} seeds, each "
        "with samples and batches of its own. α with β = 0, β with α = 0.8 and as in Algorithm 3. "
        f"`{results['command']}` on {results['date'][:10]}, {seconds:.0f} s; "
        f"{machine['processor']}, {machine['cpu_count']} cores, backend {machine['backend']}; "
        f"{versions}.",
        "",
    ]
    for symbol, settings, reference in ablations(results):
        for samples in results["samples"]:
            columns = {name: values_of(results, samples, symbol, name) for name in VALUES}
            lines += [
                f"#### {symbol}, {samples:,} samples",
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
                verdict(columns["test_loss"], settings, reference, symbol),
                "",
            ]
    return "\n".join(lines)


def plot(
    results: Mapping[str, Any],
    symbol: str,
    settings: Sequence[float],
    reference: float,
    path: Path,
) -> None:
    """Every value over the settings as a PNG, a row for each number of samples.

    Lines are means over the seeds, bands reach from the lowest to the highest seed; the dashed
    line is where the method is switched off, the ring the lowest (or highest) mean.
    """
    with matplotlib.rc_context(report.LOOK):
        figure = Figure(figsize=(13, 3.0 * len(results["samples"]) + 0.4), layout="constrained")
        grid = figure.subplots(len(results["samples"]), len(VALUES), squeeze=False)
        places = np.arange(len(settings))
        for row, samples in zip(grid, results["samples"], strict=True):
            for axes, (name, label) in zip(row, VALUES.items(), strict=True):
                values = values_of(results, samples, symbol, name)
                mean = values.mean(0)
                color = report.STYLES[0][0]
                axes.plot(places, mean, color=color, marker=".")
                axes.fill_between(
                    places, values.min(0), values.max(0), color=color, alpha=0.15, linewidth=0
                )
                off = mean[list(settings).index(reference)]
                axes.axhline(off, color="0.5", linestyle="--", linewidth=1)
                best = mean.argmax() if name == "test_accuracy" else mean.argmin()
                axes.plot(best, mean[best], "o", mfc="none", mec="black", markersize=9)
                axes.set_xticks(places, [f"{setting:g}" for setting in settings])
                axes.set(xlabel=symbol)
                axes.set_title(f"{label}; {samples:,} samples", fontsize=9, pad=6)
        figure.savefig(path, dpi=100)


def _mean_and_deviation(values: np.ndarray, digits: int) -> str:
    mean = f"{values.mean():.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {values.std(ddof=1):.{digits}f}"
