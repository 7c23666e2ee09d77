"""Programs on several processes, forked from one that has imported everything.

A process that starts from nothing imports for seconds; that has nothing to do with what is tested.
"""

import atexit
import multiprocessing
import os
import sys
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from unittest import mock

import launch

EXAMPLES = Path(launch.__file__).parent
HERE = Path(__file__).parent
IMPORTED = ["batchnorm_program", "compare", "main", "sklearn.datasets"]
PATH = [str(EXAMPLES), str(EXAMPLES.parent), str(HERE)]
# Each process has one device and one thread for it, and compiles what is soon over.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false --xla_backend_optimization_level=0",
}
SECONDS = 200

context = multiprocessing.get_context("forkserver")


class Forked:
    """A program in a process of its own.

    Attributes:
      process: the process.
    """

    def __init__(self, folder, program, flags, variables):
        readers, writers = zip(*(context.Pipe(duplex=False) for _ in range(2)), strict=True)
        self._readers = readers
        self.process = context.Process(
            target=_run, args=(folder, program, flags, variables, writers)
        )
        self.process.start()
        for writer in writers:
            writer.close()

    def end(self):
        """Waits until it has ended; returns exit code, stdout and stderr."""
        printed = [_everything(reader) for reader in self._readers]
        self.process.join(SECONDS)
        return self.process.exitcode, *printed


@contextmanager
def fork(folder, flags, places, program="batchnorm_program", **variables):
    """Starts a program on several processes, as on as many hosts; at the end none of them is left.

    Args:
      folder: where they run.
      flags: what all are given.
      places: how many there are; or what each is told of its number and their number.
      program: a module with a function `main` of flags.
      variables: of their environment.
    """
    coordinator = f"localhost:{launch.free_port()}"
    if isinstance(places, int):
        places = [(number, places) for number in range(places)]
    path = os.pathsep.join([*PATH, os.environ.get("PYTHONPATH", "")])
    started = []
    try:
        with mock.patch.dict(os.environ, {**ENVIRONMENT, "PYTHONPATH": path}):
            context.set_forkserver_preload(IMPORTED)
            for number, count in places:
                which = f"--coordinator {coordinator} --num_processes {count} --process_id {number}"
                own = f"{flags} {which if len(places) > 1 else ''}".split()
                started.append(Forked(folder, program, own, variables))
        yield started
    finally:
        for forked in started:
            forked.process.kill()
            forked.process.join()


def on_forked(*given, **options):
    """Runs a program on some processes; returns exit code, stdout and stderr of each."""
    with fork(*given, **options) as started:
        return [forked.end() for forked in started]


def _run(folder, program, flags, variables, writers):
    os.chdir(folder)
    os.environ.update(ENVIRONMENT | variables)
    for own, writer in zip((1, 2), writers, strict=True):
        os.dup2(writer.fileno(), own)
        writer.close()
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.argv = [f"{program}.py", *flags]
    code = import_module(program).main(flags)
    sys.stdout.flush()
    atexit._run_exitfuncs()  # A process of `multiprocessing` does not; JAX waits for the others.
    sys.exit(code)


def _everything(reader):
    with open(os.dup(reader.fileno()), "rb") as file:
        return file.read().decode()
