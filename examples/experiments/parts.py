"""A study in parts, each of which is computed at once: methods × b0 × seeds, in few calls.

    return run(args, parser, "linear_convergence", settings, {"width 100": ..., ...}, page, draw)

Where all runs together are a single compiled program there are no epochs to record or to resume
from. The parts are what is resumed, and are written as they come.
"""

import json
import shlex
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path

import numpy as np

from experiments.checkpoints import OtherRun, differences
from experiments.config import SettingError
from experiments.flags import Parser
from experiments.folders import run_folder
from experiments.optimizers import OPTIMIZERS
from experiments.report import Column, numbers
from experiments.robustness import DIVERGED, label_of, table_over_b0
from experiments.settings import Settings, circumstances, read_json, shown_command, write_json


def run(
    args: Namespace,
    parser: Parser,
    name: str,
    settings: Settings,
    parts: Mapping[str, Callable[[], Settings]],
    page: Callable[[Settings], str],
    draw: Callable[[Settings, Path], None],
) -> int:
    """Computes the parts, as `compute` does, and leaves table and pictures in a folder.

    Args:
      args: the flags of `command_line.add_sweep`.
      parser: their parser.
      name: of the program, and of a new folder.
      settings: see `compute`.
      parts: likewise.
      page: makes the text of `table.md`, which is also printed, from the results.
      draw: draws the results into files of a folder.

    Returns:
      The exit code.

    Raises:
      SettingError: if a file cannot be read or written, or as `run_folder` does.
      OtherRun: as `compute` does.
    """
    with run_folder(args.root, args.exp_name, otherwise=name, resume=args.resume) as folder:
        try:
            results = compute(folder, settings, parts, parser.flag_of)
            (folder / "table.md").write_text(page(results), encoding="utf-8")
            draw(results, folder)
        except OSError as error:
            what = f"cannot read or write {error.filename}: {error.strerror}"
            raise SettingError("root", what) from error
        print(f"\n{page(results)}\nAll of it is in {folder.resolve()}")
    return 0


def compute(
    folder: Path,
    settings: Settings,
    parts: Mapping[str, Callable[[], Settings]],
    flag_of: Callable[[str], str],
) -> Settings:
    """Computes the parts that are not in a folder yet, and writes `results.json` after each.

    Args:
      folder: of the run.
      settings: what the results depend on, besides the parts.
      parts: computes each, by its name.
      flag_of: returns the flag of a setting, for messages.

    Returns:
      What is in `results.json`: the settings, command, date, machine and versions, and `parts`,
      also those that were computed before and are not asked for now.

    Raises:
      OtherRun: if the folder's results were made with other settings, or with more of them, as by
        another program.
    """
    path, settings = folder / "results.json", json.loads(json.dumps(settings))
    before, around = read_json(path) or read_json(folder / "settings.json"), circumstances()
    there = {name: before.get(name) for name in settings}
    if before and (differing := differences(there, settings, flag_of)):
        what = ", ".join(differing.values())
        raise OtherRun(f"{folder} is of another run: {what}", differing)
    if further := before.keys() - settings.keys() - around.keys() - {"command", "date", "parts"}:
        what = f"it also has {', '.join(sorted(further))}"
        raise OtherRun(f"{folder} is of another program's run: {what}", further)
    done = read_json(path).get("parts")
    done = done if isinstance(done, dict) else {}
    # Those of all processes that have computed something.
    commands = [before["command"]] if done else []
    commands.append(shown_command(shlex.join([sys.executable, *sys.argv])))
    results = {
        "command": "; ".join(dict.fromkeys(commands)),
        **settings,
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        **around,
    }
    write_json(folder / "settings.json", results | {"parts": list(parts)})
    for name, part in parts.items():
        if name in done:
            print(f"{name}: done before", flush=True)
            continue
        started = time.perf_counter()
        computed = part()
        seconds = time.perf_counter() - started
        print(f"{name}: {seconds:.0f} s with compilation", flush=True)
        done[name] = {"seconds": round(seconds, 1)} | computed
        write_json(path, results | {"parts": done})
    return read_json(path)


def measured(
    by_method: Mapping[str, Mapping[str, np.ndarray]], values: Sequence[float]
) -> Settings:
    """Returns the measures of a part, as `robustness.table_over_b0` takes them.

    Args:
      by_method: the measures of each method by their names, each of shape (b0, seeds). A run of
        which all are NaN has diverged.
      values: of b0.

    Returns:
      `entries` with mean, standard deviation and the value of each seed; and `diverged`, a line
      for each run that has. An entry that has diverged from any seed has no numbers.
    """
    entries, diverged = {}, []
    for method, measures in by_method.items():
        for n, b0 in enumerate(values):
            label = label_of(OPTIMIZERS[method].label, b0)
            lost = np.flatnonzero(np.isnan([of_b0[n] for of_b0 in measures.values()]).all(axis=0))
            diverged += [f"{label} {DIVERGED}, from seed {seed}" for seed in lost]
            if not lost.size:
                entries[label] = {
                    "measured": {m: {"final": numbers(v[n])} for m, v in measures.items()}
                }
    return {"entries": entries, "diverged": diverged}


def table_of(part: Settings, column: Column, seeds: Sequence[int]) -> list[str]:
    """Returns a table of a measure: a row for each b0, a column for each method."""
    table = table_over_b0({**part, "seeds": seeds}, [column])
    return table[:-1]  # Without the spread.


def provenance(results: Settings) -> str:
    """Says how results were made: command, date, time, machine and versions."""
    machine = results["machine"]
    versions = ", ".join(f"{package} {version}" for package, version in results["versions"].items())
    seconds = sum(part["seconds"] for part in results["parts"].values())
    return (
        f"Measured by `{results['command']}` on {results['date'][:10]}, in {seconds:.0f} s; "
        f"{machine['processor']}, {machine['cpu_count']} cores, backend {machine['backend']}; "
        f"{versions}."
    )
