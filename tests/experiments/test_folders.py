"""The folder of a run: made, refused, and kept from other processes."""

import errno
import subprocess
import sys
from pathlib import Path

import main
import pytest
from experiments import folders
from experiments.config import SettingError
from experiments.folders import run_folder

SMALL = "--dataset digits --network softmax --tr_epochs 1 --train_batch_size 200"


def test_a_folder_belongs_to_one_process(tmp_path):
    """The other one is real, and is told in a line; then the folder is free again."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom experiments.folders import run_folder\n"
        "root, name = sys.argv[1:]\n"
        "with run_folder(Path(root), name, otherwise='', resume=True):\n    print('mine')\n"
    )

    def other():
        return subprocess.run(
            [sys.executable, "-c", code, str(tmp_path), "run"],
            capture_output=True,
            text=True,
            check=False,
            cwd=Path(folders.__file__).parent.parent,
        )

    with run_folder(tmp_path, "run", otherwise="", resume=False) as folder:
        refused = other()
        assert refused.returncode == 1
        assert f"another process is using {folder}" in refused.stderr.splitlines()[-1]
        (folder / "something").touch()
    assert other().stdout == "mine\n"
    assert [path.name for path in folder.iterdir()] == ["something"]


def test_a_new_folder_that_stays_empty_goes_again(tmp_path):
    with pytest.raises(KeyError), run_folder(tmp_path / "a", "run", otherwise="", resume=False):
        raise KeyError
    assert not (tmp_path / "a/run").exists()
    (tmp_path / "old").mkdir()
    with run_folder(tmp_path, "old", otherwise="", resume=True):
        pass
    assert (tmp_path / "old").exists()


@pytest.mark.parametrize("name", ["lr[0.1]", "a*b", "what?", "back\\slash", r"$\frac$"])
def test_a_path_that_orbax_cannot_read_is_refused(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    assert main.main([*SMALL.split(), "--exp_name", name]) == 2
    said = capsys.readouterr().err
    assert said.startswith("main.py: error: --exp_name: ")
    assert "checkpoints cannot be read again" in said
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    assert main.main([*SMALL.split(), "--exp_name", "plain"]) == 2


def test_what_stands_in_the_way_is_named(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "run").mkdir()
    with (
        pytest.raises(SettingError, match=r"file is a file"),
        run_folder(tmp_path, "file", otherwise="", resume=True),
    ):
        pass
    with (
        pytest.raises(SettingError, match=r"there is a run in .*; --resume resumes it"),
        run_folder(tmp_path, "run", otherwise="", resume=False),
    ):
        pass
    with (
        pytest.raises(SettingError, match=r"cannot make .*Not a directory"),
        run_folder(tmp_path / "file", "run", otherwise="", resume=False),
    ):
        pass


@pytest.mark.parametrize("name", [None, "run"])
def test_a_root_that_cannot_be_written_is_one_line(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    flags = [*SMALL.split(), *(() if name is None else ("--exp_name", name))]
    flag, folder = ("--exp_name", name) if name else ("--root", "main-digits-1")

    def error():
        capsys.readouterr()
        assert main.main(flags) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        return captured.err.partition(f"main.py: error: {flag}: cannot make runs/{folder}: ")

    (tmp_path / "runs").touch()
    assert error()[::2] == ("", "Not a directory\n")
    (tmp_path / "runs").unlink()

    def forbidden(self, *args, **options):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", forbidden)
    assert error()[::2] == ("", "Permission denied\n")
    assert list(tmp_path.iterdir()) == []


def test_without_a_name_each_run_gets_a_folder(tmp_path):
    names = []
    for _ in range(2):
        with run_folder(tmp_path, None, otherwise="digits", resume=False) as folder:
            (folder / "something").touch()
            names.append(folder.name)
    assert names == ["digits-1", "digits-2"]
    with pytest.raises(KeyError), run_folder(tmp_path, None, otherwise="digits", resume=False):
        raise KeyError
    assert sorted(path.name for path in tmp_path.iterdir()) == names


@pytest.mark.parametrize("name", ["$x_1$", "$", "_x", "a b", "ρ"])
def test_any_other_name_will_do(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert main.main([*SMALL.split(), "--exp_name", name]) == 0
    assert (tmp_path / "runs" / name / "curves.png").exists()
    assert main.main([*SMALL.split(), "--exp_name", name, "--resume"]) == 0
