"""The map as a picture: a coloured cell for each method in each regime."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage

from experiments import figures
from experiments.regimes.table import Cell, Rows, columns_of, families, plain_of, rows_of, signed
from experiments.regimes.verdicts import ALIKE, HELPS
from experiments.settings import Settings

# Of the colours, in standard deviations of the plain method's runs.
LIMIT = 2.0
MARKS = {HELPS: "▲", ALIKE: "≈"}


def draw(results: Settings, folder: Path) -> None:
    """Draws `map.png`: the gain of each cell, coloured by how many deviations it is."""
    rows = rows_of(results)
    of_families = list(families(rows))
    heights = [len(mine) + 1.5 for _, mine in of_families]
    most = max(len(columns_of(mine)) for _, mine in of_families)
    title = (
        "Gain over the plain method, in the unit of each row; colour: in standard deviations of "
        f"the plain method's runs, at most {LIMIT:g}. ▲ helps, ▼ hurts, ≈ no difference that is "
        "beyond chance, over all comparisons"
    )
    size = (2.6 + 1.15 * most, 0.9 + 0.42 * sum(heights))
    with figures.picture(folder / "map.png", size, title, dpi=90) as figure:
        axes = figure.subplots(len(of_families), 1, squeeze=False, height_ratios=heights)[:, 0]
        for one, (family, mine) in zip(axes, of_families, strict=True):
            image = grid(one, mine)
            one.set_title(family, pad=34)
        figure.colorbar(image, ax=axes, shrink=min(1.0, 4 / size[1]), pad=0.01)


def grid(axes: Axes, rows: Rows) -> AxesImage:
    """Draws the cells of a family."""
    columns = columns_of(rows)
    effects = np.array(
        [[effect(row, row.get(method)) for method in columns] for row in rows.values()]
    )
    colours = {"cmap": "PuOr", "vmin": -LIMIT, "vmax": LIMIT, "aspect": "auto"}
    image = axes.imshow(np.ma.masked_invalid(effects), **colours)
    for y, row in enumerate(rows.values()):
        for x, method in enumerate(columns):
            if method in row:
                dark = abs(effects[y, x]) > 0.75 * LIMIT
                sure = row[method].verdict != ALIKE
                look = {"color": "white" if dark else "black" if sure else "0.35", "fontsize": 9}
                look |= {"weight": "bold" if sure else "normal"}
                axes.text(x, y, text(row[method]), ha="center", va="center", **look)
    labels = [label.replace(" (", "\n(").replace("layer ", "layer\n") for label in columns.values()]
    axes.set_xticks(range(len(columns)), labels, fontsize=9)
    names = [plain_of(row).part["row"]["label"] for row in rows.values()]
    axes.set_yticks(range(len(rows)), names, fontsize=9)
    axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0)
    axes.spines[:].set_visible(False)
    return image


def effect(row: dict[str, Cell], cell: Cell | None) -> float:
    """Returns a gain in standard deviations of the plain method's runs, at most `LIMIT`."""
    if cell is None:
        return np.nan
    deviation = plain_of(row).values.std(ddof=1)
    gain = cell.comparison.mean
    return float(np.clip(gain / deviation if deviation else np.sign(gain) * LIMIT, -LIMIT, LIMIT))


def text(cell: Cell) -> str:
    """Writes verdict and gain."""
    return f"{MARKS.get(cell.verdict, '▼')} {signed(cell.comparison.mean, cell.measure.form)}"
