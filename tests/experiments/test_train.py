"""AdaLoss's command lines: what they and their files mean, what is wrong with others, and runs."""

import json
import shutil
from dataclasses import fields, replace
from functools import cache, partial
from pathlib import Path

import experiments.train
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import train
from experiments import config_file, data, models, sweep, trained
from experiments.checkpoints import OtherRun
from experiments.config import Config
from experiments.configs.adaloss import BASE, ENTRIES
from experiments.devices import flops_per_step
from experiments.models.vision_transformer import VisionTransformer
from published import cifar_files, write_cifar
from safetensors.numpy import save_file
from timm_tensors import tensors, vit_shapes

CONFIGS = Path(train.__file__).parent / "configs"
ADALOSS = "-c ./configs/config_cifar100_adaloss.json"
SET = "--lr 0.1 --epochs 10 --weight_decay 1e-4"
METHODS = {"adaloss": "adaloss", "sgd_b0": "sgd_constant", "sgd_sqrt": "sgd_decay_sqrt"}
# A run of a few seconds.
SMALL = f"{ADALOSS} --dataset digits --num_classes 10 --model softmax --image_size none --scratch"


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def sweep_of(flags):
    parser = train.make_parser()
    return train.sweep_of(parser.parse_args(flags.split()), parser)


def config_of(flags):
    (entry,) = sweep_of(f"{flags} --scratch").entries
    return entry.config


# What the command lines of the source document mean.

DOCUMENT = [
    (f"-c ./configs/config_cifar100_{file}.json --model {{}} --b0 1 {SET}", optimizer)
    for file, optimizer in METHODS.items()
] + [
    (
        f"-c ./configs/config_cifar100_adagrad_norm.json --model {{}} --adanormb0 1 {SET}",
        "adagrad_norm",
    )
]
MODELS = {"vits16r224": "ViT-S-16", "swsl_resnet50": "ResNet-50"}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("line", "optimizer"), DOCUMENT)
def test_the_command_lines_of_the_document(here, line, optimizer, model):
    line = line.format(model)
    assert config_of(line) == Config(
        dataset="cifar100",
        validation_split=0.1,
        image_size=224,
        model=MODELS[model],
        epochs=10,
        batch_size=128,
        milestones=(),
        fit_milestones=False,
        decay=0.1,
        learning_rate=0.1,
        optimizer=optimizer,
        momentum=0.0,
        weight_decay=1e-4,
        b0=1.0,
        loss_weight=1.0,
        loss_offset=0.0,
    )
    assert list(sweep_of(f"{line} --scratch").seeds) == [123]
    assert list(sweep_of(f"{line} --scratch --seeds 5").seeds) == [123, 124, 125, 126, 127]


@pytest.mark.parametrize(
    ("model", "params", "tflop"),
    # With 1,000 classes 22,050,664 and 25,557,032, of which 900 are left out, bias included.
    [
        ("vits16r224", 22_050_664 - 900 * 385, 3.57),
        ("swsl_resnet50", 25_557_032 - 900 * 2049, 3.03),
    ],
)
def test_the_runs_of_the_document(monkeypatch, model, params, tflop):
    # A pixel each, since they are resized anyway.
    images, labels = np.zeros((50_000, 1, 1, 3), np.uint8), np.arange(50_000, dtype="i4") % 100
    cifar = data.Dataset(
        name="cifar100",
        classes=100,
        mean=np.zeros(3, "f4"),
        std=np.ones(3, "f4"),
        augmented=True,
        train_images=images,
        train_labels=labels,
        test_images=images[:10_000],
        test_labels=labels[:10_000],
    )
    monkeypatch.setattr(data, "load", lambda name, folder=None: cifar)
    (run,) = sweep.build(sweep_of(f"{ADALOSS} --model {model} --scratch")).values()
    assert sweep.title_of(run) == (
        f"cifar100, 45,000 training, 5,000 validation and 10,000 test images; {MODELS[model]}, "
        f"{params:,} parameters; 10 epochs, 3,510 steps of 128 images"
    )
    assert run.dataset.image_shape == (224, 224, 3)
    np.testing.assert_array_equal(np.bincount(run.dataset.validation_labels), [50] * 100)
    counted = flops_per_step(run.model, run.tx, run.batch_size)  # The step is lowered for it.
    assert counted == pytest.approx(tflop * 1e12, rel=0.01)


