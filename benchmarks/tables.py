"""Tables of results, in Markdown that is readable as plain text."""

import importlib.metadata
import platform
import re
from typing import Any

import slrla_jax

TITLES = {"momentum": "SGD with momentum", "adam": "Adam", "adamw": "AdamW"}
MEGABYTE = 1e6


def markdown(header: list[str], rows: list[list[Any]]) -> str:
    """Formats a table with aligned columns, right-aligned if they hold numbers."""
    table = [header, *([str(cell) for cell in row] for row in rows)]
    columns = []
    for title, *cells in zip(*table, strict=True):
        width = max(len(cell) for cell in (title, *cells))
        if columns and all(re.match(r"[\d.–-]", cell) for cell in cells):
            column = [cell.rjust(width) for cell in (title, *cells)]
            rule = "-" * (width - 1) + ":"
        else:
            column = [cell.ljust(width) for cell in (title, *cells)]
            rule = "-" * width
        columns.append([column[0], rule, *column[1:]])
    return "\n".join(f"| {' | '.join(line)} |" for line in zip(*columns, strict=True))


def versions(*packages: str) -> dict[str, str]:
    """The versions of Python and of those compared packages that are installed."""
    found = {"python": platform.python_version(), "slrla-jax": slrla_jax.__version__}
    for package in ("jax", "jaxlib", "optax", *packages):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
