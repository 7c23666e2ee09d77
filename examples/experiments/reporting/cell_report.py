"""What is left of a cell of the table: `table.md`, `curves.png` and `results.json`."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from experiments import configs as recipes
from experiments.reporting import report
from experiments.reporting.report import Records
from experiments.running.launch import Job

LOSS = "train_loss"


def write(
    folder: Path,
    cell: str,
    optimizers: Sequence[str],
    records: Records,
    job: Job,
    seconds: Mapping[str, float],
    command: str,
) -> None:
    """Writes what has been measured of a cell.

    Args:
      folder: where to; made if it is not there.
      cell: its name.
      optimizers: those that are done, in the order of the table.
      records: of all of them; `optimizer` is one of these names.
      job: that of any of them, for what is the same in all.
      seconds: how long each took from beginning to end, as far as known.
      command: what was asked for.
    """
    results = {
        "cell": cell,
        "title": job.title,
        "command": command,
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "seeds": list(job.seeds),
        **report.circumstances(),
        "total_seconds": round(sum(seconds.get(name, 0) for name in optimizers)),
        "optimizers": {
            name: {
                "flags": recipes.recipe(cell).argv(name),
                "published": recipes.published(cell).get(name),
                "seconds": round(seconds[name], 1) if name in seconds else None,
                "measured": measured(records, name, job.counts),
            }
            for name in optimizers
        },
    }
    labels = {name: name for name in optimizers}
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results, indent=1, ensure_ascii=False) + "\n"
    (folder / "results.json").write_text(text, encoding="utf-8")
    table = page(results, report.comparison(records, labels))
    (folder / "table.md").write_text(table, encoding="utf-8")
    # Of the training loss that of the batches, which every epoch has.
    shown = [{name: v for name, v in record.items() if name != LOSS} for record in records]
    first = job.stages[0][0]
    stages = [(rate / first, end) for rate, end in job.stages]
    title = f"{cell}; learning rates in multiples of the first, which each optimizer has its own of"
    report.plot(shown, labels, stages, title, folder / "curves.png")


def seconds_before(folder: Path) -> dict[str, float]:
    """How long the optimizers took whose results are in a folder already."""
    path = folder / "results.json"
    if not path.exists():
        return {}
    entries = json.loads(path.read_text(encoding="utf-8"))["optimizers"]
    return {name: entry["seconds"] for name, entry in entries.items() if entry["seconds"]}


def measured(records: Records, optimizer: str, counts: str) -> dict[str, Any]:
    """Accuracies in %, after the last epoch and after each seed's best, and the training loss.

    The best epoch is chosen by the accuracy that `counts` names, or by that of the evaluated
    weights where the optimizer has no other.
    """
    values = {name: 100 * report.by_seed(records, optimizer, name) for name in report.WEIGHTS}
    values = {name: value for name, value in values.items() if not np.isnan(value).all()}
    best = np.nanargmax(values.get(counts, values["test_accuracy"])[:, 1:], axis=1) + 1
    result: dict[str, Any] = {
        name: {
            "final": numbers(value[:, -1]),
            "best": numbers(value[np.arange(len(best)), best]),
        }
        for name, value in values.items()
    }
    result["best_epoch"] = best.tolist()
    loss = report.by_seed(records, optimizer, LOSS)
    if not np.isnan(loss).all():
        result[LOSS] = {"final": numbers(loss[:, -1])}
    return result


def numbers(values: np.ndarray) -> dict[str, Any]:
    """Mean, standard deviation (None of one seed) and the values themselves."""
    return {
        "mean": round(float(values.mean()), 4),
        "std": round(float(values.std(ddof=1)), 4) if len(values) > 1 else None,
        "by_seed": [round(float(value), 4) for value in values],
    }


def page(results: Mapping[str, Any], comparison: Sequence[str]) -> str:
    """The table of a cell, with all that one has to know of it, in Markdown."""
    header = (
        "optimizer",
        "published",
        "measured here: final",
        "best epoch",
        "final, statistics recalibrated",
        "final, fast weights",
        "training loss",
    )
    rows = [
        (
            name,
            _escaped(entry["published"] or "–"),
            _cell(entry, "test_accuracy", "final"),
            _cell(entry, "test_accuracy", "best"),
            _cell(entry, "recalibrated_test_accuracy", "final"),
            _cell(entry, "fast_test_accuracy", "final"),
            _cell(entry, LOSS, "final", digits=4),
        )
        for name, entry in results["optimizers"].items()
    ]
    machine, seeds = results["machine"], results["seeds"]
    versions = ", ".join(f"{package} {version}" for package, version in results["versions"].items())
    count = "one seed" if len(seeds) == 1 else f"mean ± standard deviation of {len(seeds)} seeds"
    return "\n".join(
        [
            f"### {results['cell']}",
            "",
            f"{results['title']}. Accuracy in % on the test images.",
            "",
            _line(header),
            _line(["---", *["---:"] * (len(header) - 1)]),
            *map(_line, rows),
            "",
            f"**Measured here**: {count} ({', '.join(map(str, seeds))}), by `{results['command']}` "
            f"on {results['date'][:10]}, in {results['total_seconds'] / 60:.0f} min; "
            f"{machine['processor']}, {machine['cpu_count']} cores, backend {machine['backend']}; "
            f"{versions}. Of SLA and SLRLA the slow weights are evaluated, with the statistics "
            "of batch normalisation that training has left. The best epoch is each seed's, "
            "chosen on the test images.",
            "",
            f"**Published**: {_sources(results)}",
            "",
            *(["Final accuracies, seed by seed:", ""] if comparison else []),
            *[f"- {line}" for line in comparison],
            "",
            "![Training loss and test accuracy](curves.png)",
            "",
        ]
    )


def listing() -> str:
    """All cells, with what was published of the paper's own three rows, and its sources."""
    lines = []
    for cell in recipes.CELLS:
        numbers = recipes.published(cell)
        told = ", ".join(f"{name} {numbers[name]}" for name in ("SGD", "SLA", "SLRLA") if numbers)
        lines.append(f"{cell:22}{told or 'not in the paper'}")
    return "\n".join([*lines, "", *(f"{mark} {text}" for mark, text in recipes.SOURCES.items())])


def _sources(results: Mapping[str, Any]) -> str:
    published = "".join(e["published"] or "" for e in results["optimizers"].values())
    if not published:
        return "nothing, this cell is not in the paper."
    marks = [f"{_escaped(m)} {text}" for m, text in recipes.SOURCES.items() if m in published]
    unmarked = "Table 3 of Zhou et al., NeurIPS 2021; without a mark, measured by its authors"
    return "; ".join([unmarked, *marks]) + "."


def _cell(entry: Mapping[str, Any], value: str, when: str, digits: int = 2) -> str:
    of = entry["measured"].get(value)
    if of is None:
        return "–"
    deviation = of[when]["std"]
    mean = f"{of[when]['mean']:.{digits}f}"
    return mean if deviation is None else f"{mean} ± {deviation:.{digits}f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escaped(text: str) -> str:
    return text.replace("*", r"\*")
