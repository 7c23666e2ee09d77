"""Table 3's recipes: what is skipped, and tables."""

import json
import re
from pathlib import Path

import main as training_program
import numpy as np
import pytest
import reproduce
from experiments import configs as recipes
from experiments import data, report, sweep
from experiments.config import Config

EXAMPLES = Path(reproduce.__file__).parent
RESULTS = EXAMPLES / "results" / "slrla"

# Row by row from the paper's Table 3: accuracy, deviation, mark.
TABLE_3 = {
    "cifar10_resnet18": "94.84⋄ 92.56 93.85 94.95 95.20‡ 95.23±0.19⋄ 95.27±0.06⋄ 95.47±0.20",
    "cifar10_vgg16": "91.08 91.35 90.84 90.75 92.25 92.13±0.02 92.38±0.02 92.63±0.03",
    "cifar10_wrn16_10": "93.54 91.68 94.16 95.95 95.71 95.51±0.02 95.73±0.02 96.08±0.07",
    "cifar100_resnet18": "76.88⋄ 71.43 74.30 77.30 77.02‡ 78.24±0.18⋄ 78.34±0.05⋄ 78.58±0.15",
    "cifar100_vgg16": "64.07 64.74 63.99 63.40 68.63 69.97±0.02 70.20±0.04 70.63±0.02",
    "cifar100_wrn16_10": "74.81 71.64 75.92 79.63 77.93 78.95±0.03 79.54±0.02 79.85±0.05",
    "imagenet_resnet18": "66.54* 68.13† 67.62* 67.93† 70.08‡ 70.23† 70.30±0.09 70.47±0.12",
}
ROWS = ("Adam", "AdaBound", "RAdam", "AdamW", "AdaBelief", "SGD", "SLA", "SLRLA")


# Recipes


RELEASED = "--dataset CIFAR10 --network ResNet-18 --input_norm --wd 1e-3 --lr 1e-1"
RELEASED_ROWS = {
    "SGD": "",
    "SLA": " --lookahead 5_0.8",
    "SLRLA": " --lookahead 5_0.8 --slr 5_0.2",
}


@pytest.mark.parametrize("row", RELEASED_ROWS)
def test_the_recipe_is_that_of_the_released_command_lines(row):
    parser = training_program.make_parser()
    args = parser.parse_args((RELEASED + RELEASED_ROWS[row]).split())
    (entry,) = training_program.sweep_of(args, parser).entries
    assert entry.config == recipes.configs("cifar10_resnet18")[row]


@pytest.mark.parametrize("recipe", recipes.RECIPES)
def test_a_recipe_opens_with_what_it_is(recipe):
    opening = (EXAMPLES / "experiments/configs" / f"{recipe}.py").read_text().split('"""')[1]
    for word in ("Paper:", "Command:", "Time:", "Accuracy:"):
        assert f"\n{word}" in opening
    assert f"python examples/reproduce.py {recipe}" in opening
    published = recipes.published(recipe)
    assert {k: v.replace(" ", "") for k, v in published.items()} == dict(
        zip(ROWS, TABLE_3[recipe].split(), strict=True) if recipe in TABLE_3 else ()
    )
    for row in ("SGD", "SLA", "SLRLA") if published else ():
        assert f"{row} {published[row].rstrip(' ⋄†')}" in opening
    configs = recipes.configs(recipe)
    base = configs["SGD"]
    for name, config in configs.items():
        inner = "sgd" if name in ("SGD", "SLA", "SLRLA") else name.lower()
        assert config.inner == inner
        assert config.input_norm
        assert (config.dataset, config.model, config.epochs) == (
            base.dataset,
            base.model,
            base.epochs,
        )
        assert Config.from_json(json.loads(json.dumps(config.as_json()))) == config
    assert [configs[n].optimizer for n in ("SGD", "SLA", "SLRLA")] == [
        "sgd",
        "lookahead",
        "slrla_released",
    ]
    assert (configs["SLRLA"].beta, configs["SLRLA"].anchor_period) == (0.4, None)
    assert (configs["SLA"].sync_period, configs["SLA"].slow_step_size) == (5, 0.8)


def test_every_file_is_a_recipe():
    files = {path.stem for path in (EXAMPLES / "experiments/configs").glob("*.py")}
    others = {"__init__", "table3", "adaloss", "lookbehind", "language_model", "image_classifier"}
    assert files - others == set(recipes.RECIPES)
    assert set(TABLE_3) < set(recipes.RECIPES)


