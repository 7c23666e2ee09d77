"""Runs a program on several processes of this machine, which share each batch.

    python examples/launch.py --processes 2 main.py --dataset digits --network resnet

Each process has the devices that JAX gives it: on a machine with GPUs one of these, else the CPU.
The output is the first process's; errors of the others have their number before them.
If one fails the others are ended. many_processes.md says how to run on several machines.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from argparse import REMAINDER, Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from experiments import flags
from experiments.flags import Parser

FOLDER = Path(__file__).parent
# Seconds that the others have to end by themselves when one has failed.
GRACE = 5.0
# Seconds between two looks at the processes.
LOOK = 0.05


def make_parser() -> Parser:
    """Returns the parser of the command line."""
    parser = Parser(prog="launch.py", description="Run a program on several processes.")
    parser.add_argument(
        "--processes", type=flags.count, required=True, metavar="N", help="how many processes"
    )
    parser.add_argument("program", help="file of the program, as main.py")
    parser.add_argument("flags", nargs=REMAINDER, help="its flags")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code, the largest of those of the processes."""
    parser = make_parser()
    args = parser.parse_args(argv)
    program = next((p for p in (Path(args.program), FOLDER / args.program) if p.is_file()), None)
    if program is None:
        parser.error(f"there is no program {args.program}")
    with started(program, args) as processes:
        code, line = wait_for(processes)
    if line:
        print(f"{parser.prog}: {line}", file=sys.stderr)
    return code


class Errors:
    """What the processes print on stderr; the same line of several of them is printed once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: dict[str, int] = {}

    def pass_on(self, number: int, lines: IO[str]) -> None:
        """Prints what a process prints, with its number before each line if it is not the first."""
        for line in lines:
            with self._lock:
                if self._seen.setdefault(line, number) == number:
                    prefix = f"[{number}] " if number else ""
                    print(prefix, line, sep="", end="", file=sys.stderr, flush=True)


@contextmanager
def started(program: Path, args: Namespace) -> Iterator[list[subprocess.Popen[str]]]:
    """Starts the processes; at the end none of them is left."""
    processes: list[subprocess.Popen[str]] = []
    readers: list[threading.Thread] = []
    errors = Errors()
    address = f"127.0.0.1:{free_port()}"

    def pass_on(number: int, _: object) -> None:
        if number != signal.SIGINT:  # Ctrl-C has reached them all.
            for process in processes:
                process.send_signal(number)

    before = {n: signal.signal(n, pass_on) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        for number in range(args.processes):
            which = {"coordinator": address, "num_processes": args.processes, "process_id": number}
            process = subprocess.Popen(
                [sys.executable, str(program), *args.flags]
                + [f"--{flag}={value}" for flag, value in which.items()],
                # One GPU for each; without GPUs this says nothing.
                env={**os.environ, "JAX_LOCAL_DEVICE_IDS": str(number)},
                stdout=subprocess.DEVNULL if number else None,
                stderr=subprocess.PIPE,
                text=True,
                errors="backslashreplace",
            )
            processes.append(process)
            reader = threading.Thread(target=errors.pass_on, args=(number, process.stderr))
            reader.start()
            readers.append(reader)
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()
        for reader in readers:
            reader.join()
        for number, handler in before.items():
            signal.signal(number, handler)


def wait_for(processes: Sequence[subprocess.Popen[str]]) -> tuple[int, str]:
    """Waits until all processes have ended, or until one has failed and the others had their time.

    Returns:
      The exit code, and a line about a process that has failed alone.
    """
    codes = [process.poll() for process in processes]
    deadline = float("inf")
    first = None
    while None in codes and time.monotonic() < deadline:
        if first is None and any(codes):
            first = next(number for number, code in enumerate(codes) if code)
            # One that was killed leaves the others in the middle of a step.
            deadline = time.monotonic() + (0 if codes[first] < 0 else GRACE)
        time.sleep(LOOK)
        codes = [process.poll() for process in processes]
    if first is not None and (None in codes or codes[first] < 0):
        code = codes[first]
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
        return as_shell(code), f"process {first} {how}; the others are ended"
    return max(map(as_shell, codes)), ""


def as_shell(code: int) -> int:
    """Returns the exit code that a shell has for a process that was killed by a signal."""
    return 128 - code if code < 0 else code


def free_port() -> int:
    """Returns a port that nobody listens at."""
    with socket.socket() as any_port:
        any_port.bind(("127.0.0.1", 0))
        return any_port.getsockname()[1]


if __name__ == "__main__":
    sys.exit(main())
