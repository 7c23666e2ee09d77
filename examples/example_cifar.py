"""Trains with Lookbehind, SAM or ASAM, with the command lines of Lookbehind's released code.

    python examples/example_cifar.py --minimizer Lookbehind_SAM --rho 0.05 --k 2 --alpha -1

is ResNet-34 on CIFAR-10 for 200 epochs; `--dataset CIFAR100 --model resnet50` is the paper's
other setting. The learning rate falls to a tenth after each quarter of the run. `--help`
lists all flags.
"""

import signal
import sys
from argparse import Namespace
from dataclasses import replace

if __name__ == "__main__":  # Ctrl-C while the following imports take their seconds is no error.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from experiments import flags, sweep
from experiments.command_line import (
    add_checkpoints,
    add_settings,
    add_sweep,
    config_of,
    program,
    single,
)
from experiments.config import Config, SettingError
from experiments.configs.lookbehind import CIFAR as BASE
from experiments.configs.lookbehind import CIFAR10_STD
from experiments.flags import Parser
from experiments.optimizers import OPTIMIZERS
from experiments.processes import add_processes

MINIMIZERS = ("sgd", "sam", "asam", "lookbehind_sam", "lookbehind_asam")
ADAPTIVE = -1.0
# Flags that some minimizers have no use for.
FLAGS = {"ascent_steps": "--k", "slow_step_size": "--alpha", "rho": "--rho", "eta": "--eta"}


def make_parser() -> Parser:
    """Returns the parser of the command line."""
    parser = Parser(
        prog="example_cifar.py",
        description="Train with SAM, ASAM or Lookbehind, as Lookbehind's released code does.",
    )
    add_settings(
        parser,
        "data and model",
        BASE,
        dataset="--dataset",
        train_images="--train_images",
        model="--model",
        bf16="--bf16",
    )
    add_settings(
        parser,
        "training",
        BASE,
        epochs="--epochs",
        batch_size="--batch_size",
        eval_every="--eval_every",
        learning_rate="--lr",
        momentum="--momentum",
        weight_decay="--weight_decay",
    )
    add = parser.add_argument_group("optimizer").add_argument
    add(
        "--minimizer",
        dest="optimizer",
        type=flags.spelling(MINIMIZERS),
        default="lookbehind_sam",
        metavar="NAME",
        help=f"{', '.join(MINIMIZERS)}, in any spelling (default: %(default)s)",
    )
    add(
        "--rho",
        dest="rho",
        type=flags.not_negative,
        metavar="ρ",
        help="length of an ascent step (default: the paper's, 0.05, or 0.5 for ASAM)",
    )
    add(
        "--k",
        dest="ascent_steps",
        type=flags.count,
        metavar="N",
        help="ascent steps of Lookbehind in a training step, which takes one gradient more "
        f"(default: {BASE.ascent_steps})",
    )
    add(
        "--alpha",
        dest="slow_step_size",
        type=flags.number(
            "more than 0 and at most 1, or -1", lambda a: a == ADAPTIVE or 0 < a <= 1
        ),
        metavar="α",
        help="slow step size of Lookbehind; -1 for one that adapts in each step "
        f"(default: {ADAPTIVE:g})",
    )
    add(
        "--eta",
        dest="eta",
        type=flags.not_negative,
        metavar="η",
        help="what ASAM adds to the magnitude of a weight (default: 0, as released)",
    )
    add_sweep(parser)
    add_checkpoints(parser, "--epochs")
    add_processes(parser)
    return parser


def config(args: Namespace) -> Config:
    """Returns the configuration that the flags stand for.

    Raises:
      SettingError: if one of them has no effect on the minimizer.
    """
    optimizer = OPTIMIZERS[args.optimizer]
    for setting in FLAGS:
        if getattr(args, setting) is None:
            delattr(args, setting)
        elif setting not in optimizer.settings:
            raise SettingError(setting, f"has no effect on {optimizer.label}")
    if getattr(args, "slow_step_size", None) == ADAPTIVE:
        args.slow_step_size = "adaptive"
    base = replace(BASE, channel_std=CIFAR10_STD if args.dataset == "cifar10" else None)
    return config_of(args, base)


@program(make_parser)
def main(args: Namespace, parser: Parser) -> int:
    """Runs the command line; returns the exit code."""
    return sweep.run(single(config(args), args, parser))


if __name__ == "__main__":
    sys.exit(main())
