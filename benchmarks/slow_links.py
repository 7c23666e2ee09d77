"""Training over links that are really slow, and what the formulas of `cycles.py` predict for it.

    python benchmarks/slow_links.py --json benchmarks/results/slow_links.json   # root; 10 min
    python benchmarks/slow_links.py --small                                     # a smoke test
    python benchmarks/slow_links.py --show benchmarks/results/slow_links.json   # the tables again

Two and four processes train with `diloco` through JAX's own runtime and Gloo, each behind a link
of its own that the kernel holds to a rate (`star.py`). What they send is counted by the devices of
their links, headers included. Gradients cost nothing; a pause in each step stands for them.

A prediction knows the rates, the latency, the pauses, the number of workers and the bytes of the
params, and nothing that was measured.
"""

import itertools
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from cycles import Setting, exchange_seconds, ring_bytes, slowest_by_jitter
from experiments import flags
from star import MTU, Star, address
from tables import markdown
from timing import circumstances, heading

WORKER = Path(__file__).with_name("slow_link_worker.py")
PORT = 12345
# Of a full packet, 52 bytes are the headers of TCP (with time stamps) and IP; Ethernet's are 14.
# A receiver acknowledges every second packet.
HEADERS, ETHERNET = 52, 14
WIRE = (MTU + ETHERNET + (HEADERS + ETHERNET) / 2) / (MTU - HEADERS)
MEGA = 1e6
# With Gloo a message waits for the receiver's word that it is ready: there and back.
LATENCIES_PER_MESSAGE = 2


@dataclass(frozen=True)
class Case:
    """One measurement.

    Attributes:
      table: in which it stands.
      title: what it is, where the table does not say so otherwise.
      rates: bits per second of each worker's link; None for no limit.
      latency: seconds from one worker to another.
      pauses: mean seconds that each worker pauses in a step.
      jitter: the standard deviation of these, relative to the mean; as in `cycles.Setting`.
      parameters: the number of params.
      arrays: into how many equal arrays they are divided.
      send: the dtype of what is sent.
      sync_period: steps in a cycle.
      data_parallel: whether gradients are averaged at every step instead.
    """

    table: str
    title: str
    rates: tuple[float | None, ...]
    latency: float = 0.0
    pauses: tuple[float, ...] = ()
    jitter: float = 0.0
    parameters: int = 500_000
    arrays: int = 1
    send: str = "float32"
    sync_period: int = 2
    data_parallel: bool = False

    @property
    def workers(self) -> int:
        """How many there are."""
        return len(self.rates)

    @property
    def is_fast(self) -> bool:
        """Whether its links need packets in bundles; see `Star`."""
        return all(rate is None or rate >= 1e9 for rate in self.rates)


def cases(small: bool) -> Iterator[Case]:
    """All measurements, the ones of the same processes one after the other."""
    if small:
        yield Case("rates", "", (None,) * 2, parameters=10_000)
        yield Case("rates", "", (20 * MEGA,) * 2, parameters=10_000)
        return
    for workers in (2, 4):
        for rate, parameters in itertools.product(
            (None, 1e9, 1e8, 2e7, 5e6), (100_000, 500_000, 2_000_000)
        ):
            if parameters < 2_000_000 or rate is None or rate > 5e6:
                yield Case("rates", "", (rate,) * workers, parameters=parameters)
        for send in ("float32", "bfloat16", "int8"):
            yield Case("dtypes", "", (20 * MEGA,) * workers, send=send)
    yield from _cycles()
    for latency, workers in itertools.product((0.01, 0.05), (2, 4)):
        for arrays in (1, 8):
            yield Case("latencies", "", (20 * MEGA,) * workers, latency, arrays=arrays)


