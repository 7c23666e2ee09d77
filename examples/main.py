"""Trains a network of the SLRLA paper, with the command lines of its released code.

    python examples/main.py --dataset CIFAR10 --network ResNet-18 --input_norm \
        --exp_name sgd_SLRLA --wd 1e-3 --lr 1e-1 --lookahead 5_0.8 --slr 5_0.2

`--lookahead k_α` puts Lookahead around the optimizer, `--slr S_β` adds the regulariser of
SLRLA in the released convention. Without them it is stagewise SGD. What the paper has and the
released code has not, settings of each stage's own, is reached by `--stage_betas` and its
like. `--help` lists all flags.
"""

import argparse
import functools
import sys
from collections.abc import Sequence
from typing import TypeVar

from experiments.optimizers import INNER, piecewise, released, stage_lengths
from experiments.running import command_line, flags, stages
from experiments.running.launch import Job

from slrla_jax import Stage, slow_params, slrla

Value = TypeVar("Value")

MILESTONES = (0.3, 0.6, 0.8)
DEFAULT_K = 5


def make_parser() -> flags.Parser:
    """The command line."""
    parser = flags.Parser(
        prog="main.py", description="Train a network of the SLRLA paper, as its released code does."
    )
    command_line.add_flags(
        parser,
        epochs="--tr_epochs",
        batch_size="--train_batch_size",
        network="--network",
        input_norm="--input_norm",
    )
    add = parser.add_argument_group("optimizer").add_argument
    add(
        "--optim",
        type=flags.spelling(find_inner),
        default="SGD",
        metavar="NAME",
        help=f"{', '.join(INNER)} (default: %(default)s)",
    )
    add("--lr", type=flags.positive, default=0.1, help="learning rate (default: %(default)s)")
    add(
        "--wd",
        type=flags.not_negative,
        default=1e-3,
        help="weight decay: in the gradient for SGD, Adam, RAdam and AdaBound, beside it for AdamW "
        "and AdaBelief (default: %(default)s)",
    )
    add(
        "--momentum",
        type=flags.fraction,
        default=0.9,
        help="of SGD; b1 of the others (default: %(default)s)",
    )
    add(
        "--milestones",
        type=flags.milestones,
        metavar="LIST",
        help="where the next stage begins: fractions of the run below 1, or epochs; none for a "
        f"constant learning rate (default: {','.join(map(str, MILESTONES))}, without those that "
        "a short run has no epoch for)",
    )
    add(
        "--gamma",
        type=flags.positive,
        default=0.2,
        help="what the learning rate is multiplied with there (default: %(default)s)",
    )
    add(
        "--lookahead",
        type=flags.pair("k_α", flags.count, flags.step_size),
        metavar="k_α",
        help="Lookahead with k fast steps and slow step size α, 5_0.8 in the paper",
    )
    add(
        "--slr",
        type=flags.pair("S_β", flags.count, flags.not_negative),
        metavar="S_β",
        help="SLRLA's regulariser with a new anchor every S steps, and β in the convention of the "
        "released code, half that of the paper: 5_0.2",
    )
    add = parser.add_argument_group(
        "the paper's Algorithm 3, instead of --lookahead and --slr: one value for each stage, "
        "with commas between them, or one for all"
    ).add_argument
    add(
        "--stage_betas",
        type=flags.listed(flags.not_negative),
        metavar="LIST",
        help="β in the paper's convention; one anchor for each stage",
    )
    add(
        "--stage_alphas",
        type=flags.listed(flags.step_size),
        metavar="LIST",
        help="slow step size (0.8 if only others of the three are given)",
    )
    add(
        "--stage_ks",
        type=flags.listed(flags.count),
        metavar="LIST",
        help=f"fast steps in a cycle ({DEFAULT_K} if only others of the three are given); stages "
        "are rounded to whole cycles",
    )
    return parser


def make_job(args: argparse.Namespace, parser: flags.Parser) -> Job:
    """What the flags mean; what is wrong with them together ends the program."""
    dataset = command_line.dataset_of(args, parser)
    model = command_line.model_of(args, parser, dataset)
    per_epoch = dataset.train_size // args.batch_size
    staged = any((args.stage_betas, args.stage_alphas, args.stage_ks))
    if staged and (args.lookahead or args.slr):
        parser.error("--stage_betas, --stage_alphas and --stage_ks: not with --lookahead or --slr")
    if args.milestones is None:
        ks = (args.stage_ks or (DEFAULT_K,)) * (len(MILESTONES) + 1) if staged else None
        lengths = functools.partial(
            stage_lengths, epochs=args.epochs, steps_per_epoch=per_epoch, ks=ks
        )
        args.milestones = stages.that_fit(MILESTONES, lengths)
    count = len(args.milestones) + 1
    rates = [args.lr * args.gamma**q for q in range(count)]
    try:
        ks = each_stage("--stage_ks", args.stage_ks, DEFAULT_K, count)
        alphas = each_stage("--stage_alphas", args.stage_alphas, 0.8, count)
        betas = each_stage("--stage_betas", args.stage_betas, 0.0, count)
    except ValueError as error:
        parser.error(str(error))
    try:
        lengths = stage_lengths(args.milestones, args.epochs, per_epoch, ks if staged else None)
    except ValueError as error:
        parser.error(f"--milestones: {error}")

    schedule = piecewise(rates, lengths)
    if staged:
        tx = slrla(
            functools.partial(INNER[args.optim], momentum=args.momentum, weight_decay=args.wd),
            [
                Stage(length // k, rate, beta=beta, sync_period=k, slow_step_size=alpha)
                for length, rate, k, alpha, beta in zip(
                    lengths, rates, ks, alphas, betas, strict=True
                )
            ],
        )
    else:
        tx = released(args.optim, schedule, args.momentum, args.wd, args.lookahead, args.slr)
    return command_line.job_of(
        args,
        parser,
        model,
        tx=tx,
        slow_params=slow_params if staged or args.lookahead else None,
        learning_rate=schedule,
        stages=[(rate, sum(lengths[: q + 1])) for q, rate in enumerate(rates)],
    )


def each_stage(
    flag: str, values: tuple[Value, ...] | None, default: Value, count: int
) -> tuple[Value, ...]:
    """A value for each stage: those of a flag, its one for all, or the default for all.

    Raises:
      ValueError: if there are not as many as stages.
    """
    values = (default,) if values is None else values
    if len(values) == 1:
        return values * count
    if len(values) != count:
        raise ValueError(f"{flag}: must be one value or {count}, for {count} stages, got {values}")
    return values


def find_inner(name: str) -> str:
    """An optimizer's name as `INNER` has it, for any mixture of upper and lower case."""
    known = {key.lower(): key for key in INNER}
    if name.lower() not in known:
        raise ValueError(f"must be one of {', '.join(INNER)}, got {name!r}")
    return known[name.lower()]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = make_parser()
    return command_line.run_job("main.py", make_job(parser.parse_args(argv), parser))


if __name__ == "__main__":
    sys.exit(main())
