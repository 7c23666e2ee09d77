"""The notebook in `examples/notebooks` runs on one device and on eight; its text is current."""

import base64
import io
import os
from pathlib import Path

import jupytext
import matplotlib.image
import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

import slrla_jax

NOTEBOOKS = Path(__file__).parents[2] / "examples" / "notebooks"
TEXT, NOTEBOOK = NOTEBOOKS / "first_steps.py", NOTEBOOKS / "first_steps.ipynb"
PACKAGE = Path(slrla_jax.__file__).parent.parent


def environment(devices):
    """For a kernel that has this package, `devices` CPU devices and nothing to install."""
    paths = [str(PACKAGE), os.environ.get("PYTHONPATH", "")]
    changed = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PIP_NO_INDEX": "1",
    }
    kept = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    return {**kept, **changed}


def execute(path, devices, folder):
    """The code cells after a run in `folder`; an error in one of them is raised."""
    notebook = nbformat.read(path, as_version=4)
    # Without directories to look into, "python3" is the interpreter that runs the tests.
    manager = AsyncKernelManager(
        kernel_name="python3", kernel_spec_manager=KernelSpecManager(kernel_dirs=[])
    )
    resources = {"metadata": {"path": str(folder)}}
    client = NotebookClient(notebook, km=manager, timeout=300, resources=resources)
    client.execute(env=environment(devices))
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def figures(cell):
    """The pixels of the figures that a cell has shown."""
    pngs = [o.data["image/png"] for o in cell.outputs if "image/png" in o.get("data", {})]
    return [matplotlib.image.imread(io.BytesIO(base64.b64decode(png))) for png in pngs]


def printed(cells):
    return "".join(o.text for cell in cells for o in cell.outputs if o.output_type == "stream")


@pytest.mark.parametrize("devices", [1, 8])
def test_it_runs(devices, tmp_path):
    cells = execute(NOTEBOOK, devices, tmp_path)

    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not any(o.output_type == "error" for cell in cells for o in cell.outputs)

    shown = [figures(cell) for cell in cells if "plt.show()" in cell.source]
    assert [len(images) for images in shown] == [1, 1, 1]
    for (image,) in shown:
        assert min(image.shape[:2]) > 300
        assert image[..., :3].std() > 0.05

    text = printed(cells)
    assert "Lookahead, slow weights: 9" in text
    assert f"{devices} device(s) with {128 // devices} images each." in text


def test_text_and_notebook_are_the_same():
    text, notebook = jupytext.read(TEXT), nbformat.read(NOTEBOOK, as_version=4)

    def content(cells):
        return [(cell.cell_type, cell.source, dict(cell.metadata)) for cell in cells]

    assert content(notebook.cells) == content(text.cells), (
        "regenerate it: jupytext --to ipynb --update examples/notebooks/first_steps.py"
    )
    assert notebook.metadata.kernelspec == text.metadata.kernelspec


def test_the_notebook_is_kept_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None
