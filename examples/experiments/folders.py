"""The folder of a run, which belongs to one process at a time."""

import fcntl
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from experiments.config import SettingError

# Orbax takes these in a path for patterns, and would not find its own checkpoints.
PATTERNS = set("[]*?\\")


@contextmanager
def run_folder(root: Path, name: str | None, *, otherwise: str, resume: bool) -> Iterator[Path]:
    """Makes a folder, or takes an existing one, and keeps other processes out of it.

    A new folder into which nothing was written is removed at the end, so that it does not stand
    in the way of the next try.

    Args:
      root: the folder of all runs.
      name: of the folder inside it; None for a new one.
      otherwise: what a new one is called, with a number after it.
      resume: whether the folder may exist.

    Raises:
      SettingError: if the folder exists and is not to be resumed, if another process uses it, if
        it cannot be made, or if checkpoints in it could not be read.
    """
    path = (root / (name or otherwise)).resolve()
    if patterns := sorted(PATTERNS & set(str(path))):
        raise SettingError(
            "exp_name",
            f"{path} has {' '.join(patterns)} in it, with which checkpoints cannot be read again",
        )
    if name is None:
        numbered = (root / f"{otherwise}-{number}" for number in itertools.count(1))
        folder, is_new = next(filter(_is_made, numbered)), True
    else:  # Of what may not be looked at, or has an impossible name, mkdir says what is wrong.
        folder, is_new = root / name, not os.path.exists(root / name)
    if os.path.isfile(folder):
        raise SettingError("exp_name", f"{folder} is a file")
    if not is_new and not resume:
        raise SettingError("exp_name", f"there is a run in {folder}; --resume resumes it")
    lock = folder / ".lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = lock.open("a")
    except OSError as error:
        setting = "root" if name is None else "exp_name"
        raise SettingError(setting, f"cannot make {folder}: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise SettingError("exp_name", f"another process is using {folder}") from None
        try:
            yield folder
        finally:
            lock.unlink(missing_ok=True)
            if is_new and not any(folder.iterdir()):
                folder.rmdir()


def _is_made(folder: Path) -> bool:
    """Makes a folder and says whether it is a new one; what is wrong with others shows later."""
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        return False
    except OSError:
        pass
    return True
