"""What α and β do to training loss, test loss and their difference in softmax regression.

    python examples/ablations.py --dataset fashion_mnist --data_path DIR

A convex problem, for which the theory of the SLRLA paper says what to expect: with few samples
for the number of steps, a slow step size α below 1 is best. As a smaller α makes smaller steps,
SGD with c times the learning rate shows what else it does. All settings and all seeds are trained
at once, in one compiled program; from few samples and from many for the same number of steps.
"""

import itertools
import json
import shlex
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # Ctrl-C while the following imports take their seconds is no error.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import numpy as np
from experiments import figures, flags
from experiments.checkpoints import OtherRun, differences
from experiments.command_line import add_settings, add_sweep, program, seeds_of
from experiments.config import Config, SettingError
from experiments.data import Dataset
from experiments.flags import Parser
from experiments.folders import run_folder
from experiments.report import markdown, signed
from experiments.settings import circumstances, read_json, shown_command, write_json
from experiments.studies import ablation
from experiments.sweep import dataset_of

BASE = Config(batch_size=128)
# What is measured, and its name in plots and tables.
VALUES = {
    "train_loss": "training loss",
    "test_loss": "test loss",
    "gap": "test − training loss",
    "test_accuracy": "test accuracy, %",
}
CURVES = {"α": "Lookahead with α", "β": "SLRLA with β", "c": "SGD, learning rate × c"}


def make_parser() -> Parser:
    """Returns the parser of the command line."""
    parser = Parser(
        prog="ablations.py",
        description="Train softmax regression with many α and β at once, from few samples and "
        "from many.",
    )
    add_settings(parser, "data", BASE, dataset="--dataset", batch_size="--batch_size")
    add = parser.add_argument_group("training").add_argument
    add(
        "--samples",
        type=flags.listed(flags.count),
        metavar="LIST",
        help="training images of each seed, comma-separated: one ablation for each number "
        "(default: all, and a thirtieth of them, at least a batch)",
    )
    add(
        "--steps",
        type=flags.count,
        default=4_680,
        metavar="N",
        help="training steps (default: %(default)s)",
    )
    add_sweep(parser, seeds=5, name="--name")
    return parser


