"""What the pictures of the theorems have in common: curves with intervals, and predicted slopes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator


def curve(axes: Axes, x: Sequence[float], estimate: dict[str, Any], **look: Any) -> None:
    """Draws values over x, and their interval as a band."""
    axes.plot(x, estimate["value"], linewidth=1.6, **look)
    axes.fill_between(
        x, estimate["low"], estimate["high"], color=look["color"], alpha=0.15, linewidth=0
    )


def point(axes: Axes, x: float, estimate: dict[str, float], **look: Any) -> None:
    """Draws a value and its interval as a bar."""
    value = estimate["value"]
    bars = [[max(value - estimate["low"], 0)], [max(estimate["high"] - value, 0)]]
    axes.errorbar(x, value, bars, fmt="o", ms=5, capsize=2, **look)


def slope(axes: Axes, x: Sequence[float], through: tuple[float, float], exponent: float) -> None:
    """Draws the power law that a theorem predicts through a point, dotted."""
    x = np.asarray(x, float)
    line = through[1] * (x / through[0]) ** exponent
    axes.plot(x, line, color="0.2", linestyle=":", linewidth=1.2, zorder=9)


def ticks(axes: Axes, values: Sequence[float]) -> None:
    """Labels these values on the x axis, and no others."""
    axes.set_xticks(
        values, [f"{value:,.3g}" if value < 1_000 else f"{value:,.0f}" for value in values]
    )
    axes.xaxis.set_minor_locator(NullLocator())


def number(value: float | None, form: str = ".2f") -> str:
    """Returns a number as tables and pictures have it; a dash if there is none."""
    return "–" if value is None else f"{value:{form}}".replace("-", "−")


def fitted(part: dict[str, Any], what: str) -> str:
    """Returns what the rows that begin so have predicted and fitted; an empty text for no row."""
    rows = [row for row in part["fits"] if row["what"].startswith(what)]
    return ", ".join(
        f"{row['what'].removeprefix(what)} {number(row['value'])} ({number(row['predicted'], 'g')})"
        for row in rows
    )
