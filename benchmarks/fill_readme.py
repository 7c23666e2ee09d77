"""Writes the tables of `results/` into `README.md`, between the marks that name their files.

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
    """Replaces the text between every pair of marks."""
    readme = HERE / "README.md"
    readme.write_text(
        re.sub(r"<!-- (results/\S+) -->\n.*?<!-- end -->", fill, readme.read_text(), flags=re.S)
    )


def fill(marks: re.Match[str]) -> str:
    """The marks with the tables of the file that they name, if the file exists."""
    file = HERE / marks[1]
    if not file.exists():
        print(f"{marks[1]} does not exist yet.")
        return marks[0]
    results = json.loads(file.read_text())
    program = re.match(r"python benchmarks/(\w+).py", results["command"])[1]
    return f"<!-- {marks[1]} -->\n\n{PROGRAMS[program].report(results)}\n\n<!-- end -->"


if __name__ == "__main__":
    main()
