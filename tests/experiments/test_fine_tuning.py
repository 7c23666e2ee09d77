"""Fine-tuning with each b0 from pre-trained networks, and the classifier of names, in miniature."""

import dataclasses
import functools
import json
import math
import string
from dataclasses import replace
from pathlib import Path

import fine_tuning
import jax
import numpy as np
import optax
import pytest
import text_classifier
from experiments import data, models, trained
from experiments.config import SettingError
from experiments.data.person_names import by_language
from experiments.models import LSTM
from experiments.steps import Model, init_weights
from flax import nnx


class Tiny(nnx.Module):
    """A hidden layer, and the head."""

    def __init__(self, shape, classes, *, dtype=None, rngs):
        self.hidden = nnx.Linear(math.prod(shape), 6, rngs=rngs)
        self.head = nnx.Linear(6, classes, rngs=rngs)

    def __call__(self, x, *, train):
        return self.head(nnx.relu(self.hidden(x.reshape(len(x), -1))))


class Headless(Tiny):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.last, self.head = self.head, None

    def __call__(self, x, *, train):
        return self.last(nnx.relu(self.hidden(x.reshape(len(x), -1))))


@pytest.fixture
def flags(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(models.NETWORKS, "tiny", Tiny)
    own = ["--network", "tiny", "--train_images", "300", "--epochs", "2", "--methods"]
    own += ["adaloss,sgd_decay_sqrt", "--b0", "1", "--seeds", "1"]
    return [*own, "--pretraining_epochs", "3"]


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_halves_share_no_class():
    digits = data.load("digits")
    halves = fine_tuning.halves_of(digits)
    for number, half in enumerate(halves):
        assert half.classes == 5
        mine = digits.train_labels // 5 == number
        np.testing.assert_array_equal(half.train_images, digits.train_images[mine])
        np.testing.assert_array_equal(half.train_labels, digits.train_labels[mine] % 5)
        assert half.test_size == (digits.test_labels // 5 == number).sum()
        assert set(half.test_labels) == set(range(5))


@pytest.mark.parametrize("changes", [{"classes": 9}, {}])
def test_data_without_two_halves(changes):
    digits = data.load("digits")
    dataset = dataclasses.replace(digits, classes=9) if changes else data.load("python_reference")
    with pytest.raises(SettingError, match="got 9" if changes else "got python_reference"):
        fine_tuning.halves_of(dataset)


def test_every_method_starts_from_the_pretrained_network_with_a_new_head(flags, tmp_path, capsys):
    assert fine_tuning.main(flags) == 0
    folder = tmp_path / "runs/fine_tuning-digits"
    before = metrics(folder / "fine_tuning")
    starts = {r["optimizer"]: r["test_loss"] for r in before if r["epoch"] == 0}
    assert list(starts) == ["AdaLoss, b0 = 1", "SGD_DecaySqrt, b0 = 1"]

    # What comes before the first step, in NumPy: the body of the checkpoint, and another head.
    part = data.load("digits")
    build = functools.partial(fine_tuning.run_of_half, half=0)
    images = part.standardise(part.test_images).reshape(part.test_size, -1)
    there = trained.load(folder / "pretraining/checkpoints/seed_0", run_of=build)
    assert there.records[-1]["train_loss"] < 0.9 * there.records[0]["train_loss"]
    hidden, head = there.params["hidden"], init_weights(there.run.model, 0)[0]["head"]
    features = np.maximum(images @ np.float64(hidden["kernel"]) + hidden["bias"], 0)
    chosen = part.test_labels >= 5
    logits = (features @ np.float64(head["kernel"]) + head["bias"])[chosen]
    right = logits[np.arange(len(logits)), part.test_labels[chosen] - 5]
    loss = np.mean(np.log(np.exp(logits).sum(axis=1)) - right)
    np.testing.assert_allclose(list(starts.values()), loss, rtol=1e-4)

    # The same command trains nothing again. `--train_images` and `--epochs` are not pre-training's.
    capsys.readouterr()
    assert fine_tuning.main(flags) == 0
    assert capsys.readouterr().out.count("done before") == 1 + 2
    assert metrics(folder / "fine_tuning") == before
    about = json.loads((folder / "pretraining/settings.json").read_text())["entries"]
    config = about["Pre-training"]
    assert (config["train_images"], config["optimizer"], config["epochs"]) == (None, "adamw", 3)
    assert fine_tuning.main([*flags[:-1], "4"]) == 1
    assert "another run: --pretraining_epochs is 3 there and 4 here" in capsys.readouterr().err


def from_known_weights():
    """The first state of fine-tuning from the weights of another seed; and these."""
    dataset = fine_tuning.halves_of(data.load("digits"))[1]
    model = Model(functools.partial(Tiny, (8, 8, 1), 5), dataset, name="mine")
    params, stats = init_weights(model, 7)
    known = trained.Trained(None, 0, params, stats, [])
    return fine_tuning.with_new_head(lambda seed: known, model, optax.sgd(0.1), 1), params


def test_what_is_pretrained_survives_the_first_step():
    """The state is donated to it."""
    state, params = from_known_weights()
    np.testing.assert_array_equal(state.params["hidden"]["kernel"], params["hidden"]["kernel"])
    assert np.any(state.params["head"]["kernel"] != params["head"]["kernel"])
    jax.tree.map(lambda leaf: leaf.delete(), state.params)
    assert np.isfinite(params["hidden"]["kernel"]).all()


def test_a_network_without_a_head_is_named(monkeypatch):
    monkeypatch.setitem(models.NETWORKS, "headless", Headless)
    config = replace(fine_tuning.BASE, model="headless")
    with pytest.raises(SettingError, match="headless has no layer `head`"):
        fine_tuning.run_of_half(config, data.load("digits"), half=1)


def test_what_is_wrong_with_fine_tuning_is_said_before_pretraining(flags, capsys):
    assert fine_tuning.main([*flags, "--train_images", "3"]) == 2
    assert "--train_images" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_the_languages_of_names_are_learnt(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    letters = [string.ascii_lowercase[:9], string.ascii_lowercase[9:18]]
    names = by_language(
        {own[0]: {a + b + c for a in own for b in own for c in own} for own in letters}
    )
    monkeypatch.setitem(data.DATASETS, "names", lambda folder: names)
    monkeypatch.setitem(models.NETWORKS, "lstm", functools.partial(LSTM, width=8))
    chosen = ["--methods", "adaloss", "--b0", "2", "--seeds", "1", "--epochs", "1"]
    assert text_classifier.main([*chosen, "--name", "mine"]) == 0
    last = [r for r in metrics(tmp_path / "runs/mine") if r["epoch"] == 1]
    assert [r["test_accuracy"] for r in last] == [1]
    table = (tmp_path / "runs/mine/table.md").read_text()
    assert "| 2            |  100.00 |" in table
    assert (tmp_path / "runs/mine/text_classifier.png").exists()
