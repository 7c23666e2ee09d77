"""Runs cells of the SLRLA paper's Table 3, and sets what comes out beside what was published.

    python examples/reproduce.py fashion_mnist --data_path DIR --seeds 3

trains with each optimizer of each cell of that data set, as `main.py` does with the command
lines that `--dry_run` prints. What is done is skipped and what was interrupted goes on, so the
same command may be given again and again. The table, the curves and all numbers of a cell are
written after each optimizer. Flags after `--` go to `main.py` and override those of the recipe:

    python examples/reproduce.py cifar10_resnet18 --data_path DIR -- --bf16
"""

import argparse
import itertools
import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import main as training_program
from experiments import configs as recipes
from experiments.reporting import cell_report
from experiments.running import command_line, flags
from experiments.running.launch import Job, LaunchError, read_metrics
from experiments.training import differences


def make_parser() -> flags.Parser:
    """The command line."""
    parser = flags.Parser(
        prog="reproduce.py",
        description="Run cells of the SLRLA paper's Table 3, and compare with what was published.",
        epilog="Flags after -- go to main.py and override those of the recipe.",
    )
    parser.add_argument(
        "cells",
        nargs="*",
        type=flags.spelling(recipes.find),
        metavar="CELL",
        help=f"{', '.join(recipes.CELLS)}; or a data set's name, for all its cells",
    )
    add = parser.add_argument
    add("--list", action="store_true", help="print the cells and what was published, and exit")
    add("--dry_run", action="store_true", help="print the command lines of main.py, and exit")
    add(
        "--optimizers",
        type=flags.names_among(recipes.OPTIMIZERS),
        metavar="NAMES",
        help=f"which rows, with commas between them, of {', '.join(recipes.OPTIMIZERS)}; the "
        "first is what the others are compared with (default: all that the recipe has)",
    )
    add(
        "--seeds",
        type=flags.count,
        default=3,
        metavar="N",
        help="runs of each optimizer, from the seeds 0 to N-1 (default: %(default)s)",
    )
    add("--data_path", type=Path, metavar="DIR", help="as main.py's")
    add(
        "--root",
        type=Path,
        default=Path("runs"),
        metavar="DIR",
        help="runs go to DIR/CELL/OPTIMIZER (default: %(default)s)",
    )
    add(
        "--results",
        type=Path,
        default=Path("runs/results"),
        metavar="DIR",
        help="tables and curves go to DIR/CELL (default: %(default)s)",
    )
    return parser


def command_of(cell: str, optimizer: str, args: argparse.Namespace, more: list[str]) -> list[str]:
    """The flags of `main.py` for an optimizer of a cell."""
    data_path = () if args.data_path is None else ("--data_path", str(args.data_path))
    return [
        *recipes.recipe(cell).argv(optimizer),
        *("--seeds", str(args.seeds), *data_path),
        *("--root", str(args.root / cell), "--exp_name", optimizer, "--resume"),
        *more,
    ]


def rows(cell: str, args: argparse.Namespace, parser: flags.Parser) -> list[str]:
    """The optimizers that are asked for; one that the cell does not have ends the program."""
    known = recipes.recipe(cell).optimizers
    if args.optimizers is None:
        return list(known)
    for optimizer in args.optimizers:
        if optimizer not in known:
            parser.error(f"--optimizers: {cell} has {', '.join(known)}, not {optimizer}")
    return list(args.optimizers)


def finished(job: Job) -> bool:
    """Whether a run is in its folder with all epochs of every seed, and no more.

    Where its files are not there or damaged it is not, and `--resume` makes them anew from the
    checkpoints.

    Raises:
      LaunchError: if the run that is there had other flags.
    """
    try:
        there = json.loads((job.folder / "settings.json").read_bytes())["flags"]
        records, _ = read_metrics(job.folder / "metrics.jsonl")
    except (OSError, ValueError, LookupError, TypeError):
        return False
    here = json.loads(json.dumps(job.fingerprint))
    if differing := differences({name: there.get(name) for name in here}, here, job.flag_of):
        raise LaunchError(
            f"--root: {job.folder} is of another run: {', '.join(differing.values())}"
        )
    epochs = {(r["seed"], r["epoch"]) for r in records if r["seed"] in job.seeds}
    return epochs == set(itertools.product(job.seeds, range(job.run.epochs + 1)))


def reproduce(cell: str, args: argparse.Namespace, more: list[str], command: str) -> int:
    """Runs what is not done of a cell, and writes its results; returns the exit code."""
    parser = training_program.make_parser()
    parser.prog = "reproduce.py"
    folder = args.results / cell
    records, seconds = [], cell_report.seconds_before(folder)
    optimizers: list[str] = []
    for optimizer in rows(cell, args, parser):
        job = training_program.make_job(
            parser.parse_args(command_of(cell, optimizer, args, more)), parser
        )
        try:
            skipped = finished(job)
        except LaunchError as error:
            parser.error(str(error))
        print(f"\n{cell}, {optimizer}: {'done before' if skipped else ''}", flush=True)
        if not skipped:
            started = time.monotonic()
            code = command_line.run_job(
                "reproduce.py", lambda job=job: job, again="the same command"
            )
            if code:
                return code
            seconds[optimizer] = time.monotonic() - started
        optimizers.append(optimizer)
        records += [
            {**record, "optimizer": optimizer}
            for record in read_metrics(job.folder / "metrics.jsonl")[0]
            if record["seed"] in job.seeds
        ]
        cell_report.write(folder, cell, optimizers, records, job, seconds, command)
    table = (folder / "table.md").read_text(encoding="utf-8")
    print(f"\n{table}\nAll of it is in {folder.resolve()}")
    return 0


def shown_command(argv: Sequence[str], data_path: Path | None) -> str:
    """The command as it is written down: with DIR for where the data are on this machine."""
    shown = ["DIR" if Path(arg) == data_path else arg for arg in argv]
    return shlex.join(["python", "examples/reproduce.py", *shown])


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    end = argv.index("--") if "--" in argv else len(argv)
    more = argv[end + 1 :]
    parser = make_parser()
    args = parser.parse_args(argv[:end])
    cells = list(dict.fromkeys(cell for found in args.cells for cell in found))
    if args.list:
        print(cell_report.listing())
        return 0
    if not cells:
        parser.error("a cell must be named; --list prints them")
    # What is compiled for one seed is not compiled again for the next, nor in the next process.
    jax.config.update("jax_compilation_cache_dir", str(args.root / "compiled"))
    for cell in cells:
        if args.dry_run:
            for optimizer in rows(cell, args, parser):
                line = command_of(cell, optimizer, args, more)
                print(shlex.join(["python", "examples/main.py", *line]))
        elif code := reproduce(cell, args, more, shown_command(argv, args.data_path)):
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
