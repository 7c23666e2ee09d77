"""What was measured of trained weights, by optimizer: a table, and a plot."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from rich import box
from rich.table import Table

from experiments.reporting.report import LOOK, STYLES, mean_and_deviation

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Measure:
    """A number of each trained network.

    Attributes:
      key: its name in the records.
      header: its name in the table, two lines of it.
      form: how it is written.
      scale: what it is multiplied with first, 100 for per cent.
    """

    key: str
    header: str
    form: str = ".2f"
    scale: float = 1.0

    def of(self, records: Sequence[Record], optimizer: str) -> np.ndarray:
        """Its values for an optimizer, one for each seed."""
        values = [record[self.key] for record in records if record["optimizer"] == optimizer]
        return self.scale * np.array(values)


def table(
    records: Sequence[Record], labels: Mapping[str, str], measures: Sequence[Measure]
) -> Table:
    """Mean and deviation over the seeds, and what the training has cost."""
    result = Table(box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1))
    result.add_column("", style="bold", no_wrap=True)
    for header in ("gradients\na run", *(measure.header for measure in measures)):
        result.add_column(header, justify="right", no_wrap=True)
    for name, label in labels.items():
        gradients = next(r["gradients"] for r in records if r["optimizer"] == name)
        values = (mean_and_deviation(m.of(records, name), m.form) for m in measures)
        # The deviation below the mean, so that it all fits into 80 columns.
        result.add_row(label, f"{gradients:,}", *(v.replace(" ±", "\n±") for v in values))
    return result


def plot(
    records: Sequence[Record],
    labels: Mapping[str, str],
    measures: Sequence[Measure],
    title: str,
    path: Path,
) -> None:
    """A panel for each measure, a row for each optimizer: seeds as dots, means as bars."""
    with matplotlib.rc_context(LOOK):
        figure = Figure(
            figsize=(1.6 + 3.2 * len(measures), 1.6 + 0.4 * len(labels)), layout="constrained"
        )
        panels = figure.subplots(1, len(measures), sharey=True, squeeze=False)[0]
        for axes, measure in zip(panels, measures, strict=True):
            for row, name in enumerate(labels):
                color, _ = STYLES[row % len(STYLES)]
                values = measure.of(records, name)
                axes.plot(values, [row] * len(values), "o", color=color, alpha=0.6)
                axes.plot(values.mean(), row, "|", color=color, markersize=18, markeredgewidth=2)
            axes.set_title(measure.header.replace("\n", " ").strip(), fontsize=10, pad=8)
            axes.grid(axis="x", color="0.9")
            axes.set_axisbelow(True)
        panels[0].set_yticks(range(len(labels)), labels.values())
        panels[0].set_ylim(len(labels) - 0.5, -0.5)
        figure.suptitle(title, fontsize=9, x=0.01, ha="left", color="0.3")
        figure.savefig(path, dpi=140)
