"""One run on several processes, each with devices of its own: by JAX's distributed runtime.

All processes run the same program on the same settings. They share each batch, and what they
compute from it is equal on all of them; the first one, the writer, writes folders, records and
pictures, and prints.
"""

import math
import os
import socket
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from experiments import flags, native_output, writes
from experiments.checkpoints import CheckpointError
from experiments.config import SettingError
from experiments.flags import Parser

# Seconds in which the processes must find each other, unless others are given: as in JAX.
CONNECT_WITHIN = 300
# Seconds after which the others give up a process that is silent. Its signs of life come from a
# thread of C++, which no step, compilation or slow data holds up.
SILENCE = 30
# Seconds that processes at their end wait for the others.
ENDING = 300
# Seconds between two looks at whether the first process is there.
LOOK = 0.2
# A process whose flags are wrong exits with this code.
WRONG = 2
LONGEST_PATH = 4096
# Errors after which all processes end.
_known_to_all: list[BaseException] = []


class Elsewhere(Exception):
    """Another process has failed, and says why."""


def add_processes(parser: Parser) -> None:
    """Adds the flags of the programs that run on several processes; see many_processes.md."""
    add = parser.add_argument_group(
        "several processes, each with devices of its own, that share each batch"
    ).add_argument
    add(
        "--coordinator",
        type=flags.address,
        metavar="HOST:PORT",
        help="where the first process is, with a port that is free there",
    )
    add("--num_processes", type=flags.count, metavar="N", help="how many there are")
    add("--process_id", type=flags.place, metavar="I", help="which of them this is, from 0")
    add(
        "--distributed",
        action="store_true",
        help="find out what of these is not given, under SLURM, Open MPI or Kubernetes and on "
        "TPU pods",
    )
    add(
        "--connect_within",
        type=flags.positive,
        default=CONNECT_WITHIN,
        metavar="SECONDS",
        help="give up if the processes have not found each other by then (default: %(default)s)",
    )


def join(args: Namespace) -> None:
    """Joins the other processes that the flags of `add_processes` name, if there are any.

    Raises:
      SettingError: as `processes.start` does.
    """
    if "coordinator" in args:
        start(
            args.coordinator,
            args.num_processes,
            args.process_id,
            detect=args.distributed,
            within=args.connect_within,
        )


def start(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    *,
    detect: bool,
    within: float = CONNECT_WITHIN,
) -> None:
    """Joins the other processes, before JAX is used; does nothing where there are none.

    Args:
      coordinator: host and port of the first process, joined by a colon.
      num_processes: how many there are.
      process_id: which of them this is, from 0.
      detect: whether what is not given is found out from the environment, as JAX does for SLURM,
        Open MPI, Kubernetes and TPU pods.
      within: seconds in which all must be there.

    Raises:
      SettingError: if one of these is missing or impossible, or the port is taken.
      SystemExit: if the others are not there in time.
    """
    given = {
        "coordinator": coordinator,
        "num_processes": num_processes,
        "process_id": process_id,
    }
    missing = [name for name, value in given.items() if value is None]
    if not detect and len(missing) == len(given):
        return
    if not detect and missing:
        raise SettingError(missing[0], "must be given with the other two, or --distributed")
    if None not in (num_processes, process_id) and not process_id < num_processes:
        raise SettingError(
            "process_id", f"must be below the {num_processes} processes, got {process_id}"
        )
    if coordinator is not None and process_id == 0:
        _check_port(coordinator)
    there = threading.Event()
    waiting = coordinator, num_processes, process_id, within, there
    threading.Thread(target=_wait_or_give_up, args=waiting, daemon=True).start()
    native_output.aborts_in_one_line(f"{_program()}: {_which(process_id, num_processes)}")
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            cluster_detection_method=None if detect else "deactivate",
            # JAX ends a process that has waited in vain with a page of C++; the timer is earlier.
            initialization_timeout=math.ceil(within) + SILENCE,
            heartbeat_timeout_seconds=SILENCE,
            shutdown_timeout_seconds=ENDING,
        )
    except ValueError as error:  # JAX has found nothing.
        raise SettingError(
            "distributed",
            "finds no SLURM, Open MPI, Kubernetes or TPU pod here; --coordinator, "
            "--num_processes and --process_id say what it would",
        ) from error
    finally:
        there.set()
    writes.on_failure(end_if_alone)
    # A precaution: on CPU JAX may run programs at once, whose messages Gloo would not tell apart.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    with native_output.no_stdout():  # Gloo prints that it is connected.
        told = multihost_utils.process_allgather(np.asarray(num_processes or count())).ravel()
    with together():
        if (told != count()).any():
            other = int((told != count()).argmax())
            raise SettingError(
                "num_processes",
                f"must be {count()} as in the first process, got {told[other]} in process {other}",
            )


