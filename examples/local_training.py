"""Trains by workers that exchange weights every k steps, and data parallel, and counts the bytes.

    python examples/local_training.py

trains a small network on scikit-learn's digits with four workers on one device. By

    python examples/launch.py --processes 4 local_training.py

each of them is a process with a device of its own. `--workers`, `--split`, `--sync_period`,
`--outer`, `--beta` and `--send` take several values, of which all combinations are compared at
equal gradients; several `--learning_rates` are first tuned for each. The same command resumes what
was interrupted. `--help` says what can be changed.
"""

import signal
import sys
from argparse import Namespace

if __name__ == "__main__":  # Ctrl-C while the following imports take their seconds is no error.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import jax
from experiments import flags
from experiments.command_line import (
    add_settings,
    add_sweep,
    config_of,
    options_inside,
    program,
)
from experiments.config import SettingError
from experiments.flags import Parser
from experiments.local import study
from experiments.local.methods import SENT, LocalConfig
from experiments.local.shards import SPLITS
from experiments.optimizers import INNER
from experiments.processes import add_processes

BASE = LocalConfig(
    model="mlp",
    epochs=5,
    epoch_steps=100,
    batch_size=64,
    eval_every=5,
    milestones=(),
    warmup=0.05,
    annealing="cosine",
    inner="sgd",
    momentum=0.9,
    weight_decay=0.0,
    recalibrate=False,
)
# Of the workers if there is one device only.
WORKERS = 4


def make_parser() -> Parser:
    """Returns the parser of the command line."""
    parser = Parser(
        prog="local_training.py",
        description="Local training by workers that exchange pseudo-gradients, against data "
        "parallel training: accuracy and loss, and the bytes that a worker sends.",
    )
    add_settings(
        parser,
        "data and model",
        BASE,
        dataset="--dataset",
        train_images="--train_examples",
        model="--network",
    )
    add_settings(
        parser,
        "training; a batch is that of all workers",
        BASE,
        epochs="--epochs",
        epoch_steps="--epoch_steps",
        batch_size="--batch_size",
        momentum="--momentum",
        weight_decay="--weight_decay",
    )
    add = parser.add_argument_group("inner optimizer").add_argument
    add("--inner", choices=INNER, default=BASE.inner, help="each worker's (default: %(default)s)")
    add(
        "--learning_rates",
        type=flags.different(flags.positive),
        default=(0.1,),
        metavar="LIST",
        help="its first learning rate, which falls to 0 by half a cosine wave; of several, the "
        "best on held-out examples, for each entry (default: 0.1)",
    )
    add(
        "--held_out",
        type=flags.count,
        default=200,
        metavar="N",
        help="how many training examples these are (default: %(default)s)",
    )
    add_workers(parser)
    add_sweep(parser, seeds=3, name="--name", always_resumes=True)
    parser.add_argument_group("checkpoints").add_argument(
        "--save_every",
        type=flags.count,
        metavar="STEPS",
        help="save a checkpoint every so many steps, a multiple of all sync periods, and after "
        "each epoch (default: none is saved, and an interrupted seed starts again)",
    )
    add_processes(parser)
    return parser


def add_workers(parser: Parser) -> None:
    """Adds the flags of the workers, all of which are lists."""
    add = parser.add_argument_group("workers; all combinations are compared").add_argument
    add(
        "--workers",
        type=flags.different(flags.count),
        metavar="R",
        help="how many; each has a device, unless there is only one (default: one for each "
        f"device, or {WORKERS} on one)",
    )
    add(
        "--split",
        type=flags.names_among(SPLITS),
        default=("even",),
        metavar="NAMES",
        help="how training examples are divided among them: even, or class by class (class) "
        "(default: even)",
    )
    add(
        "--sync_period",
        type=flags.different(flags.count),
        default=(1, 5, 20),
        metavar="k",
        help="steps of a worker between two outer steps (default: 1,5,20)",
    )
    add(
        "--outer",
        type=flags.listed(flags.pair("η_μ", flags.positive, flags.fraction)),
        default=((1.0, 0.0), (0.7, 0.5)),
        metavar="η_μ",
        help="learning rate and Nesterov momentum of the outer step; 1_0 averages the weights "
        "(default: 1_0,0.7_0.5)",
    )
    add(
        "--beta",
        type=flags.different(flags.not_negative),
        default=(0.0,),
        metavar="β",
        help="strength of a regulariser that pulls a worker towards where its cycle began "
        "(default: 0)",
    )
    add(
        "--send",
        type=flags.names_among(SENT),
        default=("float32",),
        metavar="DTYPES",
        help=f"in what pseudo-gradients are sent, some of {', '.join(SENT)} (default: float32)",
    )
    parser.flags_of |= {"outer_learning_rate": "--outer (η)", "outer_momentum": "--outer (μ)"}


def workers_of(args: Namespace) -> tuple[int, ...]:
    """Returns the numbers of workers that are compared."""
    devices = jax.device_count()
    return args.workers or ((devices if devices > 1 else WORKERS),)


@program(make_parser, again="the same command")
def main(args: Namespace, parser: Parser) -> int:
    """Runs the command line; returns the exit code."""
    if len(set(args.outer)) < len(args.outer):
        raise SettingError("outer", "must be different pairs")
    if args.save_every is not None and any(args.save_every % k for k in args.sync_period):
        raise SettingError(
            "save_every",
            f"must be a multiple of the sync periods {', '.join(map(str, args.sync_period))}, "
            f"got {args.save_every}",
        )
    args.workers = workers_of(args)
    base = config_of(args, BASE, beta=0.0, sync_period=1, held_out=None)
    options = options_inside(args, parser) | {"one_device": False}
    return study.run(args, base, options)


if __name__ == "__main__":
    sys.exit(main())
