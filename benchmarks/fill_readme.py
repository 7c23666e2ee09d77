"""Writes the tables of `results/` into pages, between the marks that name their files.

    python benchmarks/fill_readme.py

A table stands between `<!-- results/NAME.json -->` and `<!-- end -->`. Pages outside of this folder
name the file by its path from there. Of `update.json` they get the ratios of times alone, and of
results about many workers the table that is named after a `#`.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import augment
import compile_ahead
import faults
import lookbehind
import plan_workers
import slow_links
import update

HERE = Path(__file__).parent
COMPLETE = ("benchmarks/README.md", "docs/many_workers.md", "examples/many_processes.md")
SUMMARISED = ("README.md", "docs/comparison.md")
PROGRAMS = {
    "augment": augment,
    "compile_ahead": compile_ahead,
    "faults": faults,
    "lookbehind": lookbehind,
    "plan_workers": plan_workers,
    "slow_links": slow_links,
    "update": update,
}


def main() -> None:
    """Replaces the text between every pair of marks."""
    for page in COMPLETE:
        rewrite(HERE.parent / page, tables)
    for page in SUMMARISED:
        rewrite(HERE.parent / page, update.summary)


def rewrite(page: Path, text_of: Callable[..., str]) -> None:
    """Replaces the text between the marks of a page by that of the results that they name."""

    def fill(marks: re.Match[str]) -> str:
        file = page.parent / marks[1]
        if not file.exists():
            print(f"{marks[1]} does not exist yet.")
            return marks[0]
        results = json.loads(file.read_text())
        text = text_of(results, marks[2]) if marks[2] else text_of(results)
        return f"{marks[0].splitlines()[0]}\n\n{text}\n\n<!-- end -->"

    marks = r"<!-- (\S+\.json)(?:#(\w+))? -->\n.*?<!-- end -->"
    page.write_text(re.sub(marks, fill, page.read_text(), flags=re.S))


def tables(results: dict[str, Any], *table: str) -> str:
    """All tables of some results, or the named one."""
    program = re.match(r"python benchmarks/(\w+).py", results["command"])[1]
    return PROGRAMS[program].report(results, *table)


if __name__ == "__main__":
    main()
