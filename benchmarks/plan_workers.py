"""Plans local training for many workers over slow links, by the formulas of `cycles.py`.

    python benchmarks/plan_workers.py                                      # 1 minute
    python benchmarks/plan_workers.py --workers 16,256 --latency 0.01      # another plan
    python benchmarks/plan_workers.py --json benchmarks/results/plan_workers.json
    python benchmarks/plan_workers.py --show benchmarks/results/plan_workers.json

The tables are those of `docs/many_workers.md`: bytes, seconds of an exchange, the sync period that
they ask for, memory, and what slow workers and failures add. The last is also simulated. Sizes of
states are those of the transformations themselves (`jax.eval_shape`). `--help` says what can be
changed.
"""

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

from experiments import flags
from plan_tables import DTYPES, TABLES
from tables import markdown
from timing import circumstances


def plan(args: Namespace) -> dict[str, Any]:
    """Makes all tables, and records what they are made with."""
    settings = {k: v for k, v in vars(args).items() if k not in ("json", "show")}
    tables = {name: make(args) for name, make in TABLES.items()}
    return {**circumstances(), "settings": settings, "tables": tables}


def report(results: dict[str, Any], table: str = "") -> str:
    """Formats one table of the results, or all of them."""
    if table:
        return markdown(*results["tables"][table])
    return "\n\n".join(f"{TABLES[n].__doc__}\n\n{report(results, n)}" for n in TABLES)


def make_parser() -> flags.Parser:
    """Returns the parser of the command line."""
    parser = flags.Parser(prog="plan_workers.py", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    default = "(default: %(default)s)"
    add(
        "--workers",
        type=flags.listed(flags.number("a whole number, at least 2", lambda n: n >= 2, int)),
        default=(8, 64, 1_000, 10_000),
        metavar="LIST",
        help="how many workers, comma-separated (default: 8,64,1000,10000)",
    )
    add("--sync_period", type=flags.count, default=500, metavar="K", help=f"steps {default}")
    add(
        "--step_seconds", type=flags.positive, default=1.0, metavar="S", help=f"of a step {default}"
    )
    add("--send", choices=DTYPES, default="int8", help=f"the dtype of what is sent {default}")
    add("--mbits", type=flags.positive, default=100.0, help=f"Mbit/s of each link {default}")
    add(
        "--latency",
        type=flags.not_negative,
        default=0.05,
        metavar="S",
        help=f"of a message, which on Gloo is a round trip {default}",
    )
    add(
        "--spread",
        type=flags.not_negative,
        default=0.1,
        help=f"of the logarithm of workers' speeds {default}",
    )
    add(
        "--jitter",
        type=flags.not_negative,
        default=0.3,
        help=f"of a step's time, relative to its mean {default}",
    )
    add(
        "--failure_hours",
        type=flags.positive,
        default=1_000.0,
        metavar="H",
        help=f"between two failures of a worker {default}",
    )
    add(
        "--restart_minutes",
        type=flags.not_negative,
        default=10.0,
        metavar="MIN",
        help=f"that a worker that has failed is away {default}",
    )
    add("--cycles", type=flags.count, default=50, help=f"in a simulated run {default}")
    add(
        "--runs",
        type=flags.number("a whole number, at least 2", lambda n: n >= 2, int),
        default=10,
        help=f"that are simulated {default}",
    )
    add("--seed", type=flags.seed, default=0, help=f"of the simulation {default}")
    add("--json", type=Path, metavar="FILE", help="write the results to this file")
    add("--show", type=Path, metavar="FILE", help="print the tables of a file")
    return parser


def main() -> None:
    """Makes the plan of the command line."""
    args = make_parser().parse_args()
    if args.show:
        print(report(json.loads(args.show.read_text())))
        return
    results = plan(args)
    print(report(results))
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