def _cycles() -> Iterator[Case]:
    """Whole cycles of four workers, also with a slow worker, chance, and a slow link."""
    rates, pauses = (20 * MEGA,) * 4, (0.02,) * 4
    parallel = Case(
        "cycles",
        "data parallel",
        rates,
        pauses=pauses,
        parameters=100_000,
        sync_period=10,
        data_parallel=True,
    )
    local = replace(parallel, title="local", data_parallel=False)
    yield parallel
    yield local
    yield replace(local, sync_period=50)
    slow_worker = (*pauses[1:], 0.05)
    yield replace(parallel, title="data parallel, one slow worker", pauses=slow_worker)
    yield replace(local, title="local, one slow worker", pauses=slow_worker)
    yield replace(parallel, title="data parallel, jitter", pauses=4 * (0.05,), jitter=0.5)
    yield replace(local, title="local, jitter", pauses=4 * (0.05,), jitter=0.5)
    slow_link = (*rates[1:], 5 * MEGA)
    yield replace(parallel, title="data parallel, one slow link", rates=slow_link)
    yield replace(local, title="local, one slow link", rates=slow_link)


def predicted_bytes(case: Case) -> float:
    """The bytes that a worker's link sends in a cycle, headers included."""
    averages = case.sync_period if case.data_parallel else 1
    size = case.parameters * jnp.dtype(case.send).itemsize
    return averages * WIRE * ring_bytes(case.workers, size)


def predicted_seconds(case: Case) -> float:
    """The time of a cycle: of the sync alone, where workers do not pause."""
    rate = min(rate or math.inf for rate in case.rates)
    setting = Setting(
        workers=case.workers,
        sync_period=1 if case.data_parallel else case.sync_period,
        step_seconds=max(case.pauses, default=0.0),
        sent_bytes=WIRE * case.parameters * jnp.dtype(case.send).itemsize,
        bits_per_second=rate,
        latency=LATENCIES_PER_MESSAGE * case.latency,
        arrays=case.arrays,
    )
    late = slowest_by_jitter(case.workers, case.jitter, setting.sync_period)
    cycle = setting.sync_period * setting.step_seconds * late + exchange_seconds(setting)
    return cycle * case.sync_period / setting.sync_period


def measure(repeats: int, small: bool) -> dict[str, Any]:
    """Takes all measurements, and records the conditions."""
    about = circumstances()
    found = []
    for (workers, latency, is_fast), group in itertools.groupby(
        cases(small), lambda case: (case.workers, case.latency, case.is_fast)
    ):
        commands = [
            [sys.executable, str(WORKER), f"{address(0)}:{PORT}", str(workers), str(number)]
            for number in range(workers)
        ]
        with Star(commands, latency, bundles=is_fast) as star:
            for case in group:
                found.append(asdict(case) | work(star, case, repeats))
                print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return {**about, "repeats": repeats, "small": small, "cases": found}


def work(star: Star, case: Case, repeats: int) -> dict[str, Any]:
    """Has all processes do a case; returns what they have measured, by worker and cycle."""
    for number, rate in enumerate(case.rates):
        star.limit(number, rate)
    job = asdict(case) | {"cycles": repeats, "pauses": case.pauses or [0.0] * case.workers}
    for process in star.processes:
        process.stdin.write(json.dumps(job) + "\n")
        process.stdin.flush()
    lines = [process.stdout.readline() for process in star.processes]
    if not all(lines):
        raise SystemExit(f"slow_links.py: a process has ended in {case}")
    answers = [json.loads(line) for line in lines]
    return {name: [answer[name] for answer in answers] for name in answers[0]}


def report(results: dict[str, Any], table: str = "") -> str:
    """Formats one table of the results, or the conditions, or without a name all of it."""
    conditions = f"{heading(results)} Medians of {results['repeats']} cycles."
    if table:
        return TABLES[table](of_table(results, table)) if table in TABLES else conditions
    parts = [conditions]
    if results["small"]:
        parts.append("**The params are tiny: these are not measurements.**")
    tables = {name: of_table(results, name) for name in TABLES}
    return "\n\n".join(parts + [TABLES[name](rows) for name, rows in tables.items() if rows])


