"""Names in any spelling: upper and lower case, hyphens and underscores make no difference."""

from collections.abc import Iterable, Mapping


def find(name: str, known: Iterable[str], aliases: Mapping[str, str] | None = None) -> str:
    """Returns a name as it is known.

    Args:
      name: in any spelling.
      known: the names.
      aliases: other names for some of them.

    Raises:
      ValueError: if it is none of these.
    """
    known = list(known)
    spellings = {_letters(key): key for key in known}
    spellings |= {_letters(alias): key for alias, key in (aliases or {}).items()}
    if _letters(name) not in spellings:
        raise ValueError(f"must be one of {', '.join(known)}, got {name!r}")
    return spellings[_letters(name)]


def _letters(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")