@pytest.mark.parametrize(
    ("flags", "divided_by"),
    [
        (f"{ADALOSS} --b0 3 --alpha 2 --cc 0.5", lambda g, t: np.sqrt(9 + 2 * t * 1.5)),
        ("-c configs/config_cifar100_sgd_b0.json --b0 3", lambda g, t: 3),
        (
            "-c configs/config_cifar100_sgd_sqrt.json --b0 3 --alpha 2",
            lambda g, t: np.sqrt(9 + 2 * t),
        ),
        (
            "-c configs/config_cifar100_adagrad_norm.json --adanormb0 3",
            lambda g, t: np.sqrt(9 + t * (g**2).sum()),
        ),
    ],
)
def test_what_an_optimizer_does(flags, divided_by):
    """Two steps with the same loss and gradient, and momentum."""
    one = sweep_of(
        f"{flags} --lr 0.3 --wd 0.1 --mm 0.5 --scratch --model softmax --dataset digits "
        "--num_classes 10 --image_size none"
    )
    (run,) = sweep.build(one).values()
    params, gradient = np.array([1.0, -2.0]), np.array([0.5, 3.0])
    state, trace = run.tx.init(jnp.float32(params)), 0.0
    for t in (1, 2):
        updates, state = run.tx.update(
            jnp.float32(gradient), state, jnp.float32(params), value=jnp.float32(2.0)
        )
        trace = 0.5 * trace + gradient / divided_by(gradient, t) + 0.1 * params
        np.testing.assert_allclose(updates, -0.3 * trace, rtol=1e-5)


# Flags and files.


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("--lr 0.3", "--eta 0.3"),
        ("--lr 0.3", "--learning_rate 0.3"),
        ("--momentum 0.3", "--mm 0.3"),
        ("--weight_decay 0.3", "--wd 0.3"),
        ("--bs 7", "--batch_size 7"),
        ("--epochs 7", "--ep 7"),
        ("--model resnet50", "--model SWSL_ResNet50"),
    ],
)
def test_spellings_of_flags(one, other):
    assert config_of(f"{ADALOSS} {one}") == config_of(f"{ADALOSS} {other}") != config_of(ADALOSS)


@cache
def asked(flags):
    """What a sweep is asked for, by name."""
    of_sweep = sweep_of(flags)
    (entry,) = of_sweep.entries
    settings = {f.name: getattr(entry.config, f.name) for f in fields(Config)}
    options = {n: getattr(of_sweep, n) for n in ("seeds", "data_path", "root", "name", "resume")}
    more = ("checkpoint_path", "save_every", "more_epochs", "tensorboard", "further")
    wrapped = {"num_classes": of_sweep.run_of.keywords["num_classes"]}
    return settings | options | wrapped | {n: getattr(of_sweep, n) for n in more}


FLAGS = {
    "seed": ("5", {"seeds"}),
    "model": ("resnet", {"model"}),
    "num_classes": ("7", {"num_classes"}),
    "batch_size": ("7", {"batch_size"}),
    "validation_split": ("0.3", {"validation_split"}),
    "learning_rate": ("0.3", {"learning_rate"}),
    "momentum": ("0.3", {"momentum"}),
    "weight_decay": ("0.3", {"weight_decay"}),
    "b0": ("7", {"b0"}),
    "loss_weight": ("7", {"loss_weight"}),
    "loss_offset": ("-7", {"loss_offset"}),
    "epochs": ("7", {"epochs"}),
    "dataset": ("cifar10", {"dataset"}),
    "train_images": ("300", {"train_images"}),
    "image_size": ("none", {"image_size"}),
    "bf16": ("", {"bf16"}),
    "eval_every": ("2", {"eval_every"}),
    "seeds": ("3", {"seeds"}),
    "data_path": ("somewhere", {"data_path"}),
    "root": ("elsewhere", {"root"}),
    "exp_name": ("other", {"name"}),
    "resume": ("", {"resume"}),
    "more_epochs": ("2", {"more_epochs"}),
    "checkpoint": ("there", {"checkpoint_path"}),
    "save_every": ("3", {"save_every"}),
    "tensorboard": ("", {"tensorboard"}),
}
# Of which there are tests by themselves.
PROCESSES = {"coordinator", "num_processes", "process_id", "distributed", "connect_within"}
OTHER = {"help", "config", "weights", "scratch", "adanormb0"} | PROCESSES


