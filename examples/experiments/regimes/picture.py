"""The map as a picture: a coloured cell for each method in each regime."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from PIL import Image

from experiments import figures
from experiments.regimes.table import Row, columns_of, families, rows_of, signed
from experiments.regimes.verdicts import ALIKE, HELPS, HURTS
from experiments.settings import Settings

# Of the colours, in standard deviations of the plain method's runs.
LIMIT = 2.0
MARKS = {HELPS: "▲", ALIKE: "≈", HURTS: "▼"}


def draw(results: Settings, folder: Path) -> None:
    """Draws `map.png`: the gain of each cell, coloured by how many deviations it is."""
    of_families = families(rows_of(results))
    heights = [len(rows) + 1.5 for rows in of_families.values()]
    most = max(len(columns_of(rows)) for rows in of_families.values())
    title = (
        "Gain over the plain method, in the unit of each row; colour: in standard deviations of "
        f"the plain method's runs, at most {LIMIT:g}. ▲ helps, ▼ hurts, ≈ no difference that is "
        "beyond chance, over all comparisons"
    )
    path = folder / "map.png"
    size = (2.4 + 0.98 * most, 0.9 + 0.4 * sum(heights))
    with figures.picture(path, size, title, dpi=90) as figure:
        axes = figure.subplots(len(of_families), 1, squeeze=False, height_ratios=heights)[:, 0]
        for one, (family, rows) in zip(axes, of_families.items(), strict=True):
            image = grid(one, rows)
            one.set_title(family, pad=6)
        figure.colorbar(image, ax=axes, shrink=min(1.0, 4 / size[1]), pad=0.01)
    with Image.open(path) as drawn:  # So few colours need a third of the bytes.
        drawn.convert("RGB").quantize(128).save(path, optimize=True)


def grid(axes: Axes, rows: Sequence[Row]) -> AxesImage:
    """Draws the cells of a family."""
    columns = columns_of(rows)
    effects = np.array([[effect(row, method) for method in columns] for row in rows])
    colours = {"cmap": "PuOr", "vmin": -LIMIT, "vmax": LIMIT, "aspect": "auto"}
    image = axes.imshow(np.ma.masked_invalid(effects), **colours)
    for y, row in enumerate(rows):
        for x, method in enumerate(columns):
            if method in row.others:
                cell, dark = row.others[method], abs(effects[y, x]) > 0.5 * LIMIT
                sure = cell.verdict != ALIKE
                look = {"color": "white" if dark else "black" if sure else "0.35", "fontsize": 8.5}
                look |= {"weight": "bold" if sure else "normal", "ha": "center", "va": "center"}
                gain = signed(cell.comparison.mean, row.measure.form)
                axes.text(x, y, f"{MARKS[cell.verdict]} {gain}", **look)
    labels = [textwrap.fill(label, 16) for label in columns.values()]
    axes.set_xticks(range(len(columns)), labels, fontsize=9)
    axes.set_yticks(range(len(rows)), [row.about["label"] for row in rows], fontsize=9)
    axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0)
    axes.spines[:].set_visible(False)
    return image


def effect(row: Row, method: str) -> float:
    """Returns a gain in standard deviations of the plain method's runs, at most `LIMIT`."""
    if method not in row.others:
        return np.nan
    gain, deviation = row.others[method].comparison.mean, row.plain.values.std(ddof=1)
    return float(np.clip(gain / deviation if deviation else np.sign(gain) * LIMIT, -LIMIT, LIMIT))