def count() -> int:
    """Returns how many processes there are."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def index() -> int:
    """Returns which of the processes this is, from 0."""
    return jax.process_index() if jax.distributed.is_initialized() else 0


def share() -> tuple[int, int]:
    """Returns which of how many equal parts of a batch this process has."""
    return index(), count()


def is_writer() -> bool:
    """Says whether this process is the one that writes and prints."""
    return index() == 0


@contextmanager
def together() -> Iterator[None]:
    """Goes on when all processes have come to the end of it, and in none if one has failed.

    Raises:
      Elsewhere: where another process has failed; of several, the first one says why.
    """
    if count() == 1:
        yield
        return
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    # What has failed elsewhere is told there.
    own = failure is not None and not isinstance(failure, Elsewhere)
    failed = multihost_utils.process_allgather(np.asarray(own)).ravel()
    if failed.any():
        known = failure if own and failed.argmax() == index() else Elsewhere()
        _known_to_all.append(known)
        raise known from failure


def leave(error: BaseException, code: int) -> None:
    """Ends this process at once if the others do not know that it has failed.

    JAX would wait for them, which wait for this one.
    """
    if count() > 1 and error not in _known_to_all:
        sys.stderr.flush()
        os._exit(code)


def end_if_alone(error: Exception) -> None:
    """Ends this process with a line if it cannot save a checkpoint, or has lost the others.

    Orbax would wait for them, with which it saves checkpoints.
    """
    lost = isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in str(error)
    if count() > 1 and (lost or isinstance(error, CheckpointError)):
        reason = str(error).partition("\n")[0]
        _end(1, f"{_which(index(), count())} {native_output.SAID} {reason}")


@contextmanager
def folder_of_all(folder: AbstractContextManager[Path]) -> Iterator[Path]:
    """Gives all processes the folder that the writer makes.

    Raises:
      SettingError: as the making of it does, or if a process does not see it.
    """
    if count() == 1:
        with folder as path:
            yield path
        return
    name = np.zeros(LONGEST_PATH, np.uint8)
    with ExitStack() as stack:
        with together():
            if is_writer():
                encoded = os.fsencode(stack.enter_context(folder).resolve())
                name[: len(encoded)] = np.frombuffer(encoded, np.uint8)
        name = np.asarray(multihost_utils.broadcast_one_to_all(name), np.uint8)
        path = Path(os.fsdecode(name.tobytes().rstrip(b"\0")))
        with together():
            if not path.is_dir():
                raise SettingError(
                    "root",
                    f"process {index()} of {count()} does not see {path}; all need a file system "
                    "that they share",
                )
        yield path


def _check_port(coordinator: str) -> None:
    """Raises SettingError if the first process cannot have its port, at which JAX would crash."""
    port = int(coordinator.rpartition(":")[2])
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        socket.create_server(("", port), family=family, dualstack_ipv6=both).close()
    except OSError as error:
        raise SettingError(
            "coordinator", f"cannot have port {port} here: {os.strerror(error.errno)}"
        ) from error


def _wait_or_give_up(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    within: float,
    there: threading.Event,
) -> None:
    """Waits until the others are there; if they do not come, ends the process with a line."""
    deadline = time.monotonic() + within
    answered = coordinator is None or process_id == 0
    while not answered and time.monotonic() < deadline:
        answered = _answers(coordinator)
        there.wait(LOOK)
    if there.wait(deadline - time.monotonic()):
        return
    if coordinator is None:
        line = "--distributed: the processes have not found each other"
    elif not answered:
        line = f"--coordinator: nothing answers at {coordinator}"
    else:
        line = f"--num_processes: not all {num_processes} have come to {coordinator}"
    _end(WRONG, f"error: {line} within {within:g} seconds")


def _end(code: int, line: str) -> NoReturn:
    """Prints a line and ends the process, also where another thread of it waits inside of JAX."""
    os.write(2, f"{_program()}: {line}\n".encode())
    os._exit(code)


def _program() -> str:
    return Path(sys.argv[0]).name


def _which(process_id: int | None, num_processes: int | None) -> str:
    known = None not in (process_id, num_processes)
    return f"process {process_id} of {num_processes}" if known else "this process"


def _answers(coordinator: str) -> bool:
    host, _, port = coordinator.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=1).close()
    except OSError:
        return False
    return True
