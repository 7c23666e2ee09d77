"""What the command lines of the programs have in common, and how a program ends.

    parser = Parser(prog="main.py", description=...)
    add_settings(parser, "training", BASE, epochs="--tr_epochs", batch_size="--train_batch_size")
    add_sweep(parser)
    args = parser.parse_args(argv)
    config = config_of(args, BASE)

A flag's destination is the name of the setting in `Config`, by whatever name it is given.
"""

import argparse
import dataclasses
import functools
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import flags, processes
from experiments.checkpoints import CheckpointError
from experiments.config import Config, SettingError
from experiments.data import ALIASES, DATASETS
from experiments.figures import curves
from experiments.flags import Parser
from experiments.models import NETWORKS
from experiments.optimizers import OPTIMIZERS
from experiments.report import ACCURACIES, TRAINING, report
from experiments.sweep import Entry, Results, Sweep, title_of
from experiments.train import Stopped

# What argparse is told of the flag of each setting.
SETTINGS: Mapping[str, dict[str, Any]] = {
    "dataset": {
        "type": flags.spelling(DATASETS, ALIASES),
        "metavar": "NAME",
        "help": f"{', '.join(DATASETS)}, in any spelling (default: %(default)s)",
    },
    "train_images": {
        "type": flags.count,
        "metavar": "N",
        "help": "train on N of the training images (default: all)",
    },
    "model": {
        "type": flags.spelling(NETWORKS),
        "metavar": "NAME",
        "help": f"{', '.join(NETWORKS)}, in any spelling; the small ones, in lower case, are "
        "for the CPU (default: %(default)s)",
    },
    "image_size": {
        "type": flags.optional(flags.count),
        "metavar": "N",
        "help": "pixels a side that images are resized and cropped to; none for images as they are "
        "(default: %(default)s)",
    },
    "input_norm": {
        "action": "store_true",
        "help": "standardise the channels of the images; without it pixels are scaled to [0, 1]",
    },
    "bf16": {"action": "store_true", "help": "compute in bfloat16; params stay in float32"},
    "epochs": {
        "type": flags.count,
        "metavar": "N",
        "help": "passes over the training images (default: %(default)s)",
    },
    "epoch_steps": {
        "type": flags.optional(flags.count),
        "metavar": "N",
        "help": "how many steps are called an epoch; none for a pass over the training data "
        "(default: %(default)s)",
    },
    "batch_size": {
        "type": flags.count,
        "metavar": "N",
        "help": "images in a batch, over all devices (default: %(default)s)",
    },
    "eval_every": {
        "type": flags.count,
        "metavar": "N",
        "help": "evaluate after every N-th epoch, and after the last (default: %(default)s)",
    },
    "milestones": {
        "type": flags.milestones,
        "metavar": "LIST",
        "help": "where the next stage begins, comma-separated: fractions of the run below 1, or "
        "epochs; none for a constant learning rate (default: {}, without those that a short run "
        "has no room for)",
    },
    "learning_rate": {
        "type": flags.positive,
        "metavar": "η",
        "help": "learning rate of the first stage (default: %(default)s)",
    },
    "decay": {
        "type": flags.positive,
        "metavar": "FACTOR",
        "help": "by which the learning rate is multiplied from stage to stage (default: "
        "%(default)s)",
    },
    "momentum": {
        "type": flags.fraction,
        "help": "momentum of SGD; b1 of the adaptive optimizers (default: %(default)s)",
    },
    "weight_decay": {
        "type": flags.not_negative,
        "metavar": "λ",
        "help": "weight decay, decoupled for AdamW and AdaBelief, coupled (L2) for the others "
        "(default: %(default)s)",
    },
    "sync_period": {
        "type": flags.count,
        "metavar": "k",
        "help": "fast steps between two syncs (default: %(default)s)",
    },
    "slow_step_size": {
        "type": flags.step_size,
        "metavar": "α",
        "help": "slow step size, how far the slow weights move towards the fast ones at a sync; "
        "1 switches Lookahead off (default: %(default)s)",
    },
    "beta": {
        "type": flags.not_negative,
        "metavar": "β",
        "help": "strength of SLRLA's regulariser, which pulls the weights towards those at the "
        "start of the stage; 0 switches it off (default: %(default)s)",
    },
}


