"""The map in Markdown: what helps where at a glance, and below it everything that it is made of."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.paired import LEVEL, Comparison, compare
from experiments.parts import provenance
from experiments.regimes.engine import TUNING_SEEDS, Measure
from experiments.regimes.verdicts import ALIKE, holm, verdict
from experiments.report import markdown
from experiments.settings import Settings


class Cell(NamedTuple):
    """A cell of the map.

    Attributes:
      part: what was measured, as `engine.cell` returns it.
      comparison: of its gains with the plain method; None of the plain method itself.
      adjusted: the p-value, adjusted for all comparisons of the map.
    """

    part: Settings
    comparison: Comparison | None = None
    adjusted: float = 1.0

    @property
    def verdict(self) -> str:
        """Whether the method helps."""
        return verdict(self.comparison, self.adjusted)

    @property
    def values(self) -> np.ndarray:
        """Of each seed."""
        return np.array(self.part["values"])


class Row(NamedTuple):
    """A regime.

    Attributes:
      name: its name.
      plain: the cell of the plain method.
      others: those that are compared with it, by the methods' names.
    """

    name: str
    plain: Cell
    others: Mapping[str, Cell]

    @property
    def about(self) -> Settings:
        """What the tables say of the regime."""
        return self.plain.part["row"]

    @property
    def measure(self) -> Measure:
        """What the regime is measured by."""
        return Measure(**self.about["measure"])


def rows_of(results: Settings) -> list[Row]:
    """Returns the regimes in which there is something to compare."""
    regimes: dict[str, dict[str, Cell]] = {}
    for name, part in results["parts"].items():
        regime, method = name.split("/")
        regimes.setdefault(regime, {})[method] = Cell(part)
    rows = []
    for name, cells in regimes.items():
        plain = next((method for method, cell in cells.items() if "row" in cell.part), None)
        if plain is not None and len(cells) > 1:
            rows.append(Row(name, cells.pop(plain), cells))
    return with_verdicts(rows)


def with_verdicts(rows: Sequence[Row]) -> list[Row]:
    """Compares all cells with the plain ones, their number being that of the comparisons."""
    found = {
        (row.name, method): compare(row.measure.gain(row.plain.values, cell.values))
        for row in rows
        for method, cell in row.others.items()
    }
    adjusted = dict(zip(found, holm([one.p for one in found.values()]), strict=True))
    return [
        row._replace(
            others={
                method: Cell(cell.part, found[row.name, method], float(adjusted[row.name, method]))
                for method, cell in row.others.items()
            }
        )
        for row in rows
    ]


def families(rows: Sequence[Row]) -> Mapping[str, Sequence[Row]]:
    """Returns the rows of each family, by its name."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.about["family"], []).append(row)
    return found


def columns_of(rows: Sequence[Row]) -> dict[str, str]:
    """Returns the labels of all methods that are compared in rows, by their names."""
    return {method: cell.part["method"] for row in rows for method, cell in row.others.items()}


def page(results: Settings) -> str:
    """Returns the text of `table.md`."""
    rows = rows_of(results)
    seeds, compared = len(results["seeds"]), sum(len(row.others) for row in rows)
    lines = [
        "# When does it help?",
        "",
        "Gain over the plain method, in the unit of the row, with the half width of its 95 % "
        f"interval: paired differences from {seeds} seeds, on test data, after equally many "
        "gradients; above 0 the method is better. **helps** or **hurts** stands where the "
        f"difference is beyond chance at a level of {LEVEL:g} by Holm's method, over all "
        f"{compared} comparisons on this page; where ≈ stands, a difference within the interval "
        "may have been missed.",
    ]
    for family, mine in families(rows).items():
        lines += ["", f"## {family}", "", *glance(mine)]
    lines += ["", "![the map](map.png)", "", *protocol(results)]
    for row in rows:
        lines += ["", *detail(row)]
    return "\n".join([*lines, "", provenance(results), ""])


def glance(rows: Sequence[Row]) -> list[str]:
    """Returns the table of a family: a row for each regime, a column for each method."""
    columns = columns_of(rows)
    table = [("", "measure", rows[0].plain.part["method"], *columns.values())]
    for row in rows:
        label = f'<a id="{row.name}"></a>[{row.about["label"]}](#{row.name}-cells)'
        others = (row.others.get(method) for method in columns)
        shown = [gain(cell, row.measure.form) if cell else "–" for cell in others]
        table.append((label, row.measure.label, spread(row.plain, row.measure.form), *shown))
    return markdown(table)


def gain(cell: Cell, form: str) -> str:
    """Writes verdict, gain and interval of a cell."""
    found = cell.comparison
    word = "≈" if cell.verdict == ALIKE else f"**{cell.verdict}**"
    lost = f", {len(cell.part['diverged'])} diverge" if cell.part["diverged"] else ""
    return f"{word} {signed(found.mean, form)} ± {found.half_width:{form}}{lost}"


def signed(value: float, form: str) -> str:
    """Writes a number with its sign; what is rounded to zero has a plus."""
    return f"{value:+z{form}}".replace("-", "−")


def spread(cell: Cell, form: str) -> str:
    """Writes mean ± standard deviation of the measure."""
    return f"{cell.values.mean():{form}} ± {cell.values.std(ddof=1):{form}}"


def protocol(results: Settings) -> list[str]:
    """Says how all cells are made."""
    return [
        "## How each cell was made",
        "",
        "Each method was tuned in each regime: all learning rates of one grid, a factor of 2 "
        "apart, with each of the method's own settings, by the mean on held-out data over "
        f"{len(TUNING_SEEDS)} seeds, or fewer where the row says so. The best setting was then run "
        f"from {len(results['seeds'])} other seeds and measured on test data. *At the edge* says "
        "that the best learning rate is the smallest or the largest of the grid. A run that "
        "diverges counts with the measure's worst value, and is counted. Wins are the seeds from "
        "which the method is better, equal ones by half. p is two-sided, of Student's paired test; "
        "adjusted by Holm's method it decides the verdict.",
    ]


def detail(row: Row) -> list[str]:
    """Returns the table of a regime: a row for each method."""
    form = row.measure.form
    worst = max if row.measure.lower_is_better else min
    header = ("chosen of", "chosen", "at the edge", row.measure.label, "worst", "gain", "wins")
    table = [("", *header, "p", "adjusted", "diverged", "seconds")]
    for cell in (row.plain, *row.others.values()):
        part, found = cell.part, cell.comparison
        compared = ("", "", "", "")
        if found:
            wins = f"{found.wins:g} of {len(cell.values)}"
            compared = (gain(cell, form), wins, f"{found.p:.1g}", f"{cell.adjusted:.1g}")
        table.append(
            (
                part["method"],
                f"{part['candidates']}",
                in_words(part["chosen"]),
                "yes" if part["at_edge"] else "no",
                spread(cell, form),
                f"{worst(part['values']):{form}}",
                *compared,
                f"{len(part['diverged'])}",
                f"{part['seconds']:.0f}",
            )
        )
    note = [row.about["note"], ""] if row.about["note"] else []
    return [
        f'### <a id="{row.name}-cells"></a>{row.about["label"]}',
        "",
        f"{row.about['gradients']:,} gradients in each run.",
        "",
        *note,
        *markdown(table),
    ]


def in_words(chosen: Mapping[str, Any]) -> str:
    """Writes settings."""
    return ", ".join(f"{name.replace('_', ' ')} {number(value)}" for name, value in chosen.items())


def number(value: Any) -> str:
    """Writes a number, or one for each layer."""
    return " and ".join(f"{v:g}" for v in (value if isinstance(value, list) else [value]))
