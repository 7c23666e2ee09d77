"""Writes the tables of `results/` into `README.md`, between the marks that name them.

    python benchmarks/fill_readme.py

A table stands between `<!-- results/NAME.json -->` and `<!-- end -->`.
"""

import json
import re
from pathlib import Path

import compile_ahead
import update

HERE = Path(__file__).parent


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
    report = compile_ahead.report if "target" in results else update.report
    return f"<!-- {marks[1]} -->\n\n{report(results)}\n\n<!-- end -->"


if __name__ == "__main__":
    main()
