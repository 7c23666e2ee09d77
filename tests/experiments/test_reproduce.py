"""Table 3's cells, and the ablations: recipes, what is skipped, tables, and a literal loop."""

import json
import re
import shlex
from pathlib import Path

import ablations
import jax.numpy as jnp
import main as training_program
import numpy as np
import pytest
import reproduce
from experiments import configs as recipes
from experiments import data
from experiments.reporting import ablation_report, cell_report
from experiments.running import command_line

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


@pytest.mark.parametrize("cell", recipes.CELLS)
def test_a_recipe_opens_with_what_it_is_and_parses(cell):
    opening = (EXAMPLES / "experiments/configs" / f"{cell}.py").read_text().split('"""')[1]
    for word in ("Paper:", "Command:", "Time:", "Accuracy:"):
        assert f"\n{word}" in opening
    assert f"python examples/reproduce.py {cell}" in opening
    published = recipes.published(cell)
    assert {k: v.replace(" ", "") for k, v in published.items()} == dict(
        zip(ROWS, TABLE_3[cell].split(), strict=True) if cell in TABLE_3 else ()
    )
    for row in ("SGD", "SLA", "SLRLA") if published else ():
        assert f"{row} {published[row].rstrip(' ⋄†')}" in opening
    for optimizer in recipes.recipe(cell).optimizers:
        args = training_program.make_parser().parse_args(recipes.recipe(cell).argv(optimizer))
        inner = "sgd" if optimizer in ("SGD", "SLA", "SLRLA") else optimizer.lower()
        assert args.optim == inner
        assert args.lookahead == ((5, 0.8) if optimizer in ("SLA", "SLRLA") else None)
        assert args.slr == ((5, 0.2) if optimizer == "SLRLA" else None)
        assert args.input_norm


def test_every_file_is_a_cell():
    files = {path.stem for path in (EXAMPLES / "experiments/configs").glob("*.py")}
    assert files - {"__init__", "common"} == set(recipes.CELLS)
    assert set(TABLE_3) < set(recipes.CELLS)


def test_columns_are_data_sets():
    assert recipes.find("CIFAR-100") == tuple(c for c in recipes.CELLS if "cifar100" in c)
    assert recipes.find("imagenet") == ("imagenet_resnet18",)
    assert recipes.find("fashion_mnist_vgg") == ("fashion_mnist_vgg",)
    with pytest.raises(ValueError, match=r"must be one of cifar10_resnet18, .*got 'mnist'"):
        recipes.find("mnist")


def test_the_command_lines_of_a_column(capsys):
    assert reproduce.main(["cifar10", "--optimizers", "SLRLA", "--dry_run", "--", "--bf16"]) == 0
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 3
    args = [training_program.make_parser().parse_args(line[2:]) for line in lines]
    assert [a.network for a in args] == ["ResNet-18", "VGG-16", "WRN-16-10"]
    assert [a.lr for a in args] == [0.1, 0.05, 0.1]
    for a in args:
        assert (a.dataset, a.epochs, a.batch_size, a.wd) == ("cifar10", 100, 128, 1e-3)
        assert (a.seeds, a.resume, a.bf16, a.exp_name) == (3, True, True, "SLRLA")


def test_the_job_of_a_cell_of_the_paper(monkeypatch, tmp_path):
    """With images in the place of CIFAR's, of which there are 256."""
    images, labels = np.zeros((256, 32, 32, 3), np.uint8), np.arange(256, dtype=np.int32) % 10
    pixels = np.float32([127, 127, 127])
    drawn = data.Dataset(
        **dict.fromkeys(("train_images", "test_images"), images),
        **dict.fromkeys(("train_labels", "test_labels"), labels),
        **{"name": "cifar10", "classes": 10, "mean": pixels, "std": pixels, "augmented": True},
    )
    monkeypatch.setattr(data, "load", lambda name, folder: drawn)
    parser = training_program.make_parser()
    args = reproduce.make_parser().parse_args(["cifar10_resnet18", "--root", str(tmp_path)])
    line = reproduce.command_of("cifar10_resnet18", "SLRLA", args, [])
    job = training_program.make_job(parser.parse_args(line), parser)
    assert job.folder == tmp_path / "cifar10_resnet18" / "SLRLA"
    np.testing.assert_allclose(job.stages, [(0.1, 60), (0.02, 120), (0.004, 160), (0.0008, 200)])
    assert job.run.dataset.augmented
    assert list(job.seeds) == [0, 1, 2]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ([], "a cell must be named; --list prints them"),
        (["cifar11"], "argument CELL: must be one of cifar10_resnet18, "),
        (
            ["fashion_mnist_vgg", "--optimizers", "SGD,RAdam", "--dry_run"],
            "--optimizers: fashion_mnist_vgg has SGD, .*, not RAdam",
        ),
        (["digits_softmax", "--data_path", "x"], "--data_path: the digits come with"),
    ],
)
def test_bad_command_lines(line, message, capsys):
    with pytest.raises(SystemExit) as error:
        reproduce.main(line)
    assert error.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert re.search(message, said)


