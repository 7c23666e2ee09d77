"""Trains with Lookbehind, SAM or ASAM, with the command lines of Lookbehind's released code.

    python examples/example_cifar.py --minimizer Lookbehind_SAM --rho 0.05 --k 2 --alpha -1

is ResNet-34 on CIFAR-10 for 200 epochs; `--dataset CIFAR100 --model resnet50` is the paper's
other setting. The learning rate falls to a tenth after each quarter of the run. `--help`
lists all flags.
"""

import argparse
import dataclasses
import functools
import sys
from collections.abc import Sequence

import numpy as np
from experiments import optimizers
from experiments.config import Config
from experiments.data import Data
from experiments.optimizers import OPTIMIZERS
from experiments.running import command_line, flags
from experiments.running.launch import Job
from experiments.schedules import stages_of, with_milestones_that_fit

MINIMIZERS = {
    name: OPTIMIZERS[name] for name in ("sgd", "sam", "asam", "lookbehind_sam", "lookbehind_asam")
}
# The released recipe: a tenth of the learning rate after 50, 100 and 150 of 200 epochs.
MILESTONES, DECAY = (0.25, 0.5, 0.75), 0.1

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
        type=flags.spelling(functools.partial(optimizers.find, known=MINIMIZERS)),
        default="lookbehind_sam",
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
        help="of SGD, coupled (L2) (default: %(default)s)",
    )
    return parser


def config_of(args: argparse.Namespace) -> Config:
    """What the flags mean."""
    return Config(
        dataset=args.dataset,
        train_images=args.train_images,
        model=args.network,
        bf16=args.bf16,
        epochs=args.epochs,
        batch_size=args.batch_size,
        milestones=MILESTONES,
        stages_in="steps",
        learning_rate=args.lr,
        decay=DECAY,
        optimizer=args.minimizer,
        momentum=args.momentum,
        weight_decay=args.weight_decay,
        slow_step_size="adaptive" if args.alpha == ADAPTIVE else args.alpha,
        ascent_steps=args.k,
        rho=args.rho,
        eta=args.eta,
    )


def make_job(args: argparse.Namespace, parser: flags.Parser) -> Job:
    """The job that the flags ask for; what is wrong with them together ends the program."""
    dataset = as_released(command_line.dataset_of(args, parser))
    model = command_line.model_of(args, parser, dataset)
    epoch = dataset.train_size // args.batch_size
    steps = args.epochs * epoch
    config = with_milestones_that_fit(config_of(args), steps, epoch)
    return command_line.job_of(args, parser, model, config, stages_of(config, steps, epoch))


def as_released(dataset: Data) -> Data:
    """The data set with the deviations that Lookbehind's code divides CIFAR-10 by."""
    if dataset.name != "cifar10":
        return dataset
    return dataclasses.replace(dataset, std=np.float32(CIFAR10_STD) * np.float32(255))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = make_parser()
    return command_line.run_job(
        "example_cifar.py", lambda: make_job(parser.parse_args(argv), parser)
    )


if __name__ == "__main__":
    sys.exit(main())
