"""Writes the tables of `results/` into `README.md`, between the marks that name them.

    python benchmarks/fill_readme.py

A table stands between `<!-- results/NAME.json -->` and `<!-- end -->`.
"""

import json
import re
from pathlib import Path

import augment
import compile_ahead
import lookbehind
import update

HERE = Path(__file__).parent
PROGRAMS = {
    "augment": augment,
    "compile_ahead": compile_ahead,
    "lookbehind": lookbehind,
    "update": update,
}


def main() -> None:
    """Fills every pair of marks anew."""
    readme = HERE / "README.md"
    readme.write_text(
        re.sub(r"<!-- (results/\S+) -->\n.*?<!-- end -->", fill, readme.read_text(), flags=re.S)
    )


def fill(marks: re.Match[str]) -> str:
    """The marks with the tables of the file they name, if there is one."""
    file = HERE / marks[1]
    if not file.exists():
        print(f"{marks[1]} is not there yet.")
        return marks[0]
    results = json.loads(file.read_text())
    program = re.match(r"python benchmarks/(\w+).py", results["command"])[1]
    return f"<!-- {marks[1]} -->\n\n{PROGRAMS[program].report(results)}\n\n<!-- end -->"


if __name__ == "__main__":
    main()