def test_a_data_set_is_all_its_recipes():
    assert recipes.find("CIFAR-100") == tuple(r for r in recipes.RECIPES if "cifar100" in r)
    assert recipes.find("imagenet") == ("imagenet_resnet18",)
    assert recipes.find("fashion_mnist_vgg") == ("fashion_mnist_vgg",)
    with pytest.raises(ValueError, match=r"must be one of cifar10_resnet18, .*got 'mnist'"):
        recipes.find("mnist")


def test_the_configurations_of_a_data_set(capsys):
    line = ["cifar10", "--optimizers", "SLRLA", "--dry_run", "--set", "bf16=true"]
    assert reproduce.main(line) == 0
    shown = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [c["model"] for c in shown] == ["ResNet-18", "VGG-16", "WRN-16-10"]
    assert [c["learning_rate"] for c in shown] == [0.1, 0.05, 0.1]
    for c in shown:
        assert (c["dataset"], c["epochs"], c["batch_size"]) == ("cifar10", 100, 128)
        assert (c["weight_decay"], c["bf16"], c["row"]) == (1e-3, True, "SLRLA")


def test_the_run_of_a_recipe_of_the_paper(monkeypatch, tmp_path):
    """With images in the place of CIFAR's, of which there are 256."""
    images, labels = np.zeros((256, 32, 32, 3), np.uint8), np.arange(256, dtype=np.int32) % 10
    pixels = np.float32([127, 127, 127])
    drawn = data.Dataset(
        **dict.fromkeys(("train_images", "test_images"), images),
        **dict.fromkeys(("train_labels", "test_labels"), labels),
        **{"name": "cifar10", "classes": 10, "mean": pixels, "std": pixels, "augmented": True},
    )
    monkeypatch.setattr(data, "load", lambda name, folder: drawn)
    parser = reproduce.make_parser()
    args = parser.parse_args(["cifar10_resnet18", "--root", str(tmp_path)])
    asked = reproduce.sweep_of("cifar10_resnet18", args, parser)
    assert (asked.root, asked.name, asked.resume) == (tmp_path, "cifar10_resnet18", True)
    assert list(asked.seeds) == [0, 1, 2]
    runs = sweep.build(asked)
    assert list(runs) == list(recipes.ROWS)
    assert [entry.folder for entry in asked.entries] == list(recipes.ROWS)
    run = runs["SLRLA"]
    ends = [(0.1, 60), (0.02, 120), (0.004, 160), (0.0008, 200)]
    np.testing.assert_allclose(run.stages.ends, ends)
    assert run.dataset.augmented


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ([], "RECIPE: at least one must be named; --list prints them"),
        (["cifar11"], "argument RECIPE: must be one of cifar10_resnet18, "),
        (
            ["fashion_mnist_vgg", "--optimizers", "SGD,RAdam", "--dry_run"],
            "--optimizers: fashion_mnist_vgg has SGD, .*, not RAdam",
        ),
        (["fashion_mnist", "--exp_name", "x"], "--exp_name: one folder takes one recipe, got fash"),
        (["digits_softmax", "--resume"], "unrecognized arguments: --resume"),
        (["digits_softmax", "--data_path", "x"], "--data_path: the digits come with"),
        (["digits_softmax", "--set", "lr=1"], "--set: must be NAME=VALUE with a name among "),
        (["digits_softmax", "--set", "epochs=x"], "--set: must be a whole number, at least 1"),
        (["digits_softmax", "--set", "bf16=1"], "--set: must be true or false, got '1'"),
        (["digits_softmax", "--set", "model=vgg16"], "--set model: VGG-16: image_shape: must"),
        (["digits_softmax", "--set", "batch_size=8000"], "--set batch_size: must be from 1 to 600"),
    ],
)
def test_bad_command_lines(line, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        code = reproduce.main(line)
    except SystemExit as error:
        code = error.code
    assert code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert re.search(message, said)
    assert not list(tmp_path.rglob("*.json"))


def test_the_list_has_all_recipes(capsys):
    assert reproduce.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[: len(recipes.RECIPES)]] == list(recipes.RECIPES)
    assert "SGD 95.23 ± 0.19 ⋄, SLA 95.27 ± 0.06 ⋄, SLRLA 95.47 ± 0.20" in lines[0]


# Runs


