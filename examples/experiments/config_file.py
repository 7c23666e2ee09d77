"""Settings in a JSON file, in which names are nested, and flags that override them.

A program lists what may be in the file:

    ENTRIES = [Entry("learning_rate", "optimizer.args.lr", float, flags.positive, ("--lr",))]

The same list makes the flags, so that a value is checked alike wherever it comes from.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.config import SettingError
from experiments.flags import Parser

KINDS = {str: "a string", int: "a whole number", float: "a number"}


@dataclass(frozen=True)
class Entry:
    """What may be in a file, and on the command line.

    Attributes:
      setting: what it sets: the destination of its flags.
      path: its place in the file, the names on the way to it joined by dots.
      kind: of the value in JSON: `str`, `int` or `float`.
      parse: returns the setting from text, as a flag's type does.
      flags: by which it is overridden, in all their spellings.
      help: what the flags are for.
      metavar: what stands for the value in the help.
    """

    setting: str
    path: str
    kind: type
    parse: Callable[[str], Any]
    flags: tuple[str, ...] = ()
    help: str = ""
    metavar: str = "N"


def add_entries(parser: Parser, title: str, entries: Sequence[Entry]) -> None:
    """Adds the flags of entries, which have no default: the file has it."""
    add = parser.add_argument_group(title).add_argument
    for entry in entries:
        if entry.flags:
            add(
                *entry.flags,
                dest=entry.setting,
                type=entry.parse,
                default=argparse.SUPPRESS,
                help=entry.help,
                metavar=entry.metavar,
            )


def read(path: Path, entries: Sequence[Entry]) -> dict[str, Any]:
    """Returns the settings in a file.

    Raises:
      SettingError: if it cannot be read, is not JSON, or has an entry that is not among these, or
        one with another kind of value; the message names the entry.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_doubles)
    except OSError as error:
        raise _error(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise _error(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise _error(f"{path} must have an object with entries, got {content!r}")
    known = {entry.path: entry for entry in entries}
    return dict(_settings(path, content, known))


def _settings(
    path: Path, content: dict[str, Any], known: dict[str, Entry], above: str = ""
) -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        place = f"{above}{name}"
        entry = known.get(place)
        if entry is not None:
            yield entry.setting, _value(path, entry, value)
        elif not any(other.startswith(f"{place}.") for other in known):
            inside = sorted(
                {
                    other.removeprefix(above).partition(".")[0]
                    for other in known
                    if other.startswith(above)
                }
            )
            raise _error(f"{path}: {place} is unknown, here are {', '.join(inside)}")
        elif not isinstance(value, dict):
            raise _error(f"{path}: {place} must be an object, got {json.dumps(value)}")
        else:
            yield from _settings(path, value, known, f"{place}.")


def _value(path: Path, entry: Entry, value: Any) -> Any:
    kinds = (int, float) if entry.kind is float else entry.kind
    if not isinstance(value, kinds) or isinstance(value, bool):
        got = json.dumps(value)
        raise _error(f"{path}: {entry.path} must be {KINDS[entry.kind]}, got {got}")
    try:
        return entry.parse(str(value))
    except argparse.ArgumentTypeError as error:
        raise _error(f"{path}: {entry.path} {error}") from error


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name!r} is there twice")
    return dict(pairs)


def _error(message: str) -> SettingError:
    return SettingError("-c", message)
