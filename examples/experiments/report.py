"""From records to a table, in `results.json` and `table.md`, the same for every program.

    results = summary(...)      # numbers: final and best of each measure, by seed
    page(results, columns)      # the same as a page in Markdown

A page is a function of the numbers alone, so that one in the repository can be checked.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np

from experiments.records import Record
from experiments.settings import Settings, circumstances, shown_command, write_json
from experiments.sweep import Results, title_of

# Fields of a record that are not measured.
BOOKKEEPING = {"seed", "epoch", "steps", "gradients", "stage", "learning_rate"}


class Column(NamedTuple):
    """A column of a table.

    Attributes:
      header: its name.
      measure: the field of the records.
      when: `final`, after the last epoch; `best`, after each seed's best; or `seeds`, from how
        many seeds it holds after the last.
      form: how a number is written.
      lower_is_better: whether it is a loss or a cost.
    """

    header: str
    measure: str
    when: str = "final"
    form: str = ".2f"
    lower_is_better: bool = False


# Makes the lines of a table from the numbers.
Tabulate = Callable[[Settings, Sequence[Column]], list[str]]

# Of programs that train networks; those that nothing was measured for are left out.
TRAINING = (
    Column("final", "test_accuracy"),
    Column("best epoch", "test_accuracy", "best"),
    Column("validation", "validation_accuracy", "best"),
    Column("recalibrated", "recalibrated_test_accuracy"),
    Column("fast weights", "fast_test_accuracy", "best"),
    Column("training loss", "train_loss", form=".4f"),
)
ACCURACIES = (
    "Accuracy in % on the test images. Of the optimizers with slow weights these are evaluated, "
    "with the running BatchNorm statistics; the fast weights, too, are those of the best epoch"
)

# What the best epoch may be chosen by.
BEST_BY = {
    "test_accuracy": "the test accuracy",
    "recalibrated_test_accuracy": "the test accuracy with recalibrated BatchNorm statistics, where "
    "there are slow weights",
    "validation_accuracy": "the accuracy on the validation images",
}


def report(
    results: Results,
    columns: Sequence[Column],
    note: str,
    *,
    best_by: str = "test_accuracy",
    published: Mapping[str, str] | None = None,
    sources: Sequence[str] = (),
    pictures: Sequence[str] = ("curves.png",),
    compared: bool = True,
    tabulate: Tabulate | None = None,
) -> list[str]:
    """Writes `results.json` and `table.md` into the folder of a sweep.

    Args:
      results: of the sweep.
      columns: of the table.
      note: what the numbers are.
      best_by: the accuracy that the best epoch is chosen by.
      published: what was published for each entry, as a column beside the others.
      sources: where it was published.
      pictures: files in the folder that the page shows.
      compared: whether the entries are compared with the first, seed by seed.
      tabulate: makes the lines of the table; None for `table`.

    Returns:
      The table and what belongs to it, in lines; none, and nothing is written, if all entries
      have diverged.
    """
    if not results.runs:
        return []
    summary = summarise(results, note, best_by, published, sources)
    write_json(results.folder / "results.json", summary)
    text = page(summary, columns, pictures, compared, tabulate)
    (results.folder / "table.md").write_text(text, encoding="utf-8")
    differences = comparison(summary, columns) if compared else []
    return [*(tabulate or table)(summary, columns), "", *notes(summary, columns), *differences]


def summarise(
    results: Results,
    note: str,
    best_by: str = "test_accuracy",
    published: Mapping[str, str] | None = None,
    sources: Sequence[str] = (),
) -> Settings:
    """Returns the numbers of a sweep as JSON has them; as `report` says."""
    records, settings = results.records, results.settings
    wall = [record.get("timing", {}).get("wall", 0.0) for record in records]
    return {
        "title": "; also ".join(dict.fromkeys(map(title_of, results.runs.values()))),
        "note": note,
        "command": shown_command(settings["processes"][-1]["command"]),
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "seeds": sorted({record["seed"] for record in records}),
        "seconds": round(sum(wall)),
        **circumstances(),
        "best_by": best_by,
        "sources": list(sources),
        "entries": {
            label: {
                "config": settings["entries"][label],
                "gradients": run.steps * run.gradients_per_step,
                "published": (published or {}).get(label),
                "measured": measured(
                    [record for record in records if record["optimizer"] == label], best_by
                ),
            }
            for label, run in results.runs.items()
        },
        "diverged": list(results.diverged),
    }


def measured(records: Sequence[Record], best_by: str = "test_accuracy") -> dict[str, Any]:
    """Returns the final numbers of an entry, and those of each seed's best epoch.

    Accuracies are in %. The best epoch is chosen by one of them, or by that of the evaluated
    weights where the entry does not have it; epoch 0, before training, does not count.
    """
    last = [record for record in records if record["epoch"] == records[-1]["epoch"]]
    names = [n for n, v in last[0].items() if isinstance(v, int | float) and n not in BOOKKEEPING]
    result: dict[str, Any] = {n: {"final": numbers(by_seed(records, n)[:, -1])} for n in names}
    if "test_accuracy" in names:
        chosen = by_seed(records, best_by if best_by in names else "test_accuracy")
        best = np.nanargmax(chosen[:, 1:], axis=1) + 1
        for name in names:
            if name.endswith(("test_accuracy", "validation_accuracy")):
                values = by_seed(records, name)
                result[name]["best"] = numbers(values[np.arange(len(best)), best])
        result["best_epoch"] = best.tolist()
    return result


def by_seed(records: Sequence[Record], measure: str) -> np.ndarray:
    """Returns a measure of one entry as an array of seeds × epochs, NaN where there is none."""
    seeds = sorted({record["seed"] for record in records})
    ordered = sorted(records, key=lambda record: record["epoch"])
    values = [[r.get(measure, np.nan) for r in ordered if r["seed"] == seed] for seed in seeds]
    return np.array(values) * (100 if "accuracy" in measure else 1)


def numbers(values: np.ndarray) -> dict[str, Any]:
    """Returns mean, standard deviation (None of a single seed) and the values themselves."""
    return {
        "mean": round(float(values.mean()), 5),
        "std": round(float(values.std(ddof=1)), 5) if len(values) > 1 else None,
        "by_seed": [round(float(value), 5) for value in values],
    }


def page(
    summary: Settings,
    columns: Sequence[Column],
    pictures: Sequence[str] = ("curves.png",),
    compared: bool = True,
    tabulate: Tabulate | None = None,
) -> str:
    """Returns a page in Markdown: the table, and everything one has to know about it."""
    machine = summary["machine"]
    versions = ", ".join(f"{package} {version}" for package, version in summary["versions"].items())
    lines = [
        f"{summary['title']}.",
        "",
        *(tabulate or table)(summary, columns),
        "",
        *notes(summary, columns),
        "",
        f"Measured by `{summary['command']}` on {summary['date'][:10]}, in "
        f"{summary['seconds'] / 60:.0f} min; {machine['processor']}, {machine['cpu_count']} cores, "
        f"backend {machine['backend']}; {versions}.",
        "",
    ]
    if summary["sources"]:
        lines += [f"Published: {'; '.join(summary['sources'])}.", ""]
    if compared and (differences := comparison(summary, columns)):
        lines += [f"Seed by seed, {columns[0].header}:", "", *(f"- {d}" for d in differences), ""]
    for name in pictures:
        lines += [f"![{name.removesuffix('.png').replace('_', ' ')}]({name})", ""]
    return "\n".join(lines)


def table(summary: Settings, columns: Sequence[Column]) -> list[str]:
    """Returns a table in Markdown, a row for each entry; columns without a number are left out."""
    entries = summary["entries"]
    rows = {label: [cell(entry, column) for column in columns] for label, entry in entries.items()}
    used = [n for n in range(len(columns)) if any(row[n] != "–" for row in rows.values())]
    with_published = any(entry["published"] for entry in entries.values())
    header = ["", *(["published"] if with_published else []), *(columns[n].header for n in used)]
    body = [
        [
            label,
            *([escaped(entries[label]["published"] or "–")] if with_published else []),
            *(row[n] for n in used),
        ]
        for label, row in rows.items()
    ]
    return markdown([header, *body])


def markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns an aligned table in Markdown, of a header and rows; numbers are to the right."""
    widths = [max(2, *map(len, column)) for column in zip(*rows, strict=True)]
    first, *others = widths

    def line(cells: Sequence[str]) -> str:
        right = [f"{c:>{w}}" for c, w in zip(cells[1:], others, strict=True)]
        return f"| {' | '.join([f'{cells[0]:{first}}', *right])} |"

    rule = f"| {' | '.join(['-' * first, *('-' * (w - 1) + ':' for w in others)])} |"
    header, *body = map(line, rows)
    return [header, rule, *body]


