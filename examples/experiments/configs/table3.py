"""The rows of the SLRLA paper's Table 3 as configurations, and the numbers that were published."""

import csv
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.config import Config

# The settings of each row, beside those that a recipe gives to all. The first three are those of
# the released command lines.
STAGEWISE: Mapping[str, Mapping[str, Any]] = {
    "SGD": {},
    "SLA": {"optimizer": "lookahead", "sync_period": 5, "slow_step_size": 0.8},
    "SLRLA": {
        "optimizer": "slrla_released",
        "sync_period": 5,
        "slow_step_size": 0.8,
        "beta": 0.4,  # In the paper's convention: --slr 5_0.2 in the released code's.
    },
}
# Our choice, since the paper's settings of these are not known: the step size that Adam's authors
# recommend, in the same stages as the others; coupled weight decay 5e-4, decoupled 1e-2, which is
# PyTorch's default for AdamW.
ADAPTIVE: Mapping[str, Mapping[str, Any]] = {
    name: {
        "optimizer": name.lower(),
        "inner": name.lower(),
        "learning_rate": 1e-3,
        "weight_decay": weight_decay,
    }
    for name, weight_decay in {
        "Adam": 5e-4,
        "AdaBound": 5e-4,
        "RAdam": 5e-4,
        "AdamW": 1e-2,
        "AdaBelief": 1e-2,
    }.items()
}
ROWS = {**STAGEWISE, **ADAPTIVE}

# Marks in Table 3, and what they say about a number. The slides have the references' numbers only;
# those that are rows of the table, too, are named here.
SOURCES = {
    "⋄": "reported in [1] of the paper's references, the paper on Lookahead",
    "*": "reported in [15], the paper on RAdam",
    "†": "reported in [49]",
    "‡": "reported in [50], the paper on AdaBelief",
}


def rows(base: Config, names: Iterable[str] = ROWS) -> dict[str, Config]:
    """Returns a configuration for each of the named rows, with the base's other settings."""
    return {name: replace(base, **ROWS[name]) for name in names}


def published(recipe: str) -> dict[str, str]:
    """Returns accuracy in % with its deviation and its mark for each row; none outside Table 3."""
    path = Path(__file__).parent / "table3.csv"
    with path.open(newline="", encoding="utf-8") as file:
        return {row["optimizer"]: row[recipe] for row in csv.DictReader(file) if recipe in row}


def sources(recipe: str) -> list[str]:
    """Says where the published numbers of a recipe are from."""
    numbers = "".join(published(recipe).values())
    if not numbers:
        return []
    marks = [f"{mark} {text}" for mark, text in SOURCES.items() if mark in numbers]
    unmarked = "Table 3 of Zhou et al., NeurIPS 2021; without a mark, measured by its authors"
    return [unmarked, *(mark.replace("*", r"\*") for mark in marks)]
