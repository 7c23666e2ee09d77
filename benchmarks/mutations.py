"""Checks which of many small mistakes in the package its tests notice.

    python benchmarks/mutations.py                      # the whole list; 10 to 20 minutes
    python benchmarks/mutations.py --only _lookbehind   # the mistakes in one file
    python benchmarks/mutations.py --only "dtype"       # those whose description contains this word

`mutations.toml` lists the mistakes, each a single change to the code:

    file      the module of slrla_jax that is changed
    what      what the change breaks, in a sentence
    old, new  the text to replace, which must occur exactly once, and its replacement
    tests     the ids of the tests that should notice the change, relative to tests/
    survives  only if no test can notice the change: the reason

The package and its tests are copied to a temporary folder. There all listed tests run on the
unchanged code and must pass. Then each change is made in turn, and its tests must fail. The program
fails if a change without a reason is not noticed, if a change with a reason is noticed, or if the
list no longer fits the code.
"""

import argparse
import os
import queue
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from tables import markdown

HERE = Path(__file__).parent
AT_ONCE = "at_once"  # a plugin that stops the search for smaller failing examples
NOTICED, UNNOTICED, EXPLAINED, WRONGLY_EXPLAINED, BROKEN = OUTCOMES = (
    "noticed",
    "not noticed",
    "not noticed, as explained",
    "noticed, against the explanation",
    "the tests did not run",
)


def main() -> int:
    """Runs the changes selected on the command line; returns 0 if nothing is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="text in `file` or `what` to select by"
    )
    parser.add_argument("--jobs", type=int, default=2, help="processes (default: %(default)s)")
    flags = parser.parse_args()
    listed = tomllib.loads((HERE / "mutations.toml").read_text())["changes"]
    changes = [c for c in listed if flags.only in c["file"] or flags.only in c["what"]]
    if not changes:
        sys.exit(f"No change has {flags.only!r} in its `file` or `what`.")
    outdated = [c for c in changes if occurrences(c) != 1 or c["old"] == c["new"]]
    for change in outdated:
        print(f"Does not apply: {change['file']}: {change['what']}\n{change['old']}\n")
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as work, ThreadPoolExecutor(flags.jobs) as pool:
        copies = [copied(Path(work) / str(n)) for n in range(flags.jobs)]
        named = sorted({test for c in changes for test in shlex.split(c["tests"])})
        parts = [named[n :: flags.jobs] for n in range(min(flags.jobs, len(named)))]
        for done in pool.map(run_tests, copies, parts):
            if done.returncode:
                sys.exit(f"The tests must pass on the unchanged code.\n{done.stdout}{done.stderr}")
        print(f"{len(named)} tests pass on the unchanged code, {time.monotonic() - start:.0f} s")
        outcomes = run_all(pool, copies, [c for c in changes if c not in outdated])
    print(report(outcomes, time.monotonic() - start))
    wrong = {UNNOTICED, WRONGLY_EXPLAINED, BROKEN} & {outcome for _, outcome in outcomes}
    return 1 if wrong or outdated else 0


def occurrences(change: dict[str, str]) -> int:
    """How often the text to replace occurs in the file."""
    return (HERE.parent / "slrla_jax" / change["file"]).read_text().count(change["old"])


def copied(folder: Path) -> Path:
    """Copies everything that the tests of the package need to a folder, and returns it."""
    for part in ("slrla_jax", "tests", "docs", "README.md", "pyproject.toml"):
        source, ignored = HERE.parent / part, shutil.ignore_patterns("__pycache__")
        folder.mkdir(exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, folder / part, ignore=ignored)
        else:
            shutil.copy(source, folder)
    (folder / f"{AT_ONCE}.py").write_text(
        "from hypothesis import Phase, settings\n"
        f"settings.register_profile({AT_ONCE!r}, phases=[Phase.explicit, Phase.generate])\n"
        f"settings.load_profile({AT_ONCE!r})\n"
    )
    return folder


def run_tests(folder: Path, tests: list[str]) -> subprocess.CompletedProcess[str]:
    """Runs tests on a copy, up to the first failure."""
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", AT_ONCE]
    environment = os.environ | {
        "PYTHONPATH": str(folder),
        # Within the same second, a byte-compiled file would be taken for that of the next change.
        "PYTHONDONTWRITEBYTECODE": "1",
        # No test needs a plugin, and some take a second to import.
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options, *tests],
        cwd=folder / "tests",
        env=environment,
        capture_output=True,
        text=True,
    )


def run_all(
    pool: ThreadPoolExecutor, copies: list[Path], changes: list[dict[str, str]]
) -> list[tuple[dict[str, str], str]]:
    """Runs every change and returns it with its outcome, printing each as it finishes."""
    free: queue.SimpleQueue[Path] = queue.SimpleQueue()
    for folder in copies:
        free.put(folder)

    def outcome_of(change: dict[str, str]) -> tuple[str, str]:
        folder = free.get()
        file = folder / "slrla_jax" / change["file"]
        unchanged = file.read_text()
        try:
            file.write_text(unchanged.replace(change["old"], change["new"]))
            done = run_tests(folder, shlex.split(change["tests"]))
        finally:
            file.write_text(unchanged)
            free.put(folder)
        if done.returncode not in (0, 1):
            return BROKEN, done.stdout + done.stderr
        if "survives" in change:
            return (WRONGLY_EXPLAINED if done.returncode else EXPLAINED), ""
        return (NOTICED if done.returncode else UNNOTICED), ""

    running = {pool.submit(outcome_of, change): change for change in changes}
    outcomes = []
    for n, done in enumerate(as_completed(running), start=1):
        change, (outcome, output) = running[done], done.result()
        outcomes.append((change, outcome))
        print(f"{n}/{len(changes)} {outcome}: {change['file']}: {change['what']}", flush=True)
        print(output, end="")
    return outcomes


def report(outcomes: list[tuple[dict[str, str], str]], seconds: float) -> str:
    """Formats the number of changes per outcome and file, and lists those not simply noticed."""
    files = sorted({change["file"] for change, _ in outcomes})
    seen = [outcome for outcome in OUTCOMES if outcome in {o for _, o in outcomes}]
    counts = [
        [file, *(sum(c["file"] == file and o == kind for c, o in outcomes) for kind in seen)]
        for file in files
    ]
    total = ["all", *(sum(o == kind for _, o in outcomes) for kind in seen)]
    others = [
        [change["file"], change["what"], outcome, change.get("survives", "")]
        for change, outcome in outcomes
        if outcome != NOTICED
    ]
    tables = [markdown(["", *seen], [*counts, total])]
    if others:
        tables.append(markdown(["file", "what is broken", "", "why"], others))
    return "\n\n".join(["", *tables, f"{len(outcomes)} changes in {seconds / 60:.1f} minutes"])


if __name__ == "__main__":
    sys.exit(main())
