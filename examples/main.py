"""Trains a network of the SLRLA paper, with the command lines of its released code.

    python examples/main.py --dataset CIFAR10 --network ResNet-18 --input_norm \
        --exp_name sgd_SLRLA --wd 1e-3 --lr 1e-1 --lookahead 5_0.8 --slr 5_0.2

`--lookahead k_α` wraps the optimizer in Lookahead, `--lookahead k_α,k_α` in two layers of it, and
`--slr S_β` adds SLRLA's regulariser in the convention of the released code. Without them it is
stagewise SGD. Settings of each stage, which the paper has and the released code has not, are given
by `--stage_betas` and its like. `--help` lists all flags.
"""

import signal
import sys
from argparse import Namespace
from typing import Any

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
from experiments.flags import Parser
from experiments.optimizers import INNER
from experiments.processes import add_processes
from experiments.sweep import Sweep

BASE = Config(dataset="cifar10", model="ResNet-18", input_norm=False, epochs=100, batch_size=128)
STAGED = {"sync_period": "--stage_ks", "slow_step_size": "--stage_alphas", "beta": "--stage_betas"}
# What messages call the settings that two flags of the released code have two of each.
RELEASED = {
    "sync_period": "--lookahead (k)",
    "slow_step_size": "--lookahead (α)",
    "anchor_period": "--slr (S)",
    "beta": "--slr (2β)",
}


def make_parser() -> Parser:
    """Returns the parser of the command line."""
    parser = Parser(
        prog="main.py", description="Train a network of the SLRLA paper, as its released code does."
    )
    add_settings(
        parser,
        "data and model",
        BASE,
        dataset="--dataset",
        train_images="--train_images",
        model="--network",
        input_norm="--input_norm",
        bf16="--bf16",
    )
    add_settings(
        parser,
        "training",
        BASE,
        epochs="--tr_epochs",
        batch_size="--train_batch_size",
        eval_every="--eval_every",
        milestones="--milestones",
        learning_rate="--lr",
        decay="--gamma",
        momentum="--momentum",
        weight_decay="--wd",
    )
    add = parser.add_argument_group("optimizer").add_argument
    add(
        "--optim",
        dest="inner",
        type=flags.spelling(INNER),
        default="sgd",
        metavar="NAME",
        help=f"{', '.join(INNER)}, in any spelling (default: %(default)s)",
    )
    add(
        "--lookahead",
        type=flags.layers,
        metavar="k_α",
        help="Lookahead with k fast steps and slow step size α, 5_0.8 in the paper; with several "
        "such pairs, comma-separated, Multilayer Lookahead, the inner layer first",
    )
    add(
        "--slr",
        type=flags.pair("S_β", flags.count, flags.not_negative),
        metavar="S_β",
        help="SLRLA's regulariser with a new anchor every S steps, and β in the convention of the "
        "released code, half the paper's: 5_0.2",
    )
    add = parser.add_argument_group(
        "the paper's Algorithm 3, instead of --lookahead and --slr: comma-separated values for "
        "each stage, or one for all"
    ).add_argument
    add(
        "--stage_betas",
        type=flags.listed(flags.not_negative),
        metavar="LIST",
        help="β in the paper's convention, with one anchor for each stage",
    )
    add(
        "--stage_alphas",
        type=flags.listed(flags.step_size),
        metavar="LIST",
        help="slow step size (default, with one of the other two: 0.8)",
    )
    add(
        "--stage_ks",
        type=flags.listed(flags.count),
        metavar="LIST",
        help="fast steps between two syncs (default, with one of the other two: 5); stages are "
        "rounded to whole cycles",
    )
    add_sweep(parser)
    add_checkpoints(parser, "--tr_epochs")
    add_processes(parser)
    return parser


def optimizer_of(args: Namespace, parser: Parser) -> dict[str, Any]:
    """Returns the settings that the flags of the optimizer stand for.

    Raises:
      SettingError: if flags exclude each other.
    """
    staged = {name: getattr(args, flag[2:]) for name, flag in STAGED.items()}
    if any(staged.values()):
        if args.lookahead or args.slr:
            raise SettingError(
                "--stage_betas, --stage_alphas and --stage_ks", "not with --lookahead or --slr"
            )
        parser.flags_of |= STAGED
        given = {name: value for name, value in staged.items() if value}
        return {"optimizer": "slrla", "whole_cycles": True, **given}
    parser.flags_of |= RELEASED
    layers = args.lookahead or ()
    if len(layers) > 1:
        if args.slr:
            raise SettingError("--slr", "goes with one layer of Lookahead, not with several")
        periods, sizes = zip(*layers, strict=True)
        nested = {"sync_period": periods, "slow_step_size": sizes}
        return {"optimizer": "multilayer_lookahead", **nested}
    k, alpha = layers[0] if layers else (BASE.sync_period, BASE.slow_step_size)
    period, beta = args.slr or (None, 0.0)
    optimizers = {
        (False, False): args.inner,
        (True, False): "lookahead",
        (False, True): "prox_released",
        (True, True): "slrla_released",
    }
    return {
        "optimizer": optimizers[bool(layers), args.slr is not None],
        "beta": 2 * beta,
        "sync_period": k,
        "slow_step_size": alpha,
        # With S = k the anchor is refreshed at every sync, and needs no copy of its own.
        "anchor_period": None if layers and period == k else period,
    }


def sweep_of(args: Namespace, parser: Parser) -> Sweep:
    """Returns what the command line asks for."""
    parser.flags_of["optimizer"] = "--optim, --lookahead or --slr"
    parser.flags_of["whole_cycles"] = "--stage_betas, --stage_alphas or --stage_ks"
    return single(config_of(args, BASE, **optimizer_of(args, parser)), args, parser)


@program(make_parser)
def main(args: Namespace, parser: Parser) -> int:
    """Runs the command line; returns the exit code."""
    return sweep.run(sweep_of(args, parser))


if __name__ == "__main__":
    sys.exit(main())