def flag_of(dest):
    actions = train.make_parser()._actions
    return next(a for a in actions if a.dest == dest).option_strings[0]


def test_all_flags_are_listed_here():
    assert {a.dest for a in train.make_parser()._actions} == FLAGS.keys() | OTHER


@pytest.mark.parametrize("dest", FLAGS)
def test_every_flag_changes_what_is_asked_for(dest):
    value, changed = FLAGS[dest]
    before = asked(f"{ADALOSS} --scratch")
    after = asked(f"{ADALOSS} --scratch {flag_of(dest)} {value}")
    assert {name for name in before if before[name] != after[name]} == changed


def file_with(place, value, file="adaloss"):
    """The content of a file with another value at a place, names joined by dots."""
    content = json.loads((CONFIGS / f"config_cifar100_{file}.json").read_text())
    *above, last = place.split(".")
    inside = content
    for name in above:
        inside = inside.setdefault(name, {})
    inside[last] = value
    return json.dumps(content)


@pytest.mark.parametrize(
    ("place", "value", "changed"),
    [
        ("seed", 5, {"seeds"}),
        ("arch.type", "resnet50", {"model"}),
        ("num_classes", 10, {"num_classes"}),
        ("data_loader.args.batch_size", 7, {"batch_size"}),
        ("data_loader.args.validation_split", 0.3, {"validation_split"}),
        ("optimizer.args.lr", 1, {"learning_rate"}),
        ("optimizer.args.momentum", 0.9, {"momentum"}),
        ("optimizer.args.weight_decay", 0, {"weight_decay"}),
        ("train_loss.args.alpha", 7, {"loss_weight"}),
        ("train_loss.args.b0", 7, {"b0"}),
        ("train_loss.args.cc", -7, {"loss_offset"}),
        ("lr_scheduler.args.step_size", 4, {"milestones"}),
        ("lr_scheduler.args.gamma", 0.5, {"decay"}),
        ("trainer.epochs", 7, {"epochs"}),
    ],
)
def test_every_entry_of_a_file_has_an_effect(here, place, value, changed):
    (here / "mine.json").write_text(file_with(place, value))
    before, after = asked(f"{ADALOSS} --scratch"), asked.__wrapped__("-c mine.json --scratch")
    assert {name for name in before if before[name] != after[name]} == changed
    if "milestones" in changed:
        assert after["milestones"] == (4, 8)


def test_the_files_have_all_entries():
    """So that they show what can be set; what an optimizer does not use is not in its file."""
    seen = set()
    for path in CONFIGS.glob("*.json"):
        seen |= config_file.read(path, ENTRIES).keys()
    assert len(list(CONFIGS.glob("*.json"))) == 4
    assert {entry.setting for entry in ENTRIES} - seen == {
        "decay"
    }  # gamma, by which no step is taken.


def test_a_file_that_leaves_entries_out(here):
    (here / "short.json").write_text(
        '{"optimizer": {"type": "SGD"}, "train_loss": {"type": "adaloss"}}'
    )
    assert config_of("-c short.json") == BASE


def test_files_are_looked_for_here_first(here):
    assert sweep_of(f"{ADALOSS} --scratch").otherwise == "cifar100_adaloss"
    (here / "configs").mkdir()
    (here / "configs/config_cifar100_adaloss.json").write_text(file_with("name", "mine"))
    assert sweep_of(f"{ADALOSS} --scratch").otherwise == "mine"


