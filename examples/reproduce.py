"""Runs recipes of the SLRLA paper's Table 3, and sets the results beside the published ones.

    python examples/reproduce.py fashion_mnist --data_path DIR --seeds 3

trains with each optimizer of each recipe for that data set. What is finished is skipped and what
was interrupted is resumed, so the same command may be given again and again. Table, curves and
all numbers of a recipe are written after each optimizer. `--set` overrides a setting:

    python examples/reproduce.py cifar10_resnet18 --data_path DIR --set bf16=true
"""

import json
import signal
import sys
from argparse import ArgumentTypeError, Namespace
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

if __name__ == "__main__":  # Ctrl-C while the following imports take their seconds is no error.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import jax
from experiments import configs, flags, sweep
from experiments.command_line import (
    SETTINGS,
    add_sweep,
    program,
    report_training,
    seeds_of,
    sweep_options,
)
from experiments.config import Config, SettingError
from experiments.flags import Parser
from experiments.sweep import Entry, Sweep


def make_parser() -> Parser:
    """Returns the parser of the command line."""
    parser = Parser(
        prog="reproduce.py",
        description="Run recipes of the SLRLA paper's Table 3; compare with the published results.",
    )
    add = parser.add_argument
    add(
        "recipes",
        nargs="*",
        type=recipes,
        metavar="RECIPE",
        help=f"{', '.join(configs.RECIPES)}; or a data set, for all its recipes",
    )
    add("--list", action="store_true", help="print the recipes and what was published, and exit")
    add("--dry_run", action="store_true", help="print the configurations, and exit")
    add(
        "--optimizers",
        type=flags.names_among(configs.ROWS),
        metavar="NAMES",
        help=f"which rows, comma-separated, of {', '.join(configs.ROWS)}; the others are compared "
        "with the first (default: all that the recipe has)",
    )
    add(
        "--set",
        dest="overrides",
        type=override,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="override a setting of the recipe, as learning_rate=0.01; may be given repeatedly. "
        f"Settings are {', '.join(SETTINGS)}",
    )
    add(
        "--extend_epochs",
        dest="more_epochs",
        type=flags.count,
        default=0,
        metavar="N",
        help="train finished runs for N epochs more, in their last stage",
    )
    add_sweep(parser, seeds=3, always_resumes=True)
    parser.flags_of |= {name: f"--set {name}" for name in SETTINGS} | {"exp_name": "--root"}
    return parser


def recipes(text: str) -> tuple[str, ...]:
    """Parses the name of a recipe or of a data set."""
    try:
        return configs.find(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from error


def override(text: str) -> tuple[str, Any]:
    """Parses a setting and its value, as the setting's flag does."""
    name, _, value = text.partition("=")
    if name not in SETTINGS:
        raise ArgumentTypeError(
            f"must be NAME=VALUE with a name among {', '.join(SETTINGS)}, got {text!r}"
        )
    if "action" in SETTINGS[name]:
        return name, flags.switch(value)
    return name, SETTINGS[name]["type"](value)


def rows(recipe: str, args: Namespace) -> Mapping[str, Config]:
    """Returns the configurations of a recipe that are asked for, by the rows of the table.

    Raises:
      SettingError: if the recipe does not have a row.
    """
    known = configs.configs(recipe)
    for name in args.optimizers or ():
        if name not in known:
            raise SettingError("optimizers", f"{recipe} has {', '.join(known)}, not {name}")
    overrides = dict(args.overrides)
    return {name: replace(known[name], **overrides) for name in args.optimizers or known}


def sweep_of(recipe: str, args: Namespace, parser: Parser) -> Sweep:
    """Returns what the command line asks for, of one recipe."""
    entries = rows(recipe, args)
    args.dataset = entries["SGD" if "SGD" in entries else next(iter(entries))].dataset
    return Sweep(
        entries=[Entry(name, config, name) for name, config in entries.items()],
        seeds=seeds_of(args),
        report=partial(
            report_training,
            published=configs.published(recipe),
            sources=configs.sources(recipe),
        ),
        checkpoint=True,
        more_epochs=args.more_epochs,
        **sweep_options(args, parser) | {"name": args.exp_name or recipe},
    )


def listing() -> str:
    """Returns all recipes, with what was published of the paper's own three rows."""
    lines = []
    for recipe in configs.RECIPES:
        numbers = configs.published(recipe)
        told = ", ".join(f"{name} {numbers[name]}" for name in ("SGD", "SLA", "SLRLA") if numbers)
        lines.append(f"{recipe:22}{told or 'not in the paper'}")
    return "\n".join([*lines, "", *(f"{m} {text}" for m, text in configs.SOURCES.items())])


@program(make_parser, again="the same command")
def main(args: Namespace, parser: Parser) -> int:
    """Runs the command line; returns the exit code."""
    if args.list:
        print(listing())
        return 0
    chosen = list(dict.fromkeys(name for found in args.recipes for name in found))
    if not chosen:
        parser.error("RECIPE: at least one must be named; --list prints them")
    if args.exp_name and len(chosen) > 1:
        parser.error(f"--exp_name: one folder takes one recipe, got {', '.join(chosen)}")
    if args.dry_run:
        for recipe in chosen:
            for name, config in rows(recipe, args).items():
                print(json.dumps({"recipe": recipe, "row": name, **config.as_json()}))
        return 0
    # What is compiled for one seed is not compiled again for the next, nor in the next process.
    jax.config.update("jax_compilation_cache_dir", str(args.root / "compiled"))
    return max(sweep.run(sweep_of(recipe, args, parser)) for recipe in chosen)


if __name__ == "__main__":
    sys.exit(main())
