"""The package as a whole: its imports, its README and its public names."""

import re
import subprocess
import sys
from pathlib import Path

import slrla_jax

ROOT = Path(__file__).parent.parent


def test_imports_neither_flax_nor_examples():
    code = "import sys, slrla_jax; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    examples = {path.stem for path in ROOT.glob("examples/*")}
    assert not set(done.stdout.split()) & {"flax", "matplotlib", "rich", "sklearn", *examples}


def test_every_public_name_is_in_the_readme():
    readme = (ROOT / "README.md").read_text()
    public = {name for name in slrla_jax.__all__ if not name.endswith("State")}
    assert {name for name in public if not re.search(rf"`{name}[`(]", readme)} == set()


def test_python_in_the_readme_runs():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        subprocess.run([sys.executable, "-c", block], check=True)


def test_python_in_the_docs_runs():
    for page in sorted(ROOT.glob("docs/*.md")):
        blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
        assert blocks
        exec(compile("\n".join(blocks), page.name, "exec"), {"__name__": page.stem})


def test_every_public_function_has_its_docstring_whole():
    for name in slrla_jax.__all__:
        public = getattr(slrla_jax, name)
        sections = ["Attributes:"] if isinstance(public, type) else ["Args:", "Returns:", "Raises:"]
        if not isinstance(public, type):
            sections.append("Example:")
        assert [s for s in sections if s not in public.__doc__] == [], name
