"""Writes the tables of `results/` into pages, between the marks that name their files.

    python benchmarks/fill_readme.py

A table stands between `<!-- results/NAME.json -->` and `<!-- end -->`. Pages outside of this folder
name a file by its path from there. Some get of `update.json` its ratios of times alone.
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
import update

HERE = Path(__file__).parent
COMPLETE = ("benchmarks/README.md", "examples/many_processes.md")
SUMMARISED = ("README.md", "docs/comparison.md")
PROGRAMS = {
    "augment": augment,
    "compile_ahead": compile_ahead,
    "faults": faults,
    "lookbehind": lookbehind,
    "update": update,
}


def main() -> None:
    """Replaces the text between every pair of marks."""
    for page in COMPLETE:
        rewrite(HERE.parent / page, tables)
    for page in SUMMARISED:
        rewrite(HERE.parent / page, update.summary)


def rewrite(page: Path, text_of: Callable[[dict[str, Any]], str]) -> None:
    """Replaces the text between the marks of a page by that of the results that they name."""

    def fill(marks: re.Match[str]) -> str:
        file = page.parent / marks[1]
        if not file.exists():
            print(f"{marks[1]} does not exist yet.")
            return marks[0]
        results = json.loads(file.read_text())
        return f"<!-- {marks[1]} -->\n\n{text_of(results)}\n\n<!-- end -->"

    marks = r"<!-- (\S+\.json) -->\n.*?<!-- end -->"
    page.write_text(re.sub(marks, fill, page.read_text(), flags=re.S))


def tables(results: dict[str, Any]) -> str:
    """All tables of some results."""
    program = re.match(r"python benchmarks/(\w+).py", results["command"])[1]
    return PROGRAMS[program].report(results)


if __name__ == "__main__":
    main()
