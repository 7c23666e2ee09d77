"""The map in Markdown: what helps where at a glance, and below it everything that it is made of."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from experiments.parts import provenance
from experiments.regimes.engine import TUNING_SEEDS, Measure
from experiments.regimes.verdicts import ALIKE, LEVEL, Comparison, compare, holm, verdict
from experiments.report import markdown
from experiments.settings import Settings


class Cell(NamedTuple):
    """A cell of the map.

    Attributes:
      regime: the name of its regime.
      method: the name of its method.
      part: what was measured, as `engine.cell` returns it.
      comparison: of its gains with the plain method; None of the plain method itself.
      adjusted: the p-value, adjusted for all comparisons of the map.
    """

    regime: str
    method: str
    part: Settings
    comparison: Comparison | None = None
    adjusted: float = 1.0

    @property
    def measure(self) -> Measure:
        """What the regime is measured by."""
        return Measure(**self.part["row"]["measure"])

    @property
    def verdict(self) -> str:
        """Whether the method helps."""
        return verdict(self.comparison, self.adjusted)

    @property
    def values(self) -> np.ndarray:
        """Of each seed."""
        return np.array(self.part["values"])


Rows = Mapping[str, Mapping[str, Cell]]  # Of regimes and methods by their names.


def rows_of(results: Settings) -> Rows:
    """Returns the cells of the regimes in which there is a comparison."""
    rows: dict[str, dict[str, Cell]] = {}
    for name, part in results["parts"].items():
        regime, method = name.split("/")
        rows.setdefault(regime, {})[method] = Cell(regime, method, part)
    rows = {name: row for name, row in rows.items() if len(row) > 1 and plain_of(row)}
    compared = [
        cell._replace(comparison=compare(cell.measure.gain(plain_of(row).values, cell.values)))
        for row in rows.values()
        for cell in row.values()
        if cell is not plain_of(row)
    ]
    adjusted = holm([cell.comparison.p for cell in compared])
    for cell, p in zip(compared, adjusted, strict=True):
        rows[cell.regime][cell.method] = cell._replace(adjusted=float(p))
    return rows


def plain_of(row: Mapping[str, Cell]) -> Cell | None:
    """Returns the cell that the others of a row are compared with; None if it is not there."""
    first = next(iter(row.values()))
    return row.get(first.part["row"]["plain"])


def families(rows: Rows) -> Iterator[tuple[str, Rows]]:
    """Yields the rows of each family, with its name."""
    of_families: dict[str, dict[str, Mapping[str, Cell]]] = {}
    for name, row in rows.items():
        of_families.setdefault(plain_of(row).part["row"]["family"], {})[name] = row
    yield from of_families.items()


def columns_of(rows: Rows) -> dict[str, str]:
    """Returns the labels of all methods in rows but the plain ones, by their names."""
    return {
        cell.method: cell.part["method"]
        for row in rows.values()
        for cell in row.values()
        if cell.comparison
    }


def page(results: Settings) -> str:
    """Returns the text of `table.md`."""
    rows = rows_of(results)
    seeds, compared = len(results["seeds"]), sum(1 for _ in comparisons(rows))
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
    for family, mine in families(rows):
        lines += ["", f"## {family}", "", *glance(mine)]
    lines += ["", "![the map](map.png)", "", *protocol(results)]
    for row in rows.values():
        lines += ["", *detail(row)]
    return "\n".join([*lines, "", provenance(results), ""])


def comparisons(rows: Rows) -> Iterator[Cell]:
    """Yields the cells that are compared with a plain method."""
    yield from (cell for row in rows.values() for cell in row.values() if cell.comparison)


def glance(rows: Rows) -> list[str]:
    """Returns the table of a family: a row for each regime, a column for each method."""
    columns = columns_of(rows)
    plain = next(plain_of(row) for row in rows.values())
    table = [("", "measure", plain.part["method"], *columns.values())]
    for name, row in rows.items():
        plain = plain_of(row)
        about = plain.part["row"]
        shown = [gain(row[method]) if method in row else "–" for method in columns]
        label = f'<a id="{name}"></a>[{about["label"]}](#{name}-cells)'
        table.append((label, about["measure"]["label"], spread(plain), *shown))
    return markdown(table)


def gain(cell: Cell) -> str:
    """Writes verdict, gain and interval of a cell."""
    form, found = cell.measure.form, cell.comparison
    word = "≈" if cell.verdict == ALIKE else f"**{cell.verdict}**"
    lost = f", {len(cell.part['diverged'])} diverge" if cell.part["diverged"] else ""
    return f"{word} {signed(found.mean, form)} ± {found.half_width:{form}}{lost}"


def signed(value: float, form: str) -> str:
    """Writes a number with its sign."""
    return f"{value:+{form}}".replace("-", "−")


def spread(cell: Cell) -> str:
    """Writes mean ± standard deviation of the measure."""
    form = cell.measure.form
    return f"{cell.values.mean():{form}} ± {cell.values.std(ddof=1):{form}}"


def worst(cell: Cell) -> float:
    """Returns the worst value of any seed."""
    return cell.values.max() if cell.measure.lower_is_better else cell.values.min()


def protocol(results: Settings) -> list[str]:
    """Says how all cells are made."""
    return [
        "## How each cell was made",
        "",
        "Each method was tuned in each regime: all learning rates of one grid, a factor of 2 "
        "apart, with each of the method's own settings, by the mean on held-out data over "
        f"{len(TUNING_SEEDS)} seeds. The best setting was then run from {len(results['seeds'])} "
        "other seeds and measured on test data. *At the edge* says that the best learning rate "
        "is the smallest or the largest of the grid. A run that diverges counts with the "
        "measure's worst value, and is counted. Wins are the seeds from which the method is "
        "better, equal ones by half. p is two-sided, of Student's paired test; adjusted by "
        "Holm's method it decides the verdict.",
    ]


def detail(row: Mapping[str, Cell]) -> list[str]:
    """Returns the table of a regime: a row for each method."""
    plain = plain_of(row)
    about = plain.part["row"]
    header = ("chosen of", "chosen", "at the edge", about["measure"]["label"], "worst", "gain")
    table = [("", *header, "wins", "p", "adjusted", "diverged", "seconds")]
    for cell in row.values():
        part, found = cell.part, cell.comparison
        compared = ("", "", "", "")
        if found:
            wins = f"{found.wins:g} of {len(cell.values)}"
            compared = (gain(cell), wins, f"{found.p:.1g}", f"{cell.adjusted:.1g}")
        table.append(
            (
                part["method"],
                f"{part['candidates']}",
                in_words(part["chosen"]),
                "yes" if part["at_edge"] else "no",
                spread(cell),
                f"{worst(cell):{cell.measure.form}}",
                *compared,
                f"{len(part['diverged'])}",
                f"{part['seconds']:.0f}",
            )
        )
    note = [about["note"], ""] if about["note"] else []
    return [
        f'### <a id="{plain.regime}-cells"></a>{about["label"]}',
        "",
        f"{plain.part['gradients']:,} gradients in each run.",
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