def test_the_list_has_all_cells(capsys):
    assert reproduce.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[: len(recipes.CELLS)]] == list(recipes.CELLS)
    assert "SGD 95.23 ± 0.19 ⋄, SLA 95.27 ± 0.06 ⋄, SLRLA 95.47 ± 0.20" in lines[0]


# Runs


def test_what_is_done_is_skipped(tmp_path, monkeypatch, capsys):
    launched = []
    launch = command_line.launch
    monkeypatch.setattr(
        command_line, "launch", lambda job, screen: launched.append(job) or launch(job, screen)
    )

    def run(seeds, *more):
        folders = ("--root", str(tmp_path / "runs"), "--results", str(tmp_path / "results"))
        before = len(launched)
        line = ["digits_softmax", "--optimizers", "SGD,SLRLA", "--seeds", str(seeds), *folders]
        assert reproduce.main([*line, "--", "--tr_epochs", "4", *more]) == 0
        results = json.loads((tmp_path / "results/digits_softmax/results.json").read_text())
        return len(launched) - before, results

    count, one = run(1)
    assert count == 2
    assert one["seeds"] == [0]
    count, again = run(1)
    assert count == 0
    assert again["optimizers"] == one["optimizers"]

    # One seed more: the first is not trained anew, and has the same result.
    count, two = run(2)
    assert count == 2
    assert two["seeds"] == [0, 1]
    for name, entry in two["optimizers"].items():
        final, before = (
            e["measured"]["test_accuracy"]["final"] for e in (entry, one["optimizers"][name])
        )
        assert final["by_seed"][:1] == before["by_seed"]
        assert final["mean"] == pytest.approx(np.mean(final["by_seed"]), abs=1e-3)
    records = [
        json.loads(x) for x in (launched[0].folder / "metrics.jsonl").read_text().splitlines()
    ]
    assert two["optimizers"]["SGD"]["measured"]["test_accuracy"]["final"]["by_seed"] == [
        pytest.approx(100 * r["test_accuracy"], abs=1e-3) for r in records if r["epoch"] == 4
    ]
    folder = tmp_path / "results" / "digits_softmax"
    assert {path.name for path in folder.iterdir()} == {"table.md", "curves.png", "results.json"}
    assert "SLRLA − SGD: " in (folder / "table.md").read_text()

    # What was cut off is not done.
    metrics = launched[-1].folder / "metrics.jsonl"
    assert reproduce.finished(launched[-1])
    whole = metrics.read_text()
    for damaged in (whole[:-10], whole.replace("0.", "x.", 1), whole.replace("\n", "\n{}\n", 1)):
        metrics.write_text(damaged)
        assert reproduce.finished(launched[-1]) == ("{}" in damaged)
    settings = launched[-1].folder / "settings.json"
    settings.write_text(settings.read_text()[:100])
    assert not reproduce.finished(launched[-1])
    # The checkpoints have all of it.
    count, again = run(2)
    assert count == 1
    assert again["optimizers"]["SLRLA"]["measured"] == two["optimizers"]["SLRLA"]["measured"]
    assert reproduce.finished(launched[-1])

    # What was extended is done as an extended run only.
    count, longer = run(2, "--extend_epochs", "1")
    assert count == 2
    assert "4 epochs and 1 more" in longer["title"]
    assert run(2, "--extend_epochs", "1")[0] == 0
    assert not reproduce.finished(launched[-3])

    capsys.readouterr()
    with pytest.raises(SystemExit):
        run(1, "--lr", "0.2")
    said = capsys.readouterr().err
    assert "SGD is of another run: --lr is 0.1 there and 0.2 here" in said
    assert said.count("\n") == 1


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
    got = cell_report.measured(records, "SLA", "recalibrated_test_accuracy")
    assert got["best_epoch"] == [1, 2]  # Epoch 0 is before training.
    assert got["test_accuracy"]["final"]["by_seed"] == [40, 60]
    assert got["test_accuracy"]["final"]["mean"] == 50
    assert got["test_accuracy"]["final"]["std"] == pytest.approx(np.sqrt(200), abs=1e-3)
    assert got["test_accuracy"]["best"]["by_seed"] == [50, 60]
    assert got["fast_test_accuracy"]["best"]["by_seed"] == [70, 50]
    assert got["train_loss"]["final"]["by_seed"] == [2, 4]
    assert "recalibrated_test_accuracy" not in got