def cell(entry: Mapping[str, Any], column: Column) -> str:
    """Returns mean ± standard deviation, or a dash where there is no number."""
    measured = entry["measured"].get(column.measure, {})
    if measured and column.when == "seeds":
        holds = measured["final"]["by_seed"]
        return f"{sum(map(bool, holds))} of {len(holds)}"
    found = measured.get(column.when)
    if found is None or not np.isfinite(found["mean"]):
        return "–"
    mean = f"{found['mean']:{column.form}}"
    return mean if found["std"] is None else f"{mean} ± {found['std']:{column.form}}"


def notes(summary: Settings, columns: Sequence[Column]) -> list[str]:
    """Returns what one has to know to read the table."""
    seeds = summary["seeds"]
    spread = f"Mean ± standard deviation of {len(seeds)} seeds" if len(seeds) > 1 else "One seed"
    gradients = {entry["gradients"] for entry in summary["entries"].values()}
    *several, last = (f"{n:,}" for n in sorted(gradients))
    cost = " or ".join(filter(None, [", ".join(several), last]))
    lines = [f"{spread}; {cost} gradients per run. {summary['note']}."]
    if any(column.when == "best" for column in columns):
        lines += [f"The best epoch is each seed's, chosen by {BEST_BY[summary['best_by']]}."]
    return [*lines, *(f"{line}." for line in summary["diverged"])]


def comparison(summary: Settings, columns: Sequence[Column]) -> list[str]:
    """Says how the first column's numbers differ from those of the first entry, seed by seed."""
    measure, form = columns[0].measure, columns[0].form
    unit = " points" if "accuracy" in measure else ""
    sign = -1 if columns[0].lower_is_better else 1
    final = {
        label: np.array(entry["measured"][measure]["final"]["by_seed"])
        for label, entry in summary["entries"].items()
    }
    if len(final) < 2:
        return []
    first, *others = final
    lines = []
    for label in others:
        difference = final[label] - final[first]
        mean, spread = signed(difference.mean(), form), ""
        if len(difference) > 1:
            spread = f" ± {difference.std(ddof=1):{form}}"
        lines.append(
            f"{label} against {first}: {mean}{spread}{unit}; better from "
            f"{(sign * difference > 0).sum()} of {len(difference)} seeds, worse from "
            f"{(sign * difference < 0).sum()}"
        )
    return lines


def signed(value: float, form: str = ".2f") -> str:
    """Returns a number with its sign, of which zero has none."""
    return f"{value:+z{form}}".replace("-", "−")


def escaped(text: str) -> str:
    """Returns text in which Markdown sees no emphasis."""
    return text.replace("*", r"\*")
