"""Compares stagewise SGD, stagewise Lookahead (SLA) and SLRLA, in a few minutes.

    python examples/compare.py

trains a small residual network on scikit-learn's digits with each optimizer, from the same
initial weights, on the same batches, from several seeds. It prints a table of test accuracies,
and leaves it in a folder under `runs/` together with the curves, the metrics of each epoch, and
all settings. `--help` says what can be changed.
"""

import signal
import sys
from argparse import Namespace

if __name__ == "__main__":  # Ctrl-C while the following imports take their seconds is no error.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from experiments import flags, sweep
from experiments.command_line import (
    add_settings,
    add_sweep,
    config_of,
    program,
    report_training,
    seeds_of,
    sweep_options,
)
from experiments.config import Config
from experiments.flags import Parser
from experiments.optimizers import OPTIMIZERS
from experiments.processes import add_processes
from experiments.sweep import Entry, Sweep

BASE = Config(stages_in="steps", whole_cycles=True, beta=0.01, recalibrate=False)
COMPARED = ("sgd", "sla", "slrla")


def make_parser() -> Parser:
    """Returns the parser of the command line."""
    parser = Parser(
        prog="compare.py",
        description="Compare stagewise SGD, stagewise Lookahead (SLA) and SLRLA: same initial "
        "weights, same batches, same number of gradients.",
    )
    add_settings(
        parser,
        "data and model",
        BASE,
        dataset="--dataset",
        train_images="--train_images",
        model="--network",
    )
    add_settings(
        parser,
        "training",
        BASE,
        epochs="--epochs",
        batch_size="--batch_size",
        milestones="--stages",
        learning_rate="--lr",
        sync_period="--k",
        slow_step_size="--alpha",
        beta="--beta",
    )
    parser.add_argument(
        "--optimizers",
        type=flags.names_among(COMPARED),
        default=COMPARED,
        metavar="NAMES",
        help="which to compare, comma-separated; the others are compared with the first "
        f"(default: {','.join(COMPARED)})",
    )
    add_sweep(parser, seeds=5, name="--name")
    add_processes(parser)
    return parser


def sweep_of(args: Namespace, parser: Parser) -> Sweep:
    """Returns what the command line asks for."""
    return Sweep(
        entries=[
            Entry(OPTIMIZERS[name].label, config_of(args, BASE, optimizer=name), name)
            for name in args.optimizers
        ],
        seeds=seeds_of(args),
        report=report_training,
        one_device=True,
        **sweep_options(args, parser),
    )


@program(make_parser)
def main(args: Namespace, parser: Parser) -> int:
    """Runs the command line; returns the exit code."""
    return sweep.run(sweep_of(args, parser))


if __name__ == "__main__":
    sys.exit(main())
