"""What Lookahead and the regulariser are worth in softmax regression, if SGD is tuned as well.

    python examples/ablations.py --dataset fashion_mnist --data_path DIR --samples 60000,2000

A convex problem, for which the theory of the SLRLA paper says what to expect: with few samples
for the number of steps, a slow step size α below 1 is best. Plain Lookahead (LA), Lookahead in
stages (SLA) and SLRLA are compared with SGD. Each is tuned on the same grid of learning rates and
weight decays, and of its own α and β, by held-out training images; what is best is then trained
from fresh seeds, for each α, and measured on the test images.
"""

import itertools
import signal
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # Ctrl-C while the following imports take their seconds is no error.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import numpy as np
from experiments import figures, flags, paired
from experiments.command_line import add_settings, add_sweep, program, seeds_of
from experiments.config import Config, SettingError
from experiments.data import Dataset
from experiments.flags import Parser
from experiments.parts import provenance, run
from experiments.report import markdown, signed
from experiments.run import images_of
from experiments.settings import Settings
from experiments.studies import ablation
from experiments.studies.ablation import METHODS, Problem, Setting, compare
from experiments.sweep import dataset_of
from matplotlib.axes import Axes

BASE = Config(batch_size=128)
# Of each measure its name, what it is multiplied by, and how it is written.
SHOWN = {"loss": ("test loss", 1, ".4f"), "error": ("test error, %", 100, ".2f")}
# What is compared with what.
PAIRS = [("LA", "SGD"), ("SLA", "SGD"), ("SLRLA", "SGD"), ("SLRLA", "SLA")]

Run = dict[str, Any]


def make_parser() -> Parser:
    """Returns the parser of the command line."""
    parser = Parser(
        prog="ablations.py",
        description="Softmax regression with SGD, Lookahead, SLA and SLRLA, each tuned on the same "
        "grid, from few samples and from many.",
    )
    add_settings(parser, "data", BASE, dataset="--dataset", batch_size="--batch_size")
    add = parser.add_argument_group("training").add_argument
    add(
        "--samples",
        type=flags.different(flags.count),
        metavar="LIST",
        help="training images of each seed, comma-separated: one comparison for each number "
        "(default: all, and a thirtieth of them, at least a batch)",
    )
    add(
        "--steps",
        type=flags.count,
        default=4_680,
        metavar="N",
        help=f"training steps, rounded up to whole cycles of {ablation.K} (default: %(default)s)",
    )
    add(
        "--methods",
        type=flags.names_among(METHODS),
        default=tuple(METHODS),
        metavar="NAMES",
        help=f"comma-separated (default: {','.join(METHODS)})",
    )
    add_sweep(parser, seeds=10, name="--name")
    return parser


