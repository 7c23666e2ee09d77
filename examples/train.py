"""Fine-tunes a pretrained network with AdaLoss or a baseline, as AdaLoss's released code does.

    python examples/train.py -c ./configs/config_cifar100_adaloss.json --model vits16r224 \
        --b0 1 --lr 0.1 --epochs 10 --weight_decay 1e-4 --data_path DIR

The file has the optimizer and all settings, a flag overrides its entry, and four such files are in
`examples/configs`. A tenth of the training images is set apart, and chooses the best epoch. The
weights are timm's, downloaded or from `--weights FILE`; `--scratch` begins with random ones.
`--help` lists all flags.
"""

import os
import signal
import sys
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # Ctrl-C while the following imports take their seconds is no error.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from experiments import config_file, pretrained, sweep, train
from experiments.command_line import (
    add_saving,
    add_settings,
    add_sweep,
    config_of,
    program,
    single,
)
from experiments.config import Config, SettingError
from experiments.configs.adaloss import BASE, ENTRIES, METHODS, NUM_CLASSES, SEED
from experiments.data import Data
from experiments.flags import Parser
from experiments.optimizers import OPTIMIZERS
from experiments.pretrained import Weights
from experiments.processes import add_processes
from experiments.run import Run, run_of
from experiments.sweep import Sweep

HERE = Path(__file__).parent


def make_parser() -> Parser:
    """Returns the parser of the command line."""
    parser = Parser(
        prog="train.py",
        description="Fine-tune a pretrained network, as AdaLoss's released code does.",
    )
    parser.add_argument(
        "-c",
        "--config",
        type=Path,
        required=True,
        metavar="FILE",
        help="JSON file with the optimizer and all settings; looked for beside this program, too",
    )
    config_file.add_entries(parser, "settings (default: those of the file)", ENTRIES)
    add_settings(
        parser,
        "data and evaluation",
        BASE,
        dataset="--dataset",
        train_images="--train_images",
        image_size="--image_size",
        bf16="--bf16",
        eval_every="--eval_every",
    )
    add = parser.add_argument_group("pretrained weights").add_argument
    add(
        "--weights",
        type=Path,
        metavar="FILE",
        help="timm's weights of the network, a .safetensors file (default: downloaded)",
    )
    add("--scratch", action="store_true", help="begin with random weights instead")
    add_sweep(parser, name="--name")
    add_saving(parser, "--epochs")
    add_processes(parser)
    parser.set_defaults(batch_norm="running")  # There are no slow weights.
    return parser


def settings_of(args: Namespace) -> dict[str, Any]:
    """Returns the settings in the file, and those that flags give in their place.

    Raises:
      SettingError: if there is something wrong with the file.
    """
    beside = HERE / args.config
    path = args.config if os.path.exists(args.config) or not os.path.exists(beside) else beside
    given = {e.setting: vars(args)[e.setting] for e in ENTRIES if e.setting in args}
    return config_file.read(path, ENTRIES) | given


def method_of(settings: Mapping[str, Any]) -> str:
    """Returns the optimizer that the settings are for, a name in `OPTIMIZERS`.

    Raises:
      SettingError: if they are for none, or one of them has no effect on it.
    """
    pair = settings.get("optimizer_type"), settings.get("loss_type")
    if pair not in METHODS:
        known = ", ".join(f"{optimizer} with {loss}" for optimizer, loss in METHODS)
        raise SettingError(
            "-c",
            f"optimizer.type and train_loss.type must be {known}, got {pair[0]} with {pair[1]}",
        )
    method = METHODS[pair]
    optimizer = OPTIMIZERS[method]
    used = {"adanormb0"} if method == "adagrad_norm" else set(optimizer.settings)
    for entry in ENTRIES:
        own = entry.setting in ("b0", "adanormb0", "loss_weight", "loss_offset")
        if own and entry.setting in settings and entry.setting not in used:
            raise SettingError(
                entry.setting, f"has no effect on {optimizer.label}; in a file it is {entry.path}"
            )
    return method


def config(settings: Mapping[str, Any], args: Namespace) -> Config:
    """Returns the configuration that settings and the other flags stand for."""
    known = {field.name for field in fields(Config)}
    own = {name: value for name, value in settings.items() if name in known}
    if "adanormb0" in settings:
        own["b0"] = settings["adanormb0"]
    epochs = settings.get("epochs", BASE.epochs)
    ends = (
        range(settings["step_size"], epochs, settings["step_size"])
        if "step_size" in settings
        else ()
    )
    return config_of(args, BASE, **own, optimizer=method_of(settings), milestones=tuple(ends))


def fine_tuning_of(
    config: Config, dataset: Data, *, weights: Weights | None, num_classes: int, **options: Any
) -> Run:
    """Builds a run, as `run_of` does, after a look at whether everything is for its network.

    Raises:
      SettingError: as `run_of` does, or if the number of classes or the weights do not fit.
    """
    if dataset.classes != num_classes:
        raise SettingError(
            "num_classes", f"must be {dataset.classes} for {dataset.name}, got {num_classes}"
        )
    run = run_of(config, dataset, **options)
    if weights is not None:
        pretrained.check(weights, run.model)
    return run


def sweep_of(args: Namespace, parser: Parser) -> Sweep:
    """Returns what the command line asks for."""
    if args.scratch and args.weights:
        raise SettingError("--weights and --scratch", "exclude each other")
    settings = settings_of(args)
    args.seed = settings.get("seed", SEED)
    one = single(config(settings, args), args, parser)
    model = one.entries[0].config.model
    weights = None if args.scratch else pretrained.read(pretrained.find(model, args.weights))
    return replace(
        one,
        otherwise=settings.get("title", one.otherwise),
        further={"weights": None if weights is None else weights.digest},
        run_of=partial(
            fine_tuning_of, weights=weights, num_classes=settings.get("num_classes", NUM_CLASSES)
        ),
        train=train.train
        if weights is None
        else partial(train.train, start=partial(pretrained.start, weights)),
    )


@program(make_parser)
def main(args: Namespace, parser: Parser) -> int:
    """Runs the command line; returns the exit code."""
    return sweep.run(sweep_of(args, parser))


if __name__ == "__main__":
    sys.exit(main())
