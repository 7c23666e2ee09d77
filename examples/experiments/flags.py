"""The types of command-line flags, and a parser whose errors are one line."""

import argparse
import io
import itertools
import math
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NoReturn

from experiments import names


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, for programs that print to any terminal.

    Attributes:
      flags_of: the flags of settings that are given by a flag with another name.
    """

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.flags_of: dict[str, str] = {}

    def parse_args(self, *args: Any, **options: Any) -> Any:
        """Reads the command line, after `escape_what_cannot_be_encoded`."""
        escape_what_cannot_be_encoded()
        return super().parse_args(*args, **options)

    def flag_of(self, setting: str) -> str:
        """Returns the flag that a setting is given by, or its name if there is no flag for it."""
        flags = (a.option_strings[0] for a in self._actions if a.dest == setting)
        return self.flags_of.get(setting) or next(flags, setting)

    def error(self, message: str) -> NoReturn:
        """Prints what is wrong and exits with 2."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def escape_what_cannot_be_encoded() -> None:
    """Makes the streams print escapes for characters that the terminal's encoding lacks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def number(wanted: str, holds: Callable[[Any], bool], kind: type = float) -> Callable[[str], Any]:
    """Returns a flag's type: numbers for which `holds`, described by `wanted`."""

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
seed = number("a whole number from 0 to 2147483647", lambda n: 0 <= n < 2**31, int)
place = number("a whole number from 0", lambda n: n >= 0, int)
positive = number("a positive number", lambda x: 0 < x < math.inf)
not_negative = number("0 or more", lambda x: 0 <= x < math.inf)
fraction = number("at least 0 and below 1", lambda x: 0 <= x < 1)
step_size = number("more than 0 and at most 1", lambda x: 0 < x <= 1)


def switch(text: str) -> bool:
    """Parses true or false."""
    if text not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"must be true or false, got {text!r}")
    return text == "true"


def optional(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """Returns a flag's type: a value of a kind, or none."""
    return lambda text: None if text == "none" else kind(text)


def listed(kind: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    """Returns a flag's type: comma-separated values of a kind."""
    return lambda text: tuple(kind(part) for part in text.split(","))


def different(kind: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    """Returns a flag's type: comma-separated numbers of a kind that look different in a table."""

    def parse(text: str) -> tuple[Any, ...]:
        values = listed(kind)(text)
        if len({f"{value:g}" for value in values}) < len(values):
            raise argparse.ArgumentTypeError(f"must be different numbers, got {text!r}")
        return values

    return parse


def pair(
    wanted: str, first: Callable[[str], Any], second: Callable[[str], Any]
) -> Callable[[str], tuple[Any, Any]]:
    """Returns a flag's type: two values joined by `_`, as in the released code."""

    def parse(text: str) -> tuple[Any, Any]:
        parts = text.split("_")
        if len(parts) != 2:
            raise argparse.ArgumentTypeError(f"must be {wanted}, got {text!r}")
        return first(parts[0]), second(parts[1])

    return parse


def layers(text: str) -> tuple[tuple[int, float], ...]:
    """Parses layers of Lookahead, the inner one first: comma-separated pairs k_α."""
    return listed(pair("k_α", count, step_size))(text)


def milestones(text: str) -> tuple[float, ...]:
    """Parses points of a run in increasing order: fractions below 1, or epochs; or none."""
    if text == "none":
        return ()
    values = listed(positive)(text)
    if any(a >= b for a, b in itertools.pairwise(values)) or (min(values) < 1 <= max(values)):
        raise argparse.ArgumentTypeError(
            f"must be increasing fractions below 1, or increasing epochs, or none, got {text!r}"
        )
    return values


def spelling(
    known: Collection[str], aliases: Mapping[str, str] | None = None
) -> Callable[[str], str]:
    """Returns a flag's type: one of the known names, in any spelling."""

    def parse(text: str) -> str:
        try:
            return names.find(text, known, aliases)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return parse


def names_among(known: Collection[str]) -> Callable[[str], tuple[str, ...]]:
    """Returns a flag's type: comma-separated known names, each at most once."""

    def parse(text: str) -> tuple[str, ...]:
        chosen = tuple(text.split(","))
        if not set(chosen) <= set(known) or len(set(chosen)) < len(chosen):
            raise argparse.ArgumentTypeError(
                f"must be different names among {', '.join(known)}, comma-separated, got {text!r}"
            )
        return chosen

    return parse


def address(text: str) -> str:
    """Parses a host and a port."""
    host, colon, port = text.rpartition(":")
    if not (host and colon and port.isdecimal() and 0 < int(port) < 2**16):
        raise argparse.ArgumentTypeError(f"must be HOST:PORT, got {text!r}")
    return text


def folder_name(text: str) -> str:
    """Parses the name of a folder, which may not be a path."""
    if text in ("", ".", "..") or Path(text).name != text:
        raise argparse.ArgumentTypeError(f"must be the name of a folder, not a path, got {text!r}")
    return text