def failed(capsys, flags, folder):
    """The one line about a command line that is wrong."""
    try:
        code = train.main(flags.split())
    except SystemExit as exit_:
        code = exit_.code
    assert code == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert [p.name for p in folder.iterdir()] in ([], ["mine.json"])
    return line


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("hello", "mine.json is not JSON: Expecting value: line 1 column 1"),
        ('{"seed": 1, "seed": 2}', "mine.json is not JSON: 'seed' is there twice"),
        ("[1]", "mine.json must have an object with entries, got [1]"),
        ("{}", "optimizer.type and train_loss.type must be SGD with AdaLoss, "),
        (file_with("n_gpu", 1), "mine.json: n_gpu is unknown, here are arch, data_loader, lr_"),
        (
            file_with("optimizer.args.nesterov", True),
            "mine.json: optimizer.args.nesterov is unknown, here are initial_accumulator_value,",
        ),
        (file_with("optimizer", "SGD"), 'mine.json: optimizer must be an object, got "SGD"'),
        (file_with("optimizer.args.lr", "0.1"), 'optimizer.args.lr must be a number, got "0.1"'),
        (file_with("optimizer.args.lr", None), "optimizer.args.lr must be a number, got null"),
        (file_with("optimizer.args.lr", -1), "optimizer.args.lr must be a positive number, got"),
        (file_with("trainer.epochs", 10.5), "trainer.epochs must be a whole number, got 10.5"),
        (file_with("trainer.epochs", True), "trainer.epochs must be a whole number, got true"),
        (file_with("seed", -1), "mine.json: seed must be a whole number from 0 to"),
        (file_with("name", "a/b"), "mine.json: name must be the name of a folder, not a path"),
        (file_with("arch.type", "vit"), "mine.json: arch.type must be one of"),
        (file_with("lr_scheduler.type", "Cosine"), "lr_scheduler.type must be one of StepLR"),
        (
            file_with("data_loader.args.validation_split", 1),
            "data_loader.args.validation_split must be more than 0 and below 1, got '1'",
        ),
        (
            file_with("optimizer.type", "Adagradnorm"),
            "must be SGD with AdaLoss, SGD with PlainLossb0, SGD with PlainLossSqrt, Adagradnorm "
            "with CrossEntropy, got Adagradnorm with AdaLoss",
        ),
        (
            file_with("train_loss.args.cc", 0.5, "sgd_sqrt"),
            "--cc: has no effect on SGD_DecaySqrt; in a file it is train_loss.args.cc",
        ),
    ],
)
def test_wrong_files(here, capsys, content, message):
    (here / "mine.json").write_text(content)
    assert message in failed(capsys, "-c mine.json --scratch", here)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("", "the following arguments are required: -c/--config"),
        ("-c nope.json", "-c: nope.json cannot be read: No such file or directory"),
        (f"{ADALOSS} --adanormb0 1", "--adanormb0: has no effect on AdaLoss"),
        ("-c configs/config_cifar100_adagrad_norm.json --b0 1", "--b0: has no effect on AdaGrad-"),
        ("-c configs/config_cifar100_sgd_b0.json --alpha 1", "--alpha: has no effect on SGD_Con"),
        (f"{ADALOSS} --b0 0", "--b0: must be a positive number, got '0'"),
        (f"{ADALOSS} --cc inf", "--cc: must be a finite number, got 'inf'"),
        (f"{ADALOSS} --validation_split 0", "--validation_split: must be more than 0 and below 1"),
        (f"{ADALOSS} --model vit", "--model: must be one of resnet, "),
        (f"{ADALOSS} --image_size 0", "--image_size: must be a whole number, at least 1"),
        (f"{SMALL} --image_size 15 --model small_vit", "--model: small_vit: height and width of"),
        (f"{SMALL} --validation_split 0.999", "--validation_split: cannot train on 1 images of"),
        (f"{SMALL} --num_classes 100", "--num_classes: must be 10 for digits, got 100"),
        (
            f"{SMALL} --dataset python_reference --image_size 8",
            "--image_size: python_reference is text, which has no images of 8 pixels",
        ),
        (f"{SMALL} --weights some", "--weights and --scratch: exclude each other"),
        (f"{ADALOSS} --model small_vit", "--weights: there are none for small_vit; --scratch"),
        (f"{ADALOSS} --weights some", "--weights: some cannot be read: No such file"),
    ],
)
def test_wrong_flags(here, capsys, flags, message):
    assert message in failed(capsys, flags, here)


# Runs.


def records_of(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(x).items() if k != "timing"} for x in lines]