def test_what_is_finished_is_skipped(tmp_path, capsys):
    folder = tmp_path / "digits_softmax"

    def run(seeds, *more, code=0):
        line = ["digits_softmax", "--optimizers", "SGD,SLRLA", "--seeds", str(seeds)]
        capsys.readouterr()
        assert reproduce.main([*line, "--root", str(tmp_path), "--set", "epochs=4", *more]) == code
        shown = capsys.readouterr()
        if code:
            return shown.err
        results = json.loads((folder / "results.json").read_text())
        return shown.out.count("done before"), results["entries"], results

    skipped, one, results = run(1)
    assert skipped == 0
    assert results["seeds"] == [0]
    skipped, again, _ = run(1)
    assert skipped == 2
    assert again == one

    # One seed more: the first is not trained again, and has the same result.
    skipped, two, results = run(2)
    assert skipped == 2
    assert results["seeds"] == [0, 1]
    for name, entry in two.items():
        final, before = (e["measured"]["test_accuracy"]["final"] for e in (entry, one[name]))
        assert final["by_seed"][:1] == before["by_seed"]
        assert final["mean"] == pytest.approx(np.mean(final["by_seed"]), abs=1e-3)
    metrics = folder / "metrics.jsonl"
    whole = metrics.read_text()
    records = [json.loads(line) for line in whole.splitlines()]
    assert two["SGD"]["measured"]["test_accuracy"]["final"]["by_seed"] == [
        pytest.approx(100 * r["test_accuracy"], abs=1e-3)
        for r in records
        if r["epoch"] == 4 and r["optimizer"] == "SGD"
    ]
    assert {path.name for path in folder.iterdir()} == {
        "checkpoints",
        "curves.png",
        "metrics.jsonl",
        "results.json",
        "settings.json",
        "table.md",
    }
    assert "SLRLA against SGD: " in (folder / "table.md").read_text()

    # What is cut off is not finished, but the checkpoints have all of it.
    for damaged, finished in {
        whole[:-10]: 3,
        whole.replace("0.", "x.", 1): 3,
        whole.replace("\n", "\n{}\n", 1): 4,
        "": 0,
    }.items():
        metrics.write_text(damaged)
        skipped, again, _ = run(2)
        assert skipped == finished
        assert again == two
    settings = folder / "settings.json"
    settings.write_text(settings.read_text()[:100])
    assert run(2)[:2] == (4, two)

    # What was extended is finished as an extended run only.
    skipped, _, longer = run(2, "--extend_epochs", "1")
    assert skipped == 0
    assert "4 epochs and 1 more" in longer["title"]
    assert run(2, "--extend_epochs", "1")[0] == 4
    assert "--extend_epochs 1 or more extends it" in run(2, code=2)

    said = run(1, "--set", "learning_rate=0.2", code=1)
    assert "is of another run: --set learning_rate is 0.1 there and 0.2 here" in said
    assert said.count("\n") == 1


def test_a_subset_of_the_rows_leaves_the_others_records(tmp_path):
    line = ["digits_softmax", "--seeds", "1", "--root", str(tmp_path), "--set", "epochs=2"]
    assert reproduce.main([*line, "--optimizers", "SGD,SLA"]) == 0
    before = (tmp_path / "digits_softmax/metrics.jsonl").read_text()
    assert reproduce.main([*line, "--optimizers", "SLRLA"]) == 0
    assert (tmp_path / "digits_softmax/metrics.jsonl").read_text().startswith(before)


# Tables


def record(seed, epoch, accuracy, fast=None, loss=1.0):
    values = {} if fast is None else {"fast_test_accuracy": fast}
    return {
        "optimizer": "SLA",
        "seed": seed,
        "epoch": epoch,
        "test_accuracy": accuracy,
        "train_loss": loss,
        **values,
    }


def test_final_and_best_by_hand():
    records = [record(0, 0, 0.9, 0.9), record(0, 1, 0.5, 0.7), record(0, 2, 0.4, 0.6, 2.0)]
    records += [record(1, 0, 0.1, 0.1), record(1, 1, 0.2, 0.1), record(1, 2, 0.6, 0.5, 4.0)]
    got = report.measured(records, "recalibrated_test_accuracy")
    assert got["best_epoch"] == [1, 2]  # Epoch 0 is before training.
    assert got["test_accuracy"]["final"]["by_seed"] == [40, 60]
    assert got["test_accuracy"]["final"]["mean"] == 50
    assert got["test_accuracy"]["final"]["std"] == pytest.approx(np.sqrt(200), abs=1e-3)
    assert got["test_accuracy"]["best"]["by_seed"] == [50, 60]
    assert got["fast_test_accuracy"]["best"]["by_seed"] == [70, 50]
    assert got["train_loss"]["final"]["by_seed"] == [2, 4]
    assert "recalibrated_test_accuracy" not in got
    assert report.measured(records, "fast_test_accuracy")["best_epoch"] == [1, 2]


