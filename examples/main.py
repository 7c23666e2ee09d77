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
from typing import Any

from experiments import optimizers
from experiments.config import Config
from experiments.optimizers import INNER
from experiments.running import command_line, flags
from experiments.running.launch import Job
from experiments.schedules import stages_of, with_milestones_that_fit

MILESTONES = (0.3, 0.6, 0.8)
# Flags of Algorithm 3, and what they set in the configuration.
STAGE_FLAGS = {
    "--stage_ks": "sync_period",
    "--stage_alphas": "slow_step_size",
    "--stage_betas": "beta",
}


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
        type=flags.spelling(functools.partial(optimizers.find, known=INNER)),
        default="sgd",
        metavar="NAME",
        help=f"{', '.join(INNER)}, in any spelling (default: %(default)s)",
    )
    add("--lr", type=flags.positive, default=0.1, help="learning rate (default: %(default)s)")
    add(
        "--wd",
        type=flags.not_negative,
        default=1e-3,
        help="weight decay: decoupled for AdamW and AdaBelief, coupled (L2) for the others "
        "(default: %(default)s)",
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
        help="fast steps in a cycle (5 if only others of the three are given); stages "
        "are rounded to whole cycles",
    )
    return parser


def config_of(args: argparse.Namespace, parser: flags.Parser, epoch: int) -> Config:
    """What the flags mean, for so many steps in an epoch; what is wrong with them together
    ends the program.
    """
    staged = any((args.stage_betas, args.stage_alphas, args.stage_ks))
    if staged and (args.lookahead or args.slr):
        parser.error("--stage_betas, --stage_alphas and --stage_ks: not with --lookahead or --slr")
    config = Config(
        dataset=args.dataset,
        train_images=args.train_images,
        model=args.network,
        input_norm=args.input_norm,
        bf16=args.bf16,
        epochs=args.epochs,
        batch_size=args.batch_size,
        milestones=MILESTONES if args.milestones is None else args.milestones,
        whole_cycles=staged,
        learning_rate=args.lr,
        decay=args.gamma,
        inner=args.optim,
        momentum=args.momentum,
        weight_decay=args.wd,
        **(stagewise(args) if staged else released(args)),
    )
    steps = args.epochs * epoch
    if args.milestones is None:
        config = with_milestones_that_fit(config, steps, epoch)
    for flag, name in STAGE_FLAGS.items() if staged else ():
        try:
            config.each_stage(name)
        except ValueError as error:
            parser.error(f"{flag}: {error}")
    return config


def stagewise(args: argparse.Namespace) -> dict[str, Any]:
    """The paper's Algorithm 3, with settings of each stage's own."""
    return {
        "optimizer": "slrla",
        "beta": args.stage_betas or 0.0,
        "slow_step_size": args.stage_alphas or 0.8,
        "sync_period": args.stage_ks or 5,
    }


def released(args: argparse.Namespace) -> dict[str, Any]:
    """What `--lookahead` and `--slr` mean in the released code, whose β is half the paper's."""
    k, alpha = args.lookahead or (5, 0.8)
    period, beta = args.slr or (None, 0.0)
    names = {
        (False, False): args.optim,
        (True, False): "lookahead",
        (False, True): "prox_released",
        (True, True): "slrla_released",
    }
    return {
        "optimizer": names[args.lookahead is not None, args.slr is not None],
        "beta": 2 * beta,
        "slow_step_size": alpha,
        "sync_period": k,
        # With S = k the anchor is refreshed at every sync, and needs no copy of its own.
        "anchor_period": None if args.lookahead and period == k else period,
    }


def make_job(args: argparse.Namespace, parser: flags.Parser) -> Job:
    """The job that the flags ask for; what is wrong with them together ends the program."""
    dataset = command_line.dataset_of(args, parser)
    model = command_line.model_of(args, parser, dataset)
    epoch = dataset.train_size // args.batch_size
    config = config_of(args, parser, epoch)
    args.milestones = config.milestones
    try:
        stages = stages_of(config, args.epochs * epoch, epoch)
    except ValueError as error:
        parser.error(f"--milestones: {error}")
    return command_line.job_of(args, parser, model, config, stages)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = make_parser()
    return command_line.run_job("main.py", lambda: make_job(parser.parse_args(argv), parser))


if __name__ == "__main__":
    sys.exit(main())
