"""What JAX prints from C++, which Python does not see.

JAX's distributed runtime ends a process that has lost the others from a thread of its own, with
a page on stderr and SIGABRT. Python has no say in this. So the stderr of each of several
processes goes through a small program, this file, which passes on everything but such pages, and
says in a line what they mean.
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

# What C++ prints of the other processes begins so: severity, time, thread, and file of the source.
MESSAGE = re.compile(
    r"(?P<severity>[IWEF])\d{4} [\d:.]+ +\d+ "
    r"(client\.h|coordination_service\w*\.cc|preemption_\w+\.cc):\d+\] "
)
# Such a message may have further lines.
FURTHER = re.compile(
    r"\s*$|\s*\[type\.|\s*\d+$|RPC: /|Additional GRPC error|:UNKNOWN:|Barrier result|# of tasks|"
    r"The first task at|This suggests|[A-Z_]+: Barrier|The following tasks|The tasks have crashed|"
    r"=== Source Location Trace|external/\S+:\d+$"
)
# What a page says, and what it means.
MEANINGS = {
    r"Unexpected task registered with task=(\d+)": "--process_id: the coordinator has fewer "
    "processes, and none with the number {}",
    r"request from a newer incarnation": "--process_id: another process has the same number",
    r"(\d+) unexpectedly tried to connect": "another process has come with the number {}; each "
    "needs a --process_id of its own",
    r"heartbeat": "another process is silent",
    r"Shutdown barrier": "not all processes have come to the end",
    r"Failed to send RPC to coordination service": "the first process is gone",
}
UNKNOWN = "JAX has lost another process"
# What the line of a process that has noticed it itself has in common with the line about an abort.
SAID = "cannot go on:"


@contextmanager
def no_stdout() -> Iterator[None]:
    """Keeps what C++ prints off the standard output."""
    sys.stdout.flush()
    own = os.dup(1)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        try:
            yield
        finally:
            os.dup2(own, 1)
            os.close(own)


def aborts_in_one_line(who: str) -> None:
    """Passes what this process prints on stderr through `lines`, in a program of its own.

    Args:
      who: begins the line about an abort.
    """
    read, write = os.pipe()
    subprocess.Popen([sys.executable, "-IS", __file__, who], stdin=read)
    os.dup2(write, 2)
    os.close(read)
    os.close(write)


def lines(printed: Iterable[str], who: str) -> Iterator[str]:
    """Yields what a process has printed, with a page of C++ about other processes as a line.

    Args:
      printed: the lines.
      who: begins the line about an abort. If the process has said such a line itself, that is
        enough.
    """
    page: list[str] = []
    inside = aborted = said = False
    for line in printed:
        message = MESSAGE.match(line)
        inside = message is not None or (inside and FURTHER.match(line) is not None) or aborted
        if inside:
            page.append(line)
            aborted = aborted or (message is not None and message["severity"] == "F")
        else:
            said = said or SAID in line
            yield line
    if aborted and not said:
        yield f"{who} {SAID} {meaning(''.join(page))}\n"


def meaning(page: str) -> str:
    """Returns what a page says, in a few words."""
    for pattern, words in MEANINGS.items():
        if found := re.search(pattern, page):
            return words.format(*found.groups())
    return UNKNOWN


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):  # It ends when the process has.
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.reconfigure(errors="backslashreplace")
    for line in lines(sys.stdin, sys.argv[1]):
        print(line, end="", file=sys.stderr, flush=True)