def of_table(results: dict[str, Any], table: str) -> list[tuple[Case, dict[str, Any]]]:
    """The cases of a table, and what was measured."""
    rows = []
    for found in results["cases"]:
        if found["table"] == table:
            fields = {name: found[name] for name in Case.__dataclass_fields__}
            fields["rates"] = tuple(fields["rates"])
            rows.append((Case(**fields), found))
    return rows


def rates_table(rows: list[tuple[Case, dict[str, Any]]]) -> str:
    """A sync by the rate of the links."""
    header = ["workers", "parameters", "Mbit/s", *MEASURED]
    lines = [
        [case.workers, f"{case.parameters:,}", mbits(case.rates[0]), *cells(case, found, "sync")]
        for case, found in rows
    ]
    return markdown(header, lines)


def dtypes_table(rows: list[tuple[Case, dict[str, Any]]]) -> str:
    """A sync by the dtype of what is sent."""
    lines = [[case.workers, case.send, *cells(case, found, "sync")] for case, found in rows]
    return markdown(["workers", "sent in", *MEASURED], lines)


def latencies_table(rows: list[tuple[Case, dict[str, Any]]]) -> str:
    """A sync by the latency of the links and the number of arrays."""
    lines = [
        [case.workers, f"{1e3 * case.latency:.0f}", case.arrays, *cells(case, found, "sync")]
        for case, found in rows
    ]
    return markdown(["workers", "latency, ms", "arrays", *MEASURED], lines)


def cycles_table(rows: list[tuple[Case, dict[str, Any]]]) -> str:
    """Whole cycles of steps that take time."""
    lines = [[case.title, case.sync_period, *cells(case, found, "cycle")] for case, found in rows]
    return markdown(["", "steps", *MEASURED], lines)


MEASURED = ["MB sent", "predicted", "error", "seconds", "predicted", "error"]
TABLES = {
    "rates": rates_table,
    "dtypes": dtypes_table,
    "cycles": cycles_table,
    "latencies": latencies_table,
}


def measured(
    case: Case, found: dict[str, Any], name: str
) -> tuple[tuple[float, float], tuple[float, float]]:
    """The bytes that a worker sends in a cycle, and seconds, each with what is predicted.

    Each is the median over the cycles; of the workers it is the mean of the bytes, and the longest
    time.
    """
    sent = float(np.median(np.mean(found["bytes"], axis=0)))
    seconds = float(np.median(np.max(found[name], axis=0)))
    return (sent, predicted_bytes(case)), (seconds, predicted_seconds(case))


def cells(case: Case, found: dict[str, Any], name: str) -> list[str]:
    """Formats what was measured."""
    (sent, wanted), seconds = measured(case, found, name)
    return [*compared(sent / MEGA, wanted / MEGA), *compared(*seconds)]


def compared(have: float, predicted: float) -> list[str]:
    """Formats a number, its prediction, and the error of that in percent."""
    if predicted == 0:
        return [f"{have:.3g}", "–", "–"]
    error = round(100 * (predicted / have - 1))
    sign = "−" if error < 0 else "+" * (error > 0)
    return [f"{have:.3g}", f"{predicted:.3g}", f"{sign}{abs(error)} %"]


def mbits(rate: float | None) -> str:
    """Formats a rate."""
    return "no limit" if rate is None else f"{rate / MEGA:,.0f}"


def main() -> None:
    """Runs the benchmark with the settings of the command line."""
    parser = flags.Parser(prog="slow_links.py", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--repeats", type=flags.count, help="cycles of each (default: 5, 1 with --small)")
    add("--small", action="store_true", help="two workers, as a smoke test")
    add("--json", type=Path, metavar="FILE", help="write the results to this file")
    add("--show", type=Path, metavar="FILE", help="print the tables of a file")
    args = parser.parse_args()
    if args.show:
        print(report(json.loads(args.show.read_text())))
        return
    try:
        results = measure(args.repeats or (1 if args.small else 5), args.small)
    except OSError as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    print(report(results))
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