def test_the_table_of_a_recipe():
    def entry(published, **measured):
        numbers = {"mean": 91.234, "std": 0.125, "by_seed": [91.1, 91.3]}
        return {
            "published": published,
            "gradients": 100,
            "measured": {k: dict.fromkeys(("final", "best"), numbers) for k in measured},
        }

    summary = {
        "title": "A title",
        "note": "A note",
        "command": "python examples/reproduce.py some_recipe",
        "date": "2030-01-02T03:04:05",
        "seeds": [0, 1],
        "machine": {"processor": "P", "cpu_count": 2, "backend": "cpu"},
        "versions": {"jax": "1.2.3"},
        "seconds": 120,
        "best_by": "test_accuracy",
        "sources": ["† from elsewhere"],
        "diverged": ["Adam diverged, from seed 0 in epoch 1 (step 2)"],
        "entries": {
            "SGD": entry("70.23 †", test_accuracy=1, train_loss=1),
            "Adam": entry("66.54 *", test_accuracy=1),
            "SLA": entry(None, test_accuracy=1, fast_test_accuracy=1),
        },
    }
    page = report.page(summary, report.TRAINING)
    rows = [" ".join(line.split()) for line in page.splitlines() if line.startswith("|")]
    number = "91.23 ± 0.12"
    assert rows[0] == "| | published | final | best epoch | fast weights | training loss |"
    assert rows[2:] == [
        f"| SGD | 70.23 † | {number} | {number} | – | 91.2340 ± 0.1250 |",
        rf"| Adam | 66.54 \* | {number} | {number} | – | – |",
        f"| SLA | – | {number} | {number} | {number} | – |",
    ]
    assert "Published: † from elsewhere." in page
    assert "on 2030-01-02, in 2 min; P, 2 cores, backend cpu; jax 1.2.3" in page
    assert "Mean ± standard deviation of 2 seeds; 100 gradients per run. A note." in page
    assert "Adam diverged, from seed 0 in epoch 1 (step 2)." in page
    assert "chosen by the test accuracy." in page
    other = report.page(summary | {"best_by": "recalibrated_test_accuracy"}, report.TRAINING)
    assert "chosen by the test accuracy with recalibrated BatchNorm statistics" in other


def test_the_sources_of_the_marks_that_occur():
    said = "; ".join(recipes.sources("cifar10_resnet18"))
    assert "⋄ reported in [1]" in said
    assert "‡ reported in [50]" in said
    assert "[15]" not in said
    assert r"\* reported in [15]" in "; ".join(recipes.sources("imagenet_resnet18"))
    assert recipes.sources("digits_softmax") == []


# What is in the repository


MEASURED = {
    "fashion_mnist_resnet": "fashion_mnist_resnet",
    "fashion_mnist_vgg": "fashion_mnist_vgg",
    "lr_1e-2/fashion_mnist_resnet": "fashion_mnist_resnet",
}


@pytest.mark.parametrize("folder", MEASURED)
def test_the_pages_have_the_measured_numbers(folder):
    summary = json.loads((RESULTS / folder / "results.json").read_text())
    table = (RESULTS / folder / "table.md").read_text()
    pictures = ["curves.png"] if (RESULTS / folder / "curves.png").exists() else []
    assert table == report.page(summary, report.TRAINING, pictures)
    recipe = MEASURED[folder]
    page = (RESULTS / "README.md").read_text()
    opening = (EXAMPLES / "experiments/configs" / f"{recipe}.py").read_text().split('"""')[1]
    for name, entry in summary["entries"].items():
        assert len(summary["seeds"]) == 3
        config = recipes.configs(recipe)[name].as_json()
        if folder.startswith("lr_1e-2"):
            config["learning_rate"] = 0.01
        # Settings that are newer than the results have their defaults.
        recorded = Config.from_json({n: v for n, v in entry["config"].items() if n != "data"})
        assert recorded.as_json() == config
        final = entry["measured"]["test_accuracy"]["final"]
        row = next(line for line in table.splitlines() if line.startswith(f"| {name} "))
        told = f"{np.mean(final['by_seed']):.2f} ± {np.std(final['by_seed'], ddof=1):.2f}"
        assert told in row
        if folder == recipe:
            assert row in page
            assert f"{name} {told}" in " ".join(opening.split())
        else:
            assert told in page


def test_the_plots_are_small():
    plots = list(RESULTS.rglob("*.png"))
    assert plots
    assert all(path.stat().st_size < 300_000 for path in plots)
