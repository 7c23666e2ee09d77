"""When a method of the Lookahead family helps, and when it does not: a map.

    python examples/when.py

tunes plain SGD, averages of the weights and the methods of this package alike on small, real
problems, and compares them from fresh seeds. It writes a table, which says where a method helps,
makes no difference or hurts, by how much and how surely; and a picture of it. Started again with
the same `--name`, it goes on with the cells that are not finished. `--help` says what can be
changed.
"""

import signal
import sys
from argparse import Namespace
from functools import partial

if __name__ == "__main__":  # Ctrl-C while the following imports take their seconds is no error.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from experiments import flags
from experiments.command_line import add_settings, add_sweep, program, seeds_of
from experiments.config import Config, SettingError
from experiments.flags import Parser
from experiments.parts import run
from experiments.regimes import games, language, sequence, supervised
from experiments.regimes.engine import Regime, cell
from experiments.regimes.picture import draw
from experiments.regimes.table import page
from experiments.run import images_of
from experiments.sweep import dataset_of


def make_parser() -> Parser:
    """Returns the parser of the command line."""
    parser = Parser(
        prog="when.py",
        description="A map of when a method of the Lookahead family helps, and when it does not.",
    )
    add = parser.add_argument_group("map").add_argument
    listed = {"type": flags.listed(str), "metavar": "NAMES"}
    add("--regimes", **listed, help="which, comma-separated (default: all)")
    add("--methods", **listed, help="which to compare with the plain one (default: all)")
    add_settings(parser, "data", supervised.BASE, dataset="--dataset")
    add_sweep(parser, seeds=50, name="--name", always_resumes=True)
    return parser


def regimes_of(args: Namespace) -> dict[str, Regime]:
    """Returns all regimes by their names, in the order of the table.

    Raises:
      SettingError: if the data cannot be read, are not images in memory, or make no tasks.
    """
    dataset = images_of(dataset_of(Config(dataset=args.dataset), args.data_path))
    of_all = [supervised.regimes(dataset), sequence.regimes(dataset), language.regimes()]
    return {regime.name: regime for some in (*of_all, games.regimes()) for regime in some}


def cells_of(args: Namespace) -> dict[str, tuple[Regime, str]]:
    """Returns the cells that were asked for, by the names of their parts.

    The plain method is in every row, as the others are compared with it. Regimes that have none
    of the methods are left out.

    Raises:
      SettingError: if there is no regime or no method of a name, if one is named twice, if no
        regime that was asked for has any of the methods, or if there are fewer than two seeds; and
        as `regimes_of` does.
    """
    regimes = regimes_of(args)
    methods = dict.fromkeys(name for regime in regimes.values() for name in regime.compared)
    for setting, known in (("regimes", regimes), ("methods", methods)):
        asked = getattr(args, setting) or list(known)
        if not set(asked) <= set(known) or len(set(asked)) < len(asked):
            what = f"must be different names among {', '.join(known)}, got {','.join(asked)!r}"
            raise SettingError(setting, what)
    if args.seeds < 2:
        raise SettingError("seeds", f"must be 2 or more for an interval, got {args.seeds}")
    asked = set(args.methods or methods)
    rows = [regimes[name] for name in args.regimes or regimes]
    rows = [regime for regime in rows if asked & set(regime.compared)]
    if not rows:
        raise SettingError("methods", f"none of {', '.join(args.methods)} is in these regimes")
    return {
        f"{regime.name}/{method}": (regime, method)
        for regime in rows
        for method in regime.methods
        if method == regime.plain or method in asked
    }


@program(make_parser, again="the same command with --name")
def main(args: Namespace, parser: Parser) -> int:
    """Runs the command line; returns the exit code."""
    seeds = seeds_of(args)
    parts = {name: partial(cell, *one, seeds) for name, one in cells_of(args).items()}
    settings = {"dataset": args.dataset, "seeds": list(seeds)}
    return run(args, parser, "when", settings, parts, page, draw)


if __name__ == "__main__":
    sys.exit(main())
