"""Names as data, and the LSTM that reads them."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from experiments import data
from experiments.config import Config, SettingError
from experiments.data.person_names import ALPHABET, LONGEST, TEST_SHARE, by_language, fold
from experiments.models import LSTM
from experiments.run import run_of
from flax import nnx

LENGTH, LETTERS = 5, 4


def read(dataset, images):
    """The names that standardised images stand for."""
    rows = dataset.standardise(images)
    assert rows.shape[1:] == dataset.image_shape
    return ["".join(ALPHABET[c.argmax()] for c in row if c.any()) for row in rows]


@pytest.mark.parametrize(
    ("name", "folded"),
    [
        ("Müller-Lüdenscheidt", "muller-ludenscheidt"),
        ("Straßmann", "strassmann"),
        ("Đurić", "duric"),
        ("van 't Hof", "van 't hof"),
        ("Işıl", "isil"),
        ("İpek", "ipek"),
        ("Sæther Øst", "saether ost"),
        ("'Bouwer, J.", "bouwer j"),
        ("…", ""),
    ],
)
def test_names_are_folded(name, folded):
    assert fold(name) == folded


def test_each_name_is_in_one_part_with_its_language():
    own = {
        "one": {f"Ann{letter}a" for letter in "abcdefghij"} | {"Émile", "Toolongtobeaname X"},
        "two": {f"Bob {letter}" for letter in "abcde"} | {"Emile", "Bob A", "-"},
    }
    dataset = by_language(own)
    assert (dataset.classes, dataset.languages) == (2, ("one", "two"))
    found = {"train": set(), "test": set()}
    for part, names in found.items():
        images, labels = dataset.pool(part)
        names |= set(zip(read(dataset, images), labels.tolist(), strict=True))
    assert len(found["test"]) == 10 // TEST_SHARE + 5 // TEST_SHARE
    assert not found["train"] & found["test"]
    # "emile" is in both languages, and the last of the first is too long.
    assert found["train"] | found["test"] == {
        *((f"ann{letter}a", 0) for letter in "abcdefghij"),
        *((f"bob {letter}", 1) for letter in "abcde"),
    }


def test_the_split_does_not_depend_on_the_order():
    names = [f"name {a}{b}" for a in ALPHABET[:9] for b in ALPHABET[:9]]
    one, two = (by_language({"x": order, "y": ["z", "y"]}) for order in (names, names[::-1]))
    assert one.fingerprint() == two.fingerprint()


def test_the_names_of_faker():
    dataset = data.load("names")
    assert dataset.classes == len(dataset.languages) == 10
    assert set(dataset.train_labels) == set(dataset.test_labels) == set(range(10))
    train, test = (read(dataset, dataset.pool(part)[0]) for part in ("train", "test"))
    assert len({*train, *test}) == len(train) + len(test)
    assert dataset.test_size == pytest.approx(dataset.train_size / (TEST_SHARE - 1), rel=0.01)
    assert max(map(len, train)) <= LONGEST
    few = dataset.with_training_images(500)
    assert set(few.train_labels) == set(range(10))


def test_names_have_no_folder_and_a_missing_package_is_named(tmp_path, monkeypatch):
    with pytest.raises(data.DataError, match="take no data folder"):
        data.load("names", tmp_path)
    monkeypatch.setitem(sys.modules, "faker.providers.person.de_DE", None)
    with pytest.raises(data.DataError, match=r"pip install -e '.\[names\]'"):
        data.load("names")


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def lstm_in_numpy(params, name):
    """The equations of the cell, one character after the other, in float64."""
    cell = jax.tree.map(np.float64, params["layer"]["cell"])
    width = len(cell["dense_h"]["kernel"])
    c, h = np.zeros(width), np.zeros(width)
    for character in name:
        y = cell["dense_i"]["kernel"][character]
        y = y + h @ cell["dense_h"]["kernel"] + cell["dense_h"]["bias"]
        i, f, g, o = np.split(y, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
    return h @ np.float64(params["head"]["kernel"]) + np.float64(params["head"]["bias"])


def test_the_lstm_is_that_of_the_equations():
    """Of names of all lengths; what is behind their end has no influence."""
    model = LSTM((LENGTH, LETTERS), 3, width=6, rngs=nnx.Rngs(0))
    params = nnx.as_pure(nnx.state(model, nnx.Param))
    rng = np.random.default_rng(0)
    params["layer"]["cell"]["dense_h"]["bias"] = jnp.asarray(rng.normal(size=24), jnp.float32)
    nnx.update(model, params)
    names = [rng.integers(LETTERS, size=length) for length in range(1, LENGTH + 1)]
    inputs = np.zeros((len(names), LENGTH, LETTERS), np.float32)
    for row, name in zip(inputs, names, strict=True):
        row[np.arange(len(name)), name] = 1
    logits = model(jnp.asarray(inputs), train=True)
    expected = np.stack([lstm_in_numpy(params, name) for name in names])
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    assert np.ptp(expected, axis=0).min() > 0.01


def test_networks_and_data_that_do_not_fit():
    names, digits = by_language({"x": "abcdefghij", "y": "klmnopqrst"}), data.load("digits")
    fitting = Config(model="lstm", batch_size=8, epochs=1)
    assert run_of(fitting, names).model.size == 4 * 64 * (64 + len(ALPHABET) + 1) + 2 * 65
    with pytest.raises(SettingError, match="reads names, not examples of shape"):
        run_of(Config(model="lstm"), digits)
    with pytest.raises(SettingError, match="resnet sees images, and names is text"):
        run_of(Config(model="resnet", batch_size=8), names)
    with pytest.raises(SettingError, match="reads windows of text"):
        run_of(Config(model="transformer", batch_size=8), names)