def samples_of(args: Namespace, dataset: Dataset) -> tuple[int, ...]:
    """Returns how many samples each ablation is trained on.

    Raises:
      SettingError: if there are too few images for a batch or for the samples.
    """
    size, batch = dataset.train_size, args.batch_size
    if batch > size:
        raise SettingError("batch_size", f"must be at most {size}, got {batch}")
    chosen = args.samples or tuple(dict.fromkeys((size, max(size // 30, batch))))
    for samples in chosen:
        if not batch <= samples <= size:
            raise SettingError(
                "samples", f"must be from {batch} (the batch size) to {size}, got {samples}"
            )
    return chosen


def measured_before(path: Path, settings: Mapping[str, Any], parser: Parser) -> dict[str, Any]:
    """Returns the ablations that are in a file already, by the number of samples.

    Raises:
      OtherRun: if they were made with other settings.
    """
    before = read_json(path)
    there = {name: before.get(name) for name in settings}
    if before and (differing := differences(there, settings, parser.flag_of)):
        what = ", ".join(differing.values())
        raise OtherRun(f"{path.parent} is of another run: {what}", differing)
    return before.get("samples", {})


def values_of(results: Mapping[str, Any], samples: Any, symbol: str, name: str) -> np.ndarray:
    """Returns a measure of one group, of shape (seeds, settings); accuracy in %."""
    values = np.array(results["samples"][samples][name])
    values = 100 * values if name == "test_accuracy" else values
    sizes = [len(group["settings"]) for group in results["groups"].values()]
    parts = np.split(values, np.cumsum(sizes)[:-1], axis=1)
    return dict(zip(results["groups"], parts, strict=True))[symbol]


def verdict(test_loss: np.ndarray, settings: Sequence[float], reference: float, symbol: str) -> str:
    """Says which setting has the lowest test loss, and how sure that is.

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
    """Says how the lowest test losses of the groups differ, seed by seed."""
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
    """Returns all tables, in Markdown."""
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
                *markdown(
                    [
                        (symbol, *VALUES.values()),
                        *(
                            (f"{setting:g}", *(cells(columns, n)))
                            for n, setting in enumerate(settings)
                        ),
                    ]
                ),
                "",
                verdict(columns["test_loss"], settings, group["off"], symbol),
                "",
            ]
    for samples in results["samples"]:
        lines += [f"#### Best against best in test loss, {int(samples):,} samples", ""]
        lines += [*best_against_best(results, samples), ""]
    return "\n".join(lines)


def cells(columns: Mapping[str, np.ndarray], n: int) -> list[str]:
    """Returns the measures of a setting, as mean ± standard deviation."""
    return [
        _mean_and_deviation(values[:, n], 2 if name == "test_accuracy" else 4)
        for name, values in columns.items()
    ]


def plot(results: Mapping[str, Any], symbol: str, beside: str | None, path: Path) -> None:
    """Draws every measure over the settings of a group, a row for each number of samples.

    Lines are means over the seeds, bands reach from the lowest to the highest seed; the dotted
    line is where the method is switched off. Beside it may be a group of as many settings.
    """
    group, samples_ = results["groups"][symbol], results["samples"]
    settings, off = group["settings"], list(group["settings"]).index(group["off"])
    places = np.arange(len(settings))
    title = (
        f"Softmax regression on {results['dataset']}, {results['steps']:,} steps; mean and range "
        f"of {len(results['seeds'])} seeds; dotted: switched off"
    )
    size = (13, 3.0 * len(samples_) + 0.6)
    with figures.picture(path, size, title, dpi=100) as figure:
        grid = figure.subplots(len(samples_), len(VALUES), squeeze=False)
        for row, samples in zip(grid, samples_, strict=True):
            for axes, (name, label) in zip(row, VALUES.items(), strict=True):
                for shown, look in figures.styles(list(filter(None, (symbol, beside)))):
                    values = values_of(results, samples, shown, name)
                    look["label"] = CURVES[shown]
                    axes.plot(places, values.mean(0), marker=".", **look)
                    band = {"color": look["color"], "alpha": 0.15, "linewidth": 0}
                    axes.fill_between(places, values.min(0), values.max(0), **band)
                switched_off = values_of(results, samples, symbol, name)[:, off].mean()
                axes.axhline(switched_off, color="0.5", linestyle=":", linewidth=1)
                axes.set_xticks(places, [f"{setting:g}" for setting in settings], fontsize=7)
                if name.endswith("loss"):
                    figures.log_axis(axes)
                axes.set(xlabel=symbol if beside is None else f"{symbol} or {beside}")
                axes.set_title(f"{label}; {int(samples):,} samples", fontsize=9, pad=6)
        if beside is not None:
            grid[0, 0].legend(fontsize=8)


def _difference(values: np.ndarray) -> str:
    spread = f" ± {values.std(ddof=1):.4f}" if len(values) > 1 else ""
    lower = f"lower from {(values < 0).sum()} of {len(values)} seeds"
    return f"{signed(values.mean(), '.4f')}{spread} ({lower})"


def _mean_and_deviation(values: np.ndarray, digits: int) -> str:
    mean = f"{values.mean():.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {values.std(ddof=1):.{digits}f}"


@program(make_parser)
def main(args: Namespace, parser: Parser) -> int:
    """Runs the command line; returns the exit code."""
    config = Config(dataset=args.dataset)
    dataset = dataset_of(config, args.data_path)
    if not isinstance(dataset, Dataset):
        raise SettingError("dataset", f"must be one that fits into memory, got {args.dataset}")
    sizes, seeds = samples_of(args, dataset), seeds_of(args)
    name = f"ablations-{args.dataset}"
    with run_folder(args.root, args.exp_name, otherwise=name, resume=args.resume) as folder:
        settings = {
            "dataset": args.dataset,
            "data": json.loads(json.dumps(dataset.fingerprint())),
            "steps": -(-args.steps // ablation.K) * ablation.K,
            "batch_size": args.batch_size,
            "alpha": ablation.ALPHA,
            "learning_rate": ablation.LEARNING_RATE,
            "seeds": list(seeds),
            "groups": json.loads(json.dumps(ablation.groups())),
        }
        path = folder / "results.json"
        results: dict[str, Any] = {
            "command": shown_command(shlex.join([sys.executable, *sys.argv])),
            **settings,
            "samples": measured_before(path, settings, parser),
            "date": datetime.now().astimezone().isoformat(timespec="seconds"),
            **circumstances(),
        }
        write_json(folder / "settings.json", results | {"samples": sizes})
        for samples in sizes:
            if str(samples) in results["samples"]:
                print(f"{samples} samples: done before", flush=True)
                continue
            started = time.perf_counter()
            values = ablation.ablate(
                dataset, samples, args.steps, args.batch_size, len(seeds), ablation.grid()
            )
            seconds = time.perf_counter() - started
            print(f"{samples} samples: {seconds:.0f} s with compilation", flush=True)
            results["samples"][str(samples)] = {"seconds": round(seconds, 1)} | {
                name: np.round(np.float64(value), 5).tolist() for name, value in values.items()
            }
            write_json(path, results)
        (folder / "table.md").write_text(page(results), encoding="utf-8")
        plot(results, "α", "c", folder / "alpha.png")
        plot(results, "β", None, folder / "beta.png")
        print(f"\n{page(results)}\nAll of it is in {folder.resolve()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
