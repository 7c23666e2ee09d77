"""How much policy gradients depend on b0: REINFORCE on CartPole with AdaLoss and its baselines.

    python examples/policy_gradient.py

trains a small policy with AdaLoss, AdaGrad-Norm, SGD_Constant and SGD_DecaySqrt, each with several
learning rates and from many b0, on gymnax's CartPole-v1 (the extra `control`). All values of b0
and all seeds are trained at once, in one compiled program. Measured are the mean return at the end
and the area under its curve.

AdaLoss is told the surrogate loss, and c is 0. That loss may be negative and says nothing about
the distance to the best policy, but it is 0 where no episode ends early: then every advantage is 0.
b, which grows by its absolute value, comes to rest there. With `--loss gap` AdaLoss is told
instead how far the mean return is from the highest.
"""

import signal
import sys
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

if __name__ == "__main__":  # Ctrl-C while the following imports take their seconds is no error.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import numpy as np
from experiments import figures, flags
from experiments.command_line import add_sweep, program, seeds_of
from experiments.config import SettingError
from experiments.flags import Parser
from experiments.optimizers import OPTIMIZERS
from experiments.parts import measured, provenance, run, table_of
from experiments.report import Column
from experiments.robustness import add_methods, label_of
from experiments.settings import Settings

FINAL = Column("return at the end", "final", form=".0f")
AREA = Column("mean return of all updates", "area", form=".0f")
# What AdaLoss may be told as the loss.
TOLD = {
    "surrogate": "the surrogate loss",
    "gap": "the gap between the mean return and the highest, relative to that",
}


def make_parser() -> Parser:
    """Returns the parser of the command line."""
    parser = Parser(
        prog="policy_gradient.py",
        description="REINFORCE on CartPole with AdaLoss and its baselines, from many b0.",
    )
    add = parser.add_argument_group("training").add_argument
    add(
        "--updates",
        type=flags.number("a whole number, at least 10", lambda n: n >= 10, int),
        default=100,
        metavar="N",
        help="updates of the policy (default: %(default)s)",
    )
    add(
        "--episodes",
        type=flags.number("a whole number, at least 2", lambda n: n >= 2, int),
        default=8,
        metavar="N",
        help="episodes of each update (default: %(default)s)",
    )
    add(
        "--lr",
        dest="learning_rates",
        type=flags.different(flags.positive),
        default="0.1,1,10",
        metavar="LIST",
        help="learning rates η, comma-separated (default: %(default)s)",
    )
    add(
        "--loss",
        choices=TOLD,
        default="surrogate",
        help=f"what AdaLoss is told: {', or '.join(TOLD.values())} (default: %(default)s)",
    )
    add_methods(parser)
    add_sweep(parser, seeds=5, name="--name", data=False)
    return parser


def train(learning_rate: float, args: Namespace, seeds: Sequence[int]) -> Settings:
    """Trains with every method, b0 and seed; returns what `parts.measured` does."""
    from experiments.studies.policy_gradient import mean_returns

    measures = {}
    for name in args.methods:
        returns = mean_returns(
            name,
            args.loss,
            learning_rate,
            np.float32(args.b0),
            np.array(seeds),
            args.updates,
            args.episodes,
        )
        last = returns[..., -(args.updates // 10) :]
        measures[name] = {"final": last.mean(axis=-1), "area": returns.mean(axis=-1)}
    return measured(measures, args.b0)


def page(results: Settings) -> str:
    """Returns all tables, in Markdown."""
    seeds = results["seeds"]
    lines = [
        f"CartPole-v1, {results['updates']} updates of {results['episodes']} episodes; mean ± "
        f"standard deviation of {len(seeds)} seeds. A return is the number of steps until the pole "
        "falls, at most 500; the return at the end is the mean over the last tenth of the updates. "
        f"AdaLoss is told {TOLD[results['loss']]}. {provenance(results)}",
        "",
    ]
    for title, part in results["parts"].items():
        for column in (FINAL, AREA):
            lines += [f"#### {title}: {column.header}", "", *table_of(part, column, seeds), ""]
    lines += ["![Return over b0, by learning rate and method](policy_gradient.png)", ""]
    return "\n".join(lines)


def draw(results: Settings, folder: Path) -> None:
    """Draws both measures over b0: a panel for each learning rate, a line for each method.

    Lines are means over the seeds, bands reach from the lowest to the highest seed. Where an entry
    has diverged the line is broken.
    """
    parts, values = results["parts"], sorted(results["b0"])
    methods = [OPTIMIZERS[name].label for name in results["methods"]]
    title = (
        f"CartPole-v1, {results['updates']} updates of {results['episodes']} episodes; mean and "
        f"range of {len(results['seeds'])} seeds"
    )
    size = (2.8 * len(parts) + 2, 6)
    with figures.picture(folder / "policy_gradient.png", size, title, dpi=100) as figure:
        grid = figure.subplots(2, len(parts), sharex=True, sharey=True, squeeze=False)
        for row, column in zip(grid, (FINAL, AREA), strict=True):
            for axes, (name, part) in zip(row, parts.items(), strict=True):
                entries = part["entries"]
                for method, look in figures.styles(methods):
                    none = [np.nan] * len(results["seeds"])
                    by_seed = [
                        entries[label]["measured"][column.measure]["final"]["by_seed"]
                        if (label := label_of(method, b0)) in entries
                        else none
                        for b0 in values
                    ]
                    returns = np.array(by_seed)
                    axes.plot(values, returns.mean(1), marker="o", markersize=4, **look)
                    band = {"color": look["color"], "alpha": 0.15, "linewidth": 0}
                    axes.fill_between(values, returns.min(1), returns.max(1), **band)
                axes.set(xscale="log", ylim=(0, 510))
                axes.set_xticks(values, [f"{b0:g}" for b0 in values])
                axes.minorticks_off()
                axes.set_title(name, fontsize=10, pad=6)
            row[0].set_ylabel(column.header)
        for axes in grid[-1]:
            axes.set_xlabel("b0")
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center")


@program(make_parser)
def main(args: Namespace, parser: Parser) -> int:
    """Runs the command line; returns the exit code."""
    if find_spec("gymnax") is None:
        raise SettingError("gymnax", "is not installed; the extra `control` has it")
    seeds = seeds_of(args)
    settings = {
        "methods": args.methods,
        "b0": args.b0,
        "updates": args.updates,
        "episodes": args.episodes,
        "loss": args.loss,
        "seeds": list(seeds),
    }
    parts = {f"η = {rate:g}": partial(train, rate, args, seeds) for rate in args.learning_rates}
    return run(args, parser, "policy_gradient", settings, parts, page, draw)


if __name__ == "__main__":
    sys.exit(main())