def samples_of(args: Namespace, dataset: Dataset) -> tuple[int, ...]:
    """Returns how many samples each comparison is made from.

    Raises:
      SettingError: if there are too few images for a batch or for the samples.
    """
    size, batch = dataset.train_size, args.batch_size
    kept = size - size // ablation.HELD_OUT
    if batch > kept:
        raise SettingError("batch_size", f"must be at most {kept}, got {batch}")
    chosen = args.samples or tuple(dict.fromkeys((size, max(size // 30, batch))))
    for samples in chosen:
        if not batch <= samples <= size:
            raise SettingError(
                "samples", f"must be from {batch} (the batch size) to {size}, got {samples}"
            )
    return chosen


def best_run(results: Settings, samples: str, name: str, by: str) -> Run:
    """Returns the run of a method whose setting is the best of all by the held-out images."""
    return min(runs(results, samples, name, by), key=lambda run: run["validation"])


def runs(results: Settings, samples: str, name: str, by: str) -> list[Run]:
    """Returns the runs of a method, a setting for each α, that are chosen by a measure."""
    return [run for run in results["parts"][part(samples, name)]["runs"] if run["by"] == by]


def part(samples: int | str, name: str) -> str:
    """Names what is computed at once."""
    return f"{name}, {int(samples)} samples"


def computed(results: Settings) -> Iterator[tuple[str, list[str]]]:
    """Yields each number of samples, and the methods that were compared."""
    names = [title.removesuffix(" samples").split(", ") for title in results["parts"]]
    for samples in sorted({n for _, n in names}, key=int, reverse=True):
        yield samples, [name for name in METHODS if [name, samples] in names]


def page(results: Settings) -> str:
    """Returns all tables, in Markdown."""
    kept = 1 - 1 / ablation.HELD_OUT
    lines = [
        f"Softmax regression on {results['dataset']}, {results['steps']:,} steps of "
        f"{results['batch_size']} images, momentum {ablation.MOMENTUM}, k {ablation.K}; mean ± "
        f"standard deviation of {len(results['seeds'])} seeds, each with samples and batches of "
        f"its own. Each method was tuned from one other seed: trained on {kept:.0%} of the "
        "training images, or on as many samples of them, and measured on the rest. "
        f"{provenance(results)}",
        "",
    ]
    for samples, names in computed(results):
        for by, (title, factor, form) in SHOWN.items():
            lines += [f"#### {int(samples):,} samples: {title}", ""]
            lines += markdown(
                [
                    ("", "learning rate or c", "weight decay", "α", "β", title, "training loss"),
                    *(row(best_run(results, samples, name, by), name, by) for name in names),
                ]
            )
            lines += ["", *differences(results, samples, names, by), ""]
            lines += [f"For each α, with the other settings tuned for it, {title}:", ""]
            lines += [*over_alpha(results, samples, names, by, factor, form), ""]
    lines += [edges_in_words(results), ""]
    return "\n".join([*lines, "![Difference to SGD over α](alpha.png)", ""])


def row(of: Run, name: str, by: str) -> list[str]:
    """Returns a row of the table of the best settings."""
    _, factor, form = SHOWN[by]
    values = (f"{of['setting'][n]:.3g}" for n in Setting._fields)
    return [
        name,
        *values,
        mean_and_deviation(factor * np.array(of[by]), form),
        mean_and_deviation(np.array(of["train_loss"]), ".4f"),
    ]


def differences(results: Settings, samples: str, names: Sequence[str], by: str) -> list[str]:
    """Says how the best settings of the methods differ, seed by seed."""
    title, factor, form = SHOWN[by]
    lines = []
    for one, other in PAIRS:
        if one in names and other in names:
            values = [np.array(best_run(results, samples, name, by)[by]) for name in (one, other)]
            difference = factor * (values[0] - values[1])
            lines.append(f"- {one} against {other}, {title}: {in_words(difference, form)}")
    return lines


def in_words(difference: np.ndarray, form: str) -> str:
    """Returns a mean and its confidence interval, and from how many seeds it is below 0."""
    seeds = len(difference)
    told = signed(difference.mean(), form)
    if seeds > 1:
        low, high = paired.compare(difference).interval
        told += f" [{signed(low, form)}, {signed(high, form)}]"
    return f"{told}, lower from {(difference < 0).sum()} of {seeds} seeds"


def over_alpha(
    results: Settings, samples: str, names: Sequence[str], by: str, factor: float, form: str
) -> list[str]:
    """Returns the table of a measure: a row for each α, a column for each method."""
    columns = {
        name: {
            run["setting"]["alpha"]: mean_and_deviation(factor * np.array(run[by]), form)
            for run in runs(results, samples, name, by)
        }
        for name in names
    }
    alphas = sorted({alpha for column in columns.values() for alpha in column})
    rows = [
        [f"{alpha:g}", *(column.get(alpha, "–") for column in columns.values())] for alpha in alphas
    ]
    return markdown([["α", *columns], *rows])


def edges_in_words(results: Settings) -> str:
    """Says which of the chosen values lie at the edge of their grid."""
    at_edge = [
        f"{name}, {int(samples):,} samples, by {by}: {', '.join(of['at_edge'])}"
        for samples, names in computed(results)
        for name, by in itertools.product(names, SHOWN)
        if (of := best_run(results, samples, name, by))["at_edge"]
    ]
    if not at_edge:
        return "None of the best settings lies at an edge of its grid, but where 0 is best."
    return f"At an edge of the grid lie the best of: {'; '.join(at_edge)}."


def mean_and_deviation(values: np.ndarray, form: str) -> str:
    """Returns the mean over the seeds, and their standard deviation if there are several."""
    mean = f"{values.mean():{form}}"
    return mean if len(values) == 1 else f"{mean} ± {values.std(ddof=1):{form}}"


def draw(results: Settings, folder: Path) -> None:
    """Draws by how much loss and error differ from those of the first method, over α."""
    shown = list(computed(results))
    first = shown[0][1][0]
    title = (
        f"Softmax regression on {results['dataset']}, {results['steps']:,} steps: difference to "
        f"{first} from the same seeds, for each α with what is best by held-out images; mean and "
        f"{1 - paired.LEVEL:.0%} interval, {len(results['seeds'])} seeds"
    )
    size = (9, 3.2 * len(shown) + 0.6)
    with figures.picture(folder / "alpha.png", size, title, dpi=100) as figure:
        grid = figure.subplots(len(shown), len(SHOWN), squeeze=False)
        for panels, (samples, names) in zip(grid, shown, strict=True):
            for axes, by in zip(panels, SHOWN, strict=True):
                draw_differences(axes, results, samples, names, by)
        grid[0, 0].legend(fontsize=8)


def draw_differences(
    axes: Axes, results: Settings, samples: str, names: Sequence[str], by: str
) -> None:
    """Draws a panel: the first method is the line at 0; the others are side by side."""
    label, factor, _ = SHOWN[by]
    reference = np.array(best_run(results, samples, names[0], by)[by])
    for place, (name, look) in enumerate(figures.styles(names)):
        if not place:
            axes.axhline(0, **look)
            continue
        of_alpha = runs(results, samples, name, by)
        alphas = [run["setting"]["alpha"] + 0.008 * (place - 2) for run in of_alpha]
        values = [factor * (np.array(run[by]) - reference) for run in of_alpha]
        axes.plot(alphas, [v.mean() for v in values], marker=".", **look)
        if len(reference) > 1:
            low, high = zip(*(paired.compare(v).interval for v in values), strict=True)
            axes.vlines(alphas, low, high, color=look["color"])
    axes.set(xlabel="α")
    axes.set_title(f"{label}; {int(samples):,} samples", fontsize=9, pad=6)


@program(make_parser)
def main(args: Namespace, parser: Parser) -> int:
    """Runs the command line; returns the exit code."""
    dataset = images_of(dataset_of(Config(dataset=args.dataset), args.data_path))
    seeds = seeds_of(args)
    settings = {
        "dataset": args.dataset,
        "data": dataset.fingerprint(),
        "steps": ablation.stages_in(args.steps).steps,
        "batch_size": args.batch_size,
        "seeds": list(seeds),
    }
    parts = {
        part(samples, name): partial(
            compare, Problem(dataset, samples, args.steps, args.batch_size), name, seeds
        )
        for samples, name in itertools.product(samples_of(args, dataset), args.methods)
    }
    return run(args, parser, f"ablations-{args.dataset}", settings, parts, page, draw)


if __name__ == "__main__":
    sys.exit(main())