def test_the_table_of_a_cell():
    def entry(published, **measured):
        numbers = {"mean": 91.234, "std": 0.125, "by_seed": [91.1, 91.3]}
        return {
            "published": published,
            "measured": {k: dict.fromkeys(("final", "best"), numbers) for k in measured},
        }

    page = cell_report.page(
        {
            "cell": "some_cell",
            "title": "A title",
            "command": "python examples/reproduce.py some_cell",
            "date": "2030-01-02T03:04:05",
            "seeds": [0, 1],
            "machine": {"processor": "P", "cpu_count": 2, "backend": "cpu"},
            "versions": {"jax": "1.2.3"},
            "total_seconds": 120,
            "optimizers": {
                "SGD": entry("70.23 †", test_accuracy=1, train_loss=1),
                "Adam": entry("66.54 *", test_accuracy=1),
                "SLA": entry(None, test_accuracy=1, fast_test_accuracy=1),
            },
        },
        ["SLA − SGD: +0.00 ± 0.00 points"],
    )
    rows = [line for line in page.splitlines() if line.startswith("|")]
    number = "91.23 ± 0.12"
    assert rows[2:] == [
        f"| SGD | 70.23 † | {number} | {number} | – | – | 91.2340 ± 0.1250 |",
        rf"| Adam | 66.54 \* | {number} | {number} | – | – | – |",
        f"| SLA | – | {number} | {number} | – | {number} | – |",
    ]
    assert len({row.count("|") for row in rows}) == 1
    assert r"\* reported in [15]" in page
    assert "† reported in [49]" in page
    assert "reported in [1] " not in page
    assert "on 2030-01-02, in 2 min; P, 2 cores, backend cpu; jax 1.2.3" in page


def test_the_verdict_of_an_ablation():
    losses = np.array([[0.5, 0.3, 0.4], [0.4, 0.35, 0.3]])
    text = ablation_report.verdict(losses, (0.1, 0.5, 1.0), 1.0, "α")
    assert text == (
        "Lowest test loss at α = 0.5 (seed by seed at 0.5, 1): -0.0250 ± 0.1061 (lower from 1 of "
        "2 seeds) against α = 1."
    )
    off = ablation_report.verdict(losses, (1.0, 0.5, 0.1), 0.5, "α")
    assert off.endswith("where the method is switched off.")
    groups = {"α": {"settings": (0.5, 1.0)}, "c": {"settings": (0.2, 1.0)}}
    samples = {"50": {"test_loss": [[0.5, 0.6, 0.2, 0.6], [0.3, 0.6, 0.4, 0.6]]}}
    assert ablation_report.best_against_best({"groups": groups, "samples": samples}, "50") == [
        "- α = 0.5 against c = 0.2: +0.1000 ± 0.2828 (lower from 1 of 2 seeds)"
    ]


# What is in the repository


@pytest.mark.parametrize("cell", ["fashion_mnist_resnet", "fashion_mnist_vgg"])
def test_the_pages_have_the_measured_numbers(cell):
    results = json.loads((RESULTS / cell / "results.json").read_text())
    table = (RESULTS / cell / "table.md").read_text()
    page = (RESULTS / "README.md").read_text()
    opening = (EXAMPLES / "experiments/configs" / f"{cell}.py").read_text().split('"""')[1]
    for name, entry in results["optimizers"].items():
        assert len(results["seeds"]) == 3
        assert entry["flags"] == recipes.recipe(cell).argv(name)
        final = entry["measured"]["test_accuracy"]["final"]
        row = next(line for line in table.splitlines() if line.startswith(f"| {name} |"))
        told = f"{np.mean(final['by_seed']):.2f} ± {np.std(final['by_seed'], ddof=1):.2f}"
        assert told in row
        assert row in page
        assert f"{name} {told}" in " ".join(opening.split())


def test_the_ablations_in_the_repository_are_those_of_the_program():
    results = json.loads((RESULTS / "ablations" / "results.json").read_text())
    assert results["groups"] == json.loads(json.dumps(ablations.groups()))
    assert ablation_report.page(results) == (RESULTS / "ablations" / "table.md").read_text()


def test_the_plots_are_small():
    plots = list(RESULTS.rglob("*.png"))
    assert plots
    assert all(path.stat().st_size < 300_000 for path in plots)


# Ablations


