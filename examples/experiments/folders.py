"""The folder of a run, which belongs to one process at a time."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Orbax takes these in a path for patterns, and would not find its own checkpoints.
PATTERNS = set("[]*?\\")


class FolderError(Exception):
    """A folder that cannot be had; the message says which and why."""


@contextmanager
def run_folder(folder: Path, *, resume: bool) -> Iterator[Path]:
    """Makes a folder, or takes one that is there, and keeps other processes out of it.

    A new folder that nothing was written into goes again, so that it is not in the way of the
    next try.

    Args:
      folder: where it is to be.
      resume: whether it may be there already.

    Raises:
      FolderError: if it is there and not to be resumed, if another process has it, if it cannot
        be made, or if checkpoints in it could not be read.
    """
    if patterns := sorted(PATTERNS & set(str(folder.resolve()))):
        raise FolderError(
            f"{folder.resolve()} has {' '.join(patterns)} in it, with which checkpoints cannot be "
            "read again"
        )
    if folder.exists() and not folder.is_dir():
        raise FolderError(f"{folder} is a file")
    is_new = not folder.exists()
    if not is_new and not resume:
        raise FolderError(f"there is a run in {folder}; --resume resumes it")
    lock = folder / ".lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = lock.open("a")
    except OSError as error:
        raise FolderError(f"cannot make {folder}: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise FolderError(f"another process is at work in {folder}") from None
        try:
            yield folder
        finally:
            lock.unlink(missing_ok=True)
            if is_new and not any(folder.iterdir()):
                folder.rmdir()