def add_settings(parser: Parser, title: str, base: Config, **named: str) -> None:
    """Adds flags of settings to a group with a title.

    Args:
      parser: the parser.
      title: of the group.
      base: has the defaults.
      named: the flag of each setting.
    """
    add = parser.add_argument_group(title).add_argument
    for setting, flag in named.items():
        default = getattr(base, setting)
        options = {**SETTINGS[setting]}
        if setting == "milestones":  # None says that they were not asked for.
            options["help"] = options["help"].format(",".join(map(str, default)))
        elif "action" not in options:
            options["default"] = default
        add(flag, dest=setting, **options)


def add_sweep(
    parser: Parser,
    *,
    seeds: int = 1,
    name: str = "--exp_name",
    always_resumes: bool = False,
    data: bool = True,
) -> None:
    """Adds the flags of data, seeds and output that all programs have.

    Args:
      parser: the parser.
      seeds: how many by default.
      name: the flag of the folder's name.
      always_resumes: whether the program resumes without being told, and has no flag for it.
      data: whether the program reads data.
    """
    title = "seeds, data files and output" if data else "seeds and output"
    add = parser.add_argument_group(title).add_argument
    add(
        "--seeds",
        type=flags.count,
        default=seeds,
        metavar="N",
        help="number of seeds to train from (default: %(default)s)",
    )
    if data:
        add(
            "--data_path",
            type=Path,
            metavar="DIR",
            help="folder of the data set's files; see examples/README.md",
        )
    add(
        "--root",
        type=Path,
        default=Path("runs"),
        metavar="DIR",
        help="folder of all runs (default: %(default)s)",
    )
    add(
        name,
        dest="exp_name",
        type=flags.folder_name,
        metavar="NAME",
        help="folder of this run inside it (default: a new one)",
    )
    if always_resumes:
        parser.set_defaults(resume=True)
        return
    add(
        "--resume",
        action="store_true",
        help="resume the run in this folder if there is one; what is finished is not run again",
    )


def add_layers(parser: Parser, title: str, default: str) -> None:
    """Adds the flag of nested Lookahead to a group with a title; Lookahead has its inner layer."""
    parser.add_argument_group(title).add_argument(
        "--lookahead",
        dest="layers",
        type=flags.layers,
        default=default,
        metavar="k_α,k_α",
        help="sync period and slow step size of each layer of nested Lookahead, the inner one "
        "first, which is Lookahead's (default: %(default)s)",
    )
    parser.flags_of |= {"sync_period": "--lookahead (k)", "slow_step_size": "--lookahead (α)"}


def add_checkpoints(parser: Parser, epochs: str) -> None:
    """Adds the flags of the programs that train one configuration for long.

    Args:
      parser: the parser.
      epochs: the flag of the number of epochs.
    """
    add = parser.add_argument_group("first seed, and evaluation").add_argument
    add(
        "--SEED",
        "--seed",
        dest="seed",
        type=flags.seed,
        default=0,
        metavar="N",
        help="the first seed, of weights, batches and augmentation (default: 0)",
    )
    add(
        "--batch_norm",
        choices=("running", "recalibrated"),
        default="running",
        help="the accuracy that the best epoch is chosen by: of the slow weights with the running "
        "BatchNorm statistics, which are the fast weights', or with recalibrated ones. Both are "
        "reported (default: %(default)s)",
    )
    add_saving(parser, epochs)


def add_saving(parser: Parser, epochs: str) -> None:
    """Adds those of these flags that say what is saved, and what becomes of it."""
    add = parser.add_argument_group("checkpoints and logs").add_argument
    add(
        "--extend_epochs",
        dest="more_epochs",
        type=flags.count,
        default=0,
        metavar="N",
        help=f"with --resume: train a finished run for N epochs more than {epochs}, in its last "
        "stage and with its last learning rate",
    )
    add(
        "--checkpoint",
        type=Path,
        metavar="DIR",
        help="folder of the checkpoints (default: in the folder of the run)",
    )
    add(
        "--save_every",
        type=flags.count,
        metavar="STEPS",
        help="save every so many steps within an epoch, and not only at its end",
    )
    add("--tensorboard", action="store_true", help="also write TensorBoard's event files")


def config_of(args: argparse.Namespace, base: Config, **others: Any) -> Config:
    """Returns a configuration with the settings that have flags, and some others."""
    names = {field.name for field in dataclasses.fields(Config)}
    given = {name: value for name, value in vars(args).items() if name in names}
    if given.get("milestones") is None:
        given.pop("milestones", None)
    else:  # Those that were asked for must fit.
        given["fit_milestones"] = False
    return dataclasses.replace(base, **given | others)


