"""Folders that may be missing or unreadable, packages that may be missing, errors in one line."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .dataset import DataError


def root_of(folder: Path | None) -> Path:
    """The folder in which data sets are looked for: by default TensorFlow Datasets' own.

    Raises:
      DataError: if a folder is given that does not exist or may not be read.
    """
    if folder is None:
        return Path(os.environ.get("TFDS_DATA_DIR", Path.home() / "tensorflow_datasets"))
    names_in(folder)
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}")
    return folder


def names_in(folder: Path) -> set[str]:
    """Names of the files and folders in a folder, none if it does not exist.

    Raises:
      DataError: if it may not be read, which `Path.glob` would pass over in silence.
    """
    try:
        return set(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return set()
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {_reason(error)}") from error


@contextmanager
def errors_as(what: str) -> Iterator[None]:
    """Turns an exception of any type into a `DataError` of one line that begins with `what`."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{what}: {_reason(error)}") from error


@contextmanager
def imports(what: str, extra: str) -> Iterator[None]:
    """Turns a failed import into a `DataError` that names the extra with the package."""
    try:
        yield
    except ImportError as error:
        package = error.name or error
        raise DataError(f"{what} needs {package}: pip install -e '.[{extra}]'") from error


def _reason(error: Exception) -> str:
    """One line on an error, without the path that Python adds to those of the system."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return next(iter(str(error).splitlines()), type(error).__name__)
