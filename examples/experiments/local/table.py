"""Data parallel and local training in a table, and as a picture over the bytes that are sent."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from experiments.figures import picture, styles
from experiments.local.methods import METHODS, LocalConfig
from experiments.paired import compare
from experiments.report import Column, by_seed, cell, markdown, signed
from experiments.settings import Settings
from experiments.sweep import Results

# What data parallel training has, and local training besides, by the names in the configuration.
OF_ALL = {"split": "split", "workers": "workers"}
OF_LOCAL = {
    "sync_period": "k",
    "outer_learning_rate": "η",
    "outer_momentum": "μ",
    "beta": "β",
    "send": "sends",
}
# What local entries are compared with besides: the same, but for these settings.
REFERENCES = {
    "η 1, μ 0": {"outer_learning_rate": 1.0, "outer_momentum": 0.0},
    "β 0": {"beta": 0.0},
    "float32": {"send": "float32"},
}

# Letters of a legend on an inch of a picture's width.
LEGEND = 12

Configs = Mapping[str, LocalConfig]


def is_local(config: LocalConfig) -> bool:
    """Says whether workers train by themselves."""
    return config.optimizer == "local"


def settings_of(config: LocalConfig) -> dict[str, Any]:
    """Returns what an entry is told apart by, but for its learning rate."""
    names = [*OF_ALL, *(OF_LOCAL if is_local(config) else ())]
    return {"optimizer": config.optimizer} | {name: getattr(config, name) for name in names}


def same_but(configs: Configs, config: LocalConfig, **changes: Any) -> str | None:
    """Returns the label of the entry that differs from one in some settings; None for none."""
    wanted = settings_of(replace(config, **changes))
    found = (label for label, other in configs.items() if settings_of(other) == wanted)
    return next(found, None)


def rows(summary: Settings, columns: Sequence[Column]) -> list[str]:
    """Returns a table in Markdown, a row for each entry, with its gains in the first column."""
    entries = summary["entries"]
    configs = {label: config_of(entry) for label, entry in entries.items()}
    varied = varied_settings(configs.values())
    references = {n: same for n, same in REFERENCES.items() if not same.keys().isdisjoint(varied)}
    table = [
        [
            "",
            *(name for setting, name in (OF_ALL | OF_LOCAL).items() if setting in varied),
            "learning rate",
            *(column.header for column in columns),
            "MB sent",
            "gain over data parallel",
            *(f"over {name}" for name in references),
        ]
    ]
    for label, config in configs.items():
        own = settings_of(config)
        others = [{"optimizer": "data_parallel"}, *references.values()]
        table.append(
            [
                METHODS[config.optimizer].label,
                *(written(own.get(name)) for name in OF_ALL | OF_LOCAL if name in varied),
                f"{config.learning_rate:g}",
                *(cell(entries[label], column) for column in columns),
                f"{entries[label]['measured']['megabytes']['final']['mean']:.3g}",
                *(gain(entries, label, same_but(configs, config, **o), columns[0]) for o in others),
            ]
        )
    return markdown(table)


def config_of(entry: Settings) -> LocalConfig:
    """Returns the configuration of an entry, without the digest of its data."""
    settings = {name: value for name, value in entry["config"].items() if name != "data"}
    return LocalConfig.from_json(settings)


def varied_settings(configs: Sequence[LocalConfig]) -> list[str]:
    """Returns the settings in which local entries differ."""
    own = [settings_of(config) for config in configs if is_local(config)]
    return [name for name in OF_ALL | OF_LOCAL if len({each[name] for each in own}) > 1]


def written(value: Any) -> str:
    """Writes a setting; None, which has no meaning for the entry, is a dash."""
    return "–" if value is None else value if isinstance(value, str) else f"{value:g}"


def gain(entries: Settings, label: str, other: str | None, column: Column) -> str:
    """Writes the mean gain over another entry, seed by seed, with its 95 % interval."""
    if other is None or other == label:
        return "–"
    sign = -1 if column.lower_is_better else 1
    mine, theirs = (
        np.array(entries[name]["measured"][column.measure]["final"]["by_seed"])
        for name in (label, other)
    )
    if len(mine) < 2:
        return signed(sign * float((mine - theirs).mean()), column.form)
    found = compare(sign * (mine - theirs))
    return f"{signed(found.mean, column.form)} ± {found.half_width:{column.form}}"


def draw(results: Results, column: Column, title: str, path: Path) -> None:
    """Draws a measure over the megabytes that a worker sends.

    There is a panel for each split and number of workers. Lines are the settings of local training
    but for the sync periods, which are their dots, with bars of a standard deviation over the
    seeds. The dashed line is data parallel training, whose star says what that sends.
    """
    configs = {label: run.config for label, run in results.runs.items()}
    points = {label: point(results, label, column) for label in configs}
    panels = list(dict.fromkeys(panel_of(config) for config in configs.values()))
    varied = [name for name in varied_settings(configs.values()) if name in OF_LOCAL]
    lines = list(dict.fromkeys(line_of(c, varied) for c in configs.values() if is_local(c)))
    looks = dict(styles(lines))
    size = (max(8.0, 1.8 + 3.4 * len(panels)), 4.8)
    with picture(path, size, f"{title}; dots are sync periods, bars one deviation") as figure:
        for axes, panel in zip(
            figure.subplots(1, len(panels), squeeze=False, sharey=True)[0], panels, strict=True
        ):
            mine = {label: c for label, c in configs.items() if panel_of(c) == panel}
            draw_panel(axes, mine, points, varied, looks)
            axes.set_title(panel)
            axes.set_xlabel("MB that a worker sends")
        figure.axes[0].set_ylabel(f"test {column.header}")
        handles, labels = figure.axes[-1].get_legend_handles_labels()
        columns = int(LEGEND * size[0] / (6 + max(map(len, labels))))
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=9)


def draw_panel(
    axes: Axes,
    configs: Configs,
    points: Mapping[str, tuple[float, float, float]],
    varied: Sequence[str],
    looks: Mapping[str, dict[str, Any]],
) -> None:
    """Draws the entries of a panel."""
    for line, look in looks.items():
        mine = [label for label, c in configs.items() if is_local(c) and line_of(c, varied) == line]
        if mine:
            x, y, deviation = zip(*sorted(points[label] for label in mine), strict=True)
            axes.errorbar(x, y, deviation, marker="o", ms=4, lw=1.5, elinewidth=1, **look)
    for label in (label for label, config in configs.items() if not is_local(config)):
        x, y, deviation = points[label]
        axes.axhline(y, color="0.4", lw=1, ls="--", zorder=0)
        axes.errorbar(x, y, deviation, marker="*", ms=10, color="black", label="data parallel")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0), numticks=8))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def point(results: Results, label: str, column: Column) -> tuple[float, float, float]:
    """Returns the megabytes of an entry, and the mean and deviation of a measure at the end."""
    records = [record for record in results.records if record["optimizer"] == label]
    values = by_seed(records, column.measure)[:, -1]
    deviation = values.std(ddof=1) if len(values) > 1 else 0.0
    return records[-1]["megabytes"], float(values.mean()), float(deviation)


def panel_of(config: LocalConfig) -> str:
    """Names the panel that an entry is in."""
    split = "" if config.split == "even" else f", split by {config.split}"
    return f"{config.workers} workers{split}"


def line_of(config: LocalConfig, varied: Sequence[str]) -> str:
    """Names the line that an entry is on, by what varies besides the sync period."""
    values = {name: getattr(config, name) for name in varied if name != "sync_period"}
    own = [v if isinstance(v, str) else f"{OF_LOCAL[name]} {v:g}" for name, v in values.items()]
    return ", ".join(own) or METHODS[config.optimizer].label
