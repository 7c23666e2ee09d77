"""Command lines: what flags may be, and errors of one line where they are not."""

import argparse
import io
import itertools
import math
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, for programs that print to any terminal."""

    def parse_args(self, *args: Any, **options: Any) -> Any:
        """Reads the command line, after `escape_what_cannot_be_encoded`."""
        escape_what_cannot_be_encoded()
        return super().parse_args(*args, **options)

    def flag_of(self, name: str) -> str:
        """The flag that a value is given by, or its name where there is no flag for it."""
        flags = (a.option_strings for a in self._actions if a.dest == name and a.option_strings)
        return next(flags, [name])[0]

    def error(self, message: str) -> NoReturn:
        """Says what is wrong and exits with 2."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def escape_what_cannot_be_encoded() -> None:
    """Has characters that the terminal's encoding lacks printed as escapes, not as an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def number(wanted: str, holds: Callable[[Any], bool], kind: type = float) -> Callable[[str], Any]:
    """A flag's type: numbers for which `holds`, which is what `wanted` says in words."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not holds(value):
            raise argparse.ArgumentTypeError(f"must be {wanted}, got {text!r}")
        return value

    return parse


count = number("a whole number, at least 1", lambda n: n >= 1, int)
positive = number("a positive number", lambda x: 0 < x < math.inf)
not_negative = number("0 or more", lambda x: 0 <= x < math.inf)
step_size = number("more than 0 and at most 1", lambda x: 0 < x <= 1)


def fractions(text: str) -> tuple[float, ...]:
    """Fractions of a run, in the order in which they are reached."""
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not values or any(not a < b for a, b in zip((0.0, *values), (*values, 1.0), strict=True)):
        raise argparse.ArgumentTypeError(
            f"must be growing numbers between 0 and 1 with commas between them, got {text!r}"
        )
    return values


fraction = number("at least 0 and below 1", lambda x: 0 <= x < 1)


def listed(kind: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    """A flag's type: values of a kind, with commas between them."""
    return lambda text: tuple(kind(part) for part in text.split(","))


def pair(
    wanted: str, first: Callable[[str], Any], second: Callable[[str], Any]
) -> Callable[[str], tuple[Any, Any]]:
    """A flag's type: two values with a `_` between them, as the released code writes them."""

    def parse(text: str) -> tuple[Any, Any]:
        parts = text.split("_")
        if len(parts) != 2:
            raise argparse.ArgumentTypeError(f"must be {wanted}, got {text!r}")
        return first(parts[0]), second(parts[1])

    return parse


def milestones(text: str) -> tuple[float, ...]:
    """Points of a run in the order in which they are reached: fractions below 1, or epochs.

    They may be none.
    """
    if text == "none":
        return ()
    values = listed(positive)(text)
    if any(a >= b for a, b in itertools.pairwise(values)) or (min(values) < 1 <= max(values)):
        raise argparse.ArgumentTypeError(
            f"must be growing fractions below 1, or growing epochs, or none, got {text!r}"
        )
    return values


def spelling(find: Callable[[str], str]) -> Callable[[str], str]:
    """A flag's type: a name in any spelling that `find` knows."""

    def parse(text: str) -> str:
        try:
            return find(text)
        except Exception as error:
            known = str(error)
            raise argparse.ArgumentTypeError(known[known.index("must be") :]) from error

    return parse


def names_among(known: Collection[str]) -> Callable[[str], tuple[str, ...]]:
    """A flag's type: some of the known names, each at most once."""

    def parse(text: str) -> tuple[str, ...]:
        names = tuple(text.split(","))
        if not set(names) <= set(known) or len(set(names)) < len(names):
            raise argparse.ArgumentTypeError(
                f"must be different ones of {', '.join(known)} with commas between them, "
                f"got {text!r}"
            )
        return names

    return parse


def folder_name(text: str) -> str:
    """A name for a folder, without a way to it."""
    if text in ("", ".", "..") or Path(text).name != text:
        raise argparse.ArgumentTypeError(f"must be the name of a folder, not a path, got {text!r}")
    return text