def literal_algorithm_3(inputs, labels, batches, cycles, alpha, beta, rate):
    """The paper's loops around SGD with momentum, on softmax regression, in float64."""
    theta = np.zeros((inputs.shape[1] + 1, 10))
    velocity = np.zeros_like(theta)
    inputs = np.concatenate([inputs, np.ones((len(inputs), 1))], axis=1)
    batches = iter(batches)
    for q, count in enumerate(cycles):
        anchor = theta
        for _ in range(count):
            v = theta
            for _ in range(5):
                batch = next(batches)
                scores = np.exp(inputs[batch] @ v)
                share = scores / scores.sum(1, keepdims=True)
                share[np.arange(len(batch)), labels[batch]] -= 1
                gradient = inputs[batch].T @ share / len(batch) + beta * (v - anchor) + 1e-4 * v
                velocity = 0.9 * velocity + gradient
                v = v - rate * 0.5**q * velocity
            theta = theta + alpha * (v - theta)
    return theta


def mean_loss(theta, inputs, labels):
    scores = inputs @ theta[:-1] + theta[-1]
    shifted = scores - scores.max(1, keepdims=True)
    log_share = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    accuracy = np.mean(scores.argmax(1) == labels)
    return -log_share[np.arange(len(labels)), labels].mean(), accuracy


def test_all_settings_at_once_are_the_literal_loop_of_each():
    dataset = data.load("digits")
    settings = ablations.Grid(*jnp.array([[0.3, 1.0, 0.8], [0.0, 0.0, 5.0], [0.05, 0.01, 0.05]]))
    got = ablations.ablate(
        dataset, samples=100, steps=48, batch_size=20, seeds=2, settings=settings
    )
    train, test = (
        np.float64(dataset.standardise(images)).reshape(len(images), -1)
        for images in (dataset.train_images, dataset.test_images)
    )
    for seed in (0, 1):
        chosen = np.random.default_rng(seed).permutation(600)[:100]
        order, batches = np.random.default_rng(seed), []
        while len(batches) < 50:  # 48 steps are ten whole cycles.
            batches += list(order.permutation(100).reshape(5, 20))
        for n, setting in enumerate(zip(*settings, strict=True)):
            theta = literal_algorithm_3(
                train[chosen],
                dataset.train_labels[chosen],
                batches,
                (3, 3, 2, 2),
                *map(float, setting),
            )
            train_loss, _ = mean_loss(theta, train[chosen], dataset.train_labels[chosen])
            test_loss, accuracy = mean_loss(theta, test, dataset.test_labels)
            where = {name: value[seed, n] for name, value in got.items()}
            np.testing.assert_allclose(where["train_loss"], train_loss, rtol=1e-4)
            np.testing.assert_allclose(where["test_loss"], test_loss, rtol=1e-4)
            np.testing.assert_allclose(where["gap"], test_loss - train_loss, atol=1e-4)
            np.testing.assert_allclose(where["test_accuracy"], accuracy, atol=1.1e-3)


@pytest.mark.parametrize(("steps", "count"), [(1, 1), (10, 2), (15, 3), (20, 4), (4_680, 4)])
def test_short_ablations_have_fewer_stages(steps, count):
    assert len(ablations.stages_in(steps).lengths) == count


def test_the_program_of_the_ablations(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(ablations, "ALPHAS", (0.5, 1.0))
    monkeypatch.setattr(ablations, "BETAS", (0.0, 1.0))
    line = ["--samples", "50", "--steps", "20", "--batch_size", "20", "--seeds", "2"]
    assert ablations.main([*line, "--results", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {
        "alpha.png",
        "beta.png",
        "results.json",
        "table.md",
    }
    results = json.loads((tmp_path / "results.json").read_text())
    assert np.shape(results["samples"]["50"]["gap"]) == (2, 6)
    table = (tmp_path / "table.md").read_text()
    mean = 100 * np.mean(results["samples"]["50"]["test_accuracy"], axis=0)
    assert f"| 0.5 | {np.mean(results['samples']['50']['train_loss'], axis=0)[0]:.4f} ± " in table
    assert f"| {mean[3]:.2f} ± " in table

    # Without --samples: all 600 of the digits, and as a thirtieth has no batch, one batch.
    assert ablations.main(["--steps", "5", "--seeds", "1", "--results", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results["samples"]) == ["600", "128"]
    capsys.readouterr()
    with pytest.raises(SystemExit):
        ablations.main(["--batch_size", "601"])
    assert "--batch_size: must be at most 600, got 601" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        ablations.main(["--samples", "601"])
    assert "--samples: must be from 128 (the batch size) to 600, got 601" in capsys.readouterr().err
