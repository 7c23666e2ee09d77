"""Tables of results, in Markdown that is readable as plain text."""

import importlib.metadata
import math
import platform
import re
from typing import Any

import slrla_jax

TITLES = {"momentum": "SGD with momentum", "adam": "Adam", "adamw": "AdamW"}
MEGABYTE = 1e6
HOUR = 3600.0
DAY = 24 * HOUR


def markdown(header: list[str], rows: list[list[Any]]) -> str:
    """Formats a table with aligned columns, right-aligned if they hold numbers."""
    table = [header, *([str(cell) for cell in row] for row in rows)]
    columns = []
    for title, *cells in zip(*table, strict=True):
        width = max(len(cell) for cell in (title, *cells))
        if columns and all(re.match(r"[\d.–−+-]", cell) for cell in cells):
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


def size(count: float) -> str:
    """Formats a number of bytes with three digits."""
    power = min(4, max(1, math.floor(math.log10(count) / 3 + 1e-9)))
    return f"{three_digits(count / 1000**power)} {('', 'kB', 'MB', 'GB', 'TB')[power]}"


def duration(seconds: float) -> str:
    """Formats a time with two or three digits."""
    units = ((1.0, "ms", 1e-3), (120.0, "s", 1.0), (2 * HOUR, "min", 60.0), (48 * HOUR, "h", HOUR))
    for below, unit, one in units:
        if seconds < below:
            return f"{three_digits(seconds / one)} {unit}"
    return f"{three_digits(seconds / DAY)} days"


def percent(share: float) -> str:
    """Formats a share, or how many times as much it makes if it is from ten up."""
    if share >= 10:
        return f"× {share + 1:,.0f}" if share < 1e6 else "never"
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"


def three_digits(number: float) -> str:
    """Formats a number below 1,000,000 with up to three digits, and no exponent."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