LINE = f"{SMALL} --bs 88 --epochs 3 --seeds 2 --image_size 12 --name mine --resume"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of LINE, in a folder of its own."""
    root = tmp_path_factory.mktemp("runs")
    assert sweep.run(replace(sweep_of(f"{LINE} --root {root}"), one_device=True)) == 0
    return root / "mine"


def test_the_best_epoch_is_chosen_by_the_validation_images(finished):
    records = records_of(finished)
    assert [(r["seed"], r["epoch"], r["steps"]) for r in records] == [
        (seed, epoch, 6 * epoch) for seed in (123, 124) for epoch in range(4)
    ]
    results = json.loads((finished / "results.json").read_text())
    assert results["best_by"] == "validation_accuracy"
    measured = results["entries"]["AdaLoss"]["measured"]
    for n, seed in enumerate((123, 124)):
        mine = [r for r in records if r["seed"] == seed][1:]
        best = int(np.argmax([r["validation_accuracy"] for r in mine]))
        assert measured["best_epoch"][n] == best + 1
        assert measured["test_accuracy"]["best"]["by_seed"][n] == pytest.approx(
            100 * mine[best]["test_accuracy"], abs=1e-4
        )
    page = (finished / "table.md").read_text()
    assert "digits, 540 training, 60 validation and 1,197 test images; softmax, 1,450" in page
    assert "The best epoch is each seed's, chosen by the accuracy on the validation images." in page
    row = next(line for line in page.splitlines() if line.startswith("| AdaLoss |"))
    assert row.count(" ± ") == 4


def test_images_apart_are_not_trained_on_but_evaluated(finished):
    network = trained.load(finished / "checkpoints/seed_123")
    dataset, whole = network.run.dataset, data.load("digits")
    images, labels = dataset.pool("validation")
    assert len(images) == 60
    apart, used = ({x.tobytes() for x in part} for part in (images, dataset.train_images))
    assert apart | used == {x.tobytes() for x in whole.train_images}
    logits = network.network(network.inputs(images), train=False)
    last = network.records[-1]
    assert last["validation_accuracy"] == pytest.approx(np.mean(logits.argmax(-1) == labels))


def test_a_run_is_resumed(finished, tmp_path):
    whole = records_of(finished)
    cut = shutil.copytree(finished, tmp_path / "mine")
    newest = max((cut / "checkpoints/seed_124").glob("[0-9]*"), key=lambda p: int(p.name))
    shutil.rmtree(newest)
    lines = (cut / "metrics.jsonl").read_text().splitlines(keepends=True)
    (cut / "metrics.jsonl").write_text("".join(lines[:-1]))
    assert records_of(cut) == whole[:-1]
    assert sweep.run(replace(sweep_of(f"{LINE} --root {tmp_path}"), one_device=True)) == 0
    assert records_of(cut) == whole


def cifar100(folder):
    """An archive of CIFAR-100 with four images of each class to train on, and one to test on."""
    rng = np.random.default_rng(0)
    arrays = {
        split: (rng.integers(0, 256, (size, 32, 32, 3), np.uint8), np.arange(size) % 100)
        for split, size in (("train", 400), ("test", 100))
    }
    write_cifar(folder, "cifar100", "binary", cifar_files("cifar100", "binary", arrays))


def test_a_run_begins_with_pretrained_weights(here, monkeypatch):
    cifar100(here / "data")
    tiny = {"patch": 8, "width": 8, "depth": 1}
    monkeypatch.setitem(models.NETWORKS, "small_vit", partial(VisionTransformer, heads=2, **tiny))
    content = tensors(vit_shapes(classes=5, size=16, **tiny))
    save_file(content, here / "one")
    save_file(content | {"norm.bias": content["norm.bias"] + 1}, here / "two")

    def asked_for(flags):
        line = f"{ADALOSS} --model small_vit --data_path data --image_size 24 --seed 7 {flags}"
        one = replace(sweep_of(line), one_device=True)
        return one, sweep.build(one)

    one, runs = asked_for("--weights one")
    (run,) = runs.values()
    assert sweep.title_of(run).startswith(
        "cifar100, 360 training, 40 validation and 100 test images; small_vit, 3,420 parameters"
    )
    assert one.train.func is experiments.train.train
    state = one.train.keywords["start"](run.model, run.tx, 7)
    np.testing.assert_array_equal(state.params["norm"]["bias"], content["norm.bias"])
    assert state.params["head"]["kernel"].shape == (8, 100)
    np.testing.assert_array_equal(jax.random.key_data(state.key), [0, 7])

    folder = here / "folder"
    folder.mkdir()
    about, _ = sweep.open_folder(one, runs, folder)
    assert len(about["entries"]["AdaLoss"]["weights"]) == 16
    for other in ("--weights two", "--scratch"):
        with pytest.raises(OtherRun, match="folder is of another run: --weights is '"):
            sweep.open_folder(*asked_for(other), folder)
    sweep.open_folder(*asked_for("--weights one"), folder)