def seeds_of(args: argparse.Namespace, first: int = 0) -> range:
    """Returns the seeds that were asked for.

    Raises:
      SettingError: if one of them is too large for a random key.
    """
    if first + args.seeds > 2**31:
        raise SettingError("seeds", f"must end at 2147483647, got {args.seeds} from {first}")
    return range(first, first + args.seeds)


def sweep_options(args: argparse.Namespace, parser: Parser) -> dict[str, Any]:
    """Returns the options of a `Sweep` that `add_sweep` has flags for."""
    return {
        "root": args.root,
        "name": args.exp_name,
        "otherwise": f"{Path(parser.prog).stem}-{args.dataset}",
        "data_path": args.data_path,
        "resume": args.resume,
        "flag_of": parser.flag_of,
    }


def options_inside(args: argparse.Namespace, parser: Parser) -> dict[str, Any]:
    """Returns the options of several sweeps that are in one folder, and always resume."""
    folder = args.exp_name or f"{Path(parser.prog).stem}-{args.dataset}"
    return {
        "root": args.root / folder,
        "data_path": args.data_path,
        "resume": True,
        "one_device": True,
        "flag_of": parser.flag_of,
    }


def single(config: Config, args: argparse.Namespace, parser: Parser) -> Sweep:
    """Returns the sweep of a program that trains one configuration, with checkpoints."""
    best_by = "recalibrated_test_accuracy" if args.batch_norm == "recalibrated" else "test_accuracy"
    if config.validation_split is not None:
        best_by = "validation_accuracy"
    return Sweep(
        entries=[Entry(OPTIMIZERS[config.optimizer].label_of(config), config)],
        seeds=seeds_of(args, args.seed),
        report=functools.partial(report_training, best_by=best_by),
        checkpoint=True,
        checkpoint_path=args.checkpoint,
        save_every=args.save_every,
        best_by=best_by,
        more_epochs=args.more_epochs,
        tensorboard=args.tensorboard,
        **sweep_options(args, parser),
    )


def report_training(results: Results, **options: Any) -> list[str]:
    """Writes the table, with the options of `report`, and the curves of a training program.

    Returns:
      The lines to print.
    """
    if results.runs:
        title = title_of(next(iter(results.runs.values())))
        curves(results.records, results.runs, title, results.folder / "curves.png")
    return report(results, TRAINING, ACCURACIES, **options)


def program(
    make_parser: Callable[[], Parser], again: str = "--resume"
) -> Callable[[Callable[[Any, Parser], int]], Callable[..., int]]:
    """Makes a function of parsed flags the main function of a program.

    It takes the command line (None for that of the process) and returns the exit code. Whatever
    goes wrong is one line, and the code is 2 for a bad command line, 1 for a checkpoint that
    cannot be used, and 128 plus the number of a signal that stopped it.

    Args:
      make_parser: returns the parser of the command line.
      again: what resumes an interrupted run, in words.
    """

    def decorate(body: Callable[[Any, Parser], int]) -> Callable[..., int]:
        @functools.wraps(body)
        def main(argv: Sequence[str] | None = None) -> int:
            parser = make_parser()
            args = parser.parse_args(argv)
            try:
                processes.join(args)
                return body(args, parser)
            except processes.Elsewhere:
                return 1
            except SettingError as error:
                failure, code = error, 2
                line = f"error: {parser.flag_of(error.setting)}: {error}"
            except CheckpointError as error:
                failure, code, line = error, 1, str(error)
            except Stopped as error:
                what = "resumes from there" if error.saved else "runs what is not finished"
                code = 128 + (error.number or signal.SIGTERM)
                line = f"{error}; {again} {what}"
                if not processes.is_writer():  # All have stopped; one says it.
                    return code
                failure = None
            except BrokenPipeError:  # As of `| head`, which has read enough.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                return 128 + signal.SIGPIPE
            except KeyboardInterrupt as error:
                failure, code, line = error, 128 + signal.SIGINT, "interrupted"
            except Exception as error:
                if processes.count() == 1:
                    raise
                processes.end_if_alone(error)
                failure, code, line = error, 1, "".join(traceback.format_exception(error))
            print(f"{parser.prog}: {line}", file=sys.stderr)
            if failure is not None:
                processes.leave(failure, code)
            return code

        return main

    return decorate
