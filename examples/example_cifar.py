"""Trains with Lookbehind, SAM or ASAM, with the command lines of Lookbehind's released code.

    python examples/example_cifar.py --minimizer Lookbehind_SAM --rho 0.05 --k 2 --alpha -1

is ResNet-34 on CIFAR-10 for 200 epochs; `--dataset CIFAR100 --model resnet50` is the paper's
other setting. The learning rate falls to a tenth after each quarter of the run. `--help`
lists all flags.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence

import numpy as np
from experiments.data import Dataset, Stream
from experiments.optimizers import MINIMIZERS, ascent_steps, find_minimizer, minimizer, quarters
from experiments.running import command_line, flags
from experiments.running.launch import Job

# By what CIFAR-10's channels are divided there, as fractions of white; main.py has others.
CIFAR10_STD = (0.2471, 0.2435, 0.2616)
ADAPTIVE = -1.0


def make_parser() -> flags.Parser:
    """The command line."""
    parser = flags.Parser(
        prog="example_cifar.py",
        description="Train with SAM, ASAM or Lookbehind, as Lookbehind's released code does.",
    )
    command_line.add_flags(
        parser, epochs="--epochs", batch_size="--batch_size", network="--model", input_norm=None
    )
    parser.set_defaults(network="ResNet-34", epochs=200)
    add = parser.add_argument_group("optimizer").add_argument
    add(
        "--minimizer",
        type=flags.spelling(find_minimizer),
        default="Lookbehind_SAM",
        metavar="NAME",
        help=f"{', '.join(MINIMIZERS)}, in any spelling (default: %(default)s)",
    )
    add(
        "--rho",
        type=flags.not_negative,
        metavar="ρ",
        help="length of an ascent step (default: the paper's, 0.05, and 0.5 of the ASAM kind)",
    )
    add(
        "--k",
        type=flags.count,
        default=2,
        metavar="N",
        help="ascent steps of Lookbehind in a training step, which takes a gradient more than "
        "that (default: %(default)s)",
    )
    add(
        "--alpha",
        type=flags.number(
            "more than 0 and at most 1, or -1", lambda a: a == ADAPTIVE or 0 < a <= 1
        ),
        default=ADAPTIVE,
        metavar="α",
        help="slow step size of Lookbehind; -1 for one that is chosen anew in each step "
        "(default: %(default)g)",
    )
    add(
        "--eta",
        type=flags.not_negative,
        default=0.0,
        metavar="η",
        help="what the ASAM kind adds to the size of a weight (default: 0, as released)",
    )
    add("--lr", type=flags.positive, default=0.1, help="learning rate (default: %(default)s)")
    add("--momentum", type=flags.fraction, default=0.9, help="of SGD (default: %(default)s)")
    add(
        "--weight_decay",
        type=flags.not_negative,
        default=5e-4,
        metavar="WD",
        help="of SGD, in the gradient (default: %(default)s)",
    )
    return parser


def make_job(args: argparse.Namespace, parser: flags.Parser) -> Job:
    """What the flags mean; what is wrong with them together ends the program."""
    dataset = as_released(command_line.dataset_of(args, parser))
    model = command_line.model_of(args, parser, dataset)
    schedule, stages = quarters(args.lr, args.epochs * (dataset.train_size // args.batch_size))
    return command_line.job_of(
        args,
        parser,
        model,
        tx=minimizer(
            args.minimizer,
            schedule,
            args.momentum,
            args.weight_decay,
            rho=args.rho,
            eta=args.eta,
            k=args.k,
            alpha="adaptive" if args.alpha == ADAPTIVE else args.alpha,
        ),
        slow_params=None,  # After a step the params are the slow weights.
        learning_rate=schedule,
        stages=stages,
        gradients_per_step=1 + ascent_steps(args.minimizer, args.k),
    )


def as_released(dataset: Dataset | Stream) -> Dataset | Stream:
    """The data set with the deviations that Lookbehind's code divides CIFAR-10 by."""
    if dataset.name != "cifar10":
        return dataset
    return dataclasses.replace(dataset, std=np.float32(CIFAR10_STD) * np.float32(255))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = make_parser()
    return command_line.run_job("example_cifar.py", make_job(parser.parse_args(argv), parser))


if __name__ == "__main__":
    sys.exit(main())
