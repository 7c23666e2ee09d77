"""The pages beside the programs: their code runs from top to bottom, and is short."""

import re
import runpy
from pathlib import Path

import compare
import pytest
from experiments.data import DATASETS
from experiments.models import NETWORKS

EXAMPLES = Path(compare.__file__).parent
PAGES = ("own_network", "own_data", "trained_networks")


@pytest.mark.parametrize("name", PAGES)
def test_the_code_of_a_page_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = [dict(registry) for registry in (DATASETS, NETWORKS)]
    text = (EXAMPLES / f"{name}.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    (tmp_path / f"{name}.py").write_text(code, encoding="utf-8")
    try:
        runpy.run_path(str(tmp_path / f"{name}.py"))
    finally:
        for registry, rows in zip((DATASETS, NETWORKS), before, strict=True):
            registry.clear()
            registry.update(rows)


@pytest.mark.parametrize("name", PAGES[:2])
def test_what_is_to_be_written_is_short(name):
    text = (EXAMPLES / f"{name}.md").read_text(encoding="utf-8")
    first = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    assert len(first.splitlines()) < 30
    assert name in (EXAMPLES / "README.md").read_text(encoding="utf-8")
