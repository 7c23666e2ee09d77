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
from experiments import figures, flags
from experiments.command_line import add_settings, add_sweep, program, seeds_of
from experiments.config import Config, SettingError
from experiments.data import Dataset
from experiments.flags import Parser
from experiments.parts import provenance, run
from experiments.report import markdown, signed
from experiments.settings import Settings
from experiments.studies import ablation
from experiments.studies.ablation import METHODS, Problem, Setting
from experiments.sweep import dataset_of
from scipy import stats

BASE = Config(batch_size=128)
# What is chosen by and compared: its name, what it is multiplied by, and how it is written.
MEASURES = {"loss": ("test loss", 1, ".4f"), "error": ("test error, %", 100, ".2f")}
# What is compared with what.
PAIRS = [("LA", "SGD"), ("SLA", "SGD"), ("SLRLA", "SGD"), ("SLRLA", "SLA")]
CONFIDENCE = 0.95

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
        help="training steps (default: %(default)s)",
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


def compare(problem: Problem, name: str, seeds: Sequence[int]) -> Settings:
    """Tunes a method, and measures the best settings from fresh seeds.

    Returns:
      `axes` of the grid; `tried`, what its settings achieve on the held-out images; and `runs`: for
      each α, and each measure that a setting may be chosen by, the best setting, those of its
      values that lie at an edge of the grid, and what it achieves, seed by seed.
    """
    method, rounded = METHODS[name], lambda values: np.round(np.float64(values), 6).tolist()
    grid = method.grid(problem.samples)
    tuned = ablation.measure(problem, method, grid, [ablation.TUNING_SEED], tuning=True)
    tried = {measure: tuned[measure][0] for measure in MEASURES}
    best = [
        (by, min((n for n, s in enumerate(grid) if s.alpha == alpha), key=lambda n: tried[by][n]))
        for by, alpha in itertools.product(MEASURES, method.alphas)
    ]
    measured = ablation.measure(problem, method, [grid[n] for _, n in best], seeds)
    return {
        "axes": method.axes,
        "tried": {by: rounded(values) for by, values in tried.items()},
        "runs": [
            {
                "by": by,
                "setting": grid[n]._asdict(),
                "validation": rounded(tried[by][n]),
                "at_edge": edges(grid[n], grid),
                **{measure: rounded(values[:, row]) for measure, values in measured.items()},
            }
            for row, (by, n) in enumerate(best)
        ],
    }


def edges(setting: Setting, grid: Sequence[Setting]) -> list[str]:
    """Returns which values are the lowest or highest of the grid.

    0 is no edge, since no weight decay or β is below it; nor is the highest α, above which there
    is only 1, which is SGD.
    """
    at_edge = []
    for name, values in zip(Setting._fields, zip(*grid, strict=True), strict=True):
        value, lowest, highest = getattr(setting, name), min(values), max(values)
        highest = np.inf if name == "alpha" else highest
        if value in (lowest, highest) and value != 0 and len(set(values)) > 1:
            at_edge.append(name)
    return at_edge


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
        for by, (title, factor, form) in MEASURES.items():
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
    return "\n".join([*lines, "![Against α](alpha.png)", ""])


def row(of: Run, name: str, by: str) -> list[str]:
    """Returns a row of the table of the best settings."""
    _, factor, form = MEASURES[by]
    values = (f"{of['setting'][n]:.3g}" for n in Setting._fields)
    return [
        name,
        *values,
        mean_and_deviation(factor * np.array(of[by]), form),
        mean_and_deviation(np.array(of["train_loss"]), ".4f"),
    ]


def differences(results: Settings, samples: str, names: Sequence[str], by: str) -> list[str]:
    """Says how the best settings of the methods differ, seed by seed."""
    title, factor, form = MEASURES[by]
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
        low, high = interval(difference)
        told += f" [{signed(low, form)}, {signed(high, form)}]"
    return f"{told}, lower from {(difference < 0).sum()} of {seeds} seeds"


def interval(values: np.ndarray) -> tuple[float, float]:
    """Returns the confidence interval of a mean, by Student's t."""
    mean, half = values.mean(), stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)
    half *= values.std(ddof=1) / np.sqrt(len(values))
    return mean - half, mean + half


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
        for name, by in itertools.product(names, MEASURES)
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
    """Draws loss and error over α, a row for each number of samples; SGD is the dotted line."""
    shown = list(computed(results))
    title = (
        f"Softmax regression on {results['dataset']}, {results['steps']:,} steps: for each α, what "
        f"is best by held-out images; mean and range of {len(results['seeds'])} seeds"
    )
    size = (9, 3.2 * len(shown) + 0.6)
    with figures.picture(folder / "alpha.png", size, title, dpi=100) as figure:
        grid = figure.subplots(len(shown), len(MEASURES), squeeze=False)
        for panels, (samples, names) in zip(grid, shown, strict=True):
            for axes, (by, (label, factor, _)) in zip(panels, MEASURES.items(), strict=True):
                for name, look in figures.styles(names):
                    of_alpha = runs(results, samples, name, by)
                    values = factor * np.array([run[by] for run in of_alpha])
                    mean, low, high = values.mean(1), values.min(1), values.max(1)
                    band = {"color": look["color"], "alpha": 0.15, "linewidth": 0}
                    if len(of_alpha) == 1:
                        axes.axhline(mean[0], **look)
                        axes.axhspan(low[0], high[0], **band)
                    else:
                        alphas = [run["setting"]["alpha"] for run in of_alpha]
                        axes.plot(alphas, mean, marker=".", **look)
                        axes.fill_between(alphas, low, high, **band)
                axes.set(xlabel="α")
                axes.set_title(f"{label}; {int(samples):,} samples", fontsize=9, pad=6)
        grid[0, 0].legend(fontsize=8)


@program(make_parser)
def main(args: Namespace, parser: Parser) -> int:
    """Runs the command line; returns the exit code."""
    dataset = dataset_of(Config(dataset=args.dataset), args.data_path)
    if not isinstance(dataset, Dataset):
        raise SettingError("dataset", f"must be one that fits into memory, got {args.dataset}")
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
