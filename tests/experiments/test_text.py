"""Text as data, and the transformer that reads it."""

import gzip
from pydoc_data.topics import topics

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from experiments import data, steps
from experiments.config import Config, SettingError
from experiments.data import DataError, Text
from experiments.data.text import TEST_SHARE, WINDOW, in_windows
from experiments.models import Transformer
from experiments.run import run_of
from flax import nnx

LETTERS = "aäbc dé\n😀"


def random_text(length, seed=0):
    return "".join(np.random.default_rng(seed).choice(list(LETTERS), length))


def read(dataset, windows):
    return "".join(dataset.alphabet[n] for n in np.ravel(windows))


@pytest.mark.parametrize("rest", [1, 2, WINDOW])
def test_each_character_is_to_be_predicted_once(rest):
    count = TEST_SHARE + 3
    text = random_text(count * WINDOW + rest)
    dataset = in_windows("random", text)
    assert (dataset.train_size, dataset.test_size) == (count - 1, 1)
    inputs = np.concatenate([dataset.train_images, dataset.test_images])
    labels = np.concatenate([dataset.train_labels, dataset.test_labels])
    assert read(dataset, inputs) == text[: count * WINDOW]
    assert read(dataset, labels) == text[1 : count * WINDOW + 1]
    assert dataset.alphabet == "".join(sorted(LETTERS))
    assert dataset.classes == len(LETTERS)


def test_a_text_that_is_too_short():
    in_windows("just long enough", random_text(TEST_SHARE * WINDOW + 1))
    with pytest.raises(DataError, match="must have 32 windows of 64 characters, got 2048"):
        in_windows("too short", random_text(TEST_SHARE * WINDOW))


def test_files_of_text(tmp_path):
    first, second = random_text(1500, 1), random_text(1500, 2)
    (tmp_path / "b.txt").write_bytes(second.encode())
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(first.encode()))
    (tmp_path / "c.md").write_text("not read")
    dataset = data.load("text", tmp_path)
    have = read(dataset, np.concatenate([dataset.train_images, dataset.test_images]))
    assert have == f"{first}\n{second}"[: len(have)]


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("a.md", b"", "no .txt and no .txt.gz"),
        ("a.txt", b"\xff" * 4000, "a.txt cannot be read"),
        ("a.txt.gz", b"not packed", "a.txt.gz cannot be read"),
    ],
)
def test_files_that_are_no_text(name, content, named, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=named):
        data.load("text", tmp_path)


def test_text_needs_a_folder_and_the_reference_has_none(tmp_path):
    with pytest.raises(DataError, match="text needs the folder"):
        data.load("text")
    with pytest.raises(DataError, match="takes no data folder"):
        data.load("python_reference", tmp_path)


def test_the_reference_of_python():
    dataset = data.load("Python-Reference")
    first = topics[min(topics)]
    assert read(dataset, dataset.train_images[: len(first) // WINDOW]) in first
    assert dataset.train_size > 4_000
    assert dataset.fingerprint() == data.load("python_reference").fingerprint()


def test_the_last_training_windows_are_held_out():
    whole = in_windows("random", random_text(40 * WINDOW + 1))
    tuned = whole.with_held_out(5)
    assert isinstance(tuned, Text)
    np.testing.assert_array_equal(tuned.train_images, whole.train_images[:-5])
    np.testing.assert_array_equal(tuned.test_labels, whole.train_labels[-5:])
    for n in (0, whole.train_size, whole.train_size + 1):
        with pytest.raises(DataError, match=f"cannot hold out {n} of the 39 training windows"):
            whole.with_held_out(n)


# The transformer


def small(length=8, classes=5, **options):
    return Transformer((length,), classes, rngs=nnx.Rngs(0), width=16, heads=2, depth=2, **options)


def test_no_logit_depends_on_what_is_to_be_predicted():
    """And each depends on all characters before."""
    graph, weights = nnx.split(small())
    model = jax.jit(lambda text: nnx.merge(graph, weights)(text, train=True))
    text = jnp.array([[0, 1, 2, 3, 4, 0, 1, 2]])
    logits = model(text)
    for changed in range(8):
        other = model(text.at[0, changed].set((text[0, changed] + 1) % 5))
        same = np.asarray(jnp.abs(other - logits).max(axis=-1) < 1e-7)[0]
        np.testing.assert_array_equal(same, np.arange(8) < changed)


@pytest.mark.parametrize(("width", "depth", "classes", "length"), [(64, 2, 155, 64), (16, 3, 5, 8)])
def test_its_size(width, depth, classes, length):
    model = nnx.eval_shape(
        lambda: Transformer((length,), classes, rngs=nnx.Rngs(0), width=width, depth=depth)
    )
    attention = 4 * (width * width) + 4 * width
    layers = 8 * width * width + 5 * width
    embeddings = (classes + length) * width  # the logits' weights are the characters'
    size = sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param)))
    assert size == embeddings + depth * (attention + layers + 4 * width) + 2 * width


def test_bfloat16():
    text = jnp.arange(8)[None] % 5
    logits = small(dtype=jnp.bfloat16)(text, train=False)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, small()(text, train=False), atol=2e-2)


def test_networks_and_data_that_do_not_fit():
    digits, reference = data.load("digits"), data.load("python_reference")
    with pytest.raises(SettingError, match="reads windows of text, not images of shape"):
        run_of(Config(model="transformer"), digits)
    with pytest.raises(SettingError, match="resnet sees images, and python_reference is text"):
        run_of(Config(model="resnet"), reference)
    with pytest.raises(SettingError, match="the number of training windows"):
        run_of(Config(model="transformer", batch_size=10_000), reference)


def test_a_run_that_ends_with_a_learning_rate_of_0_is_not_extended():
    config = Config(model="transformer", batch_size=16, milestones=(), annealing="linear")
    with pytest.raises(SettingError, match="cannot be extended"):
        run_of(config, data.load("python_reference"), more_epochs=1)


def test_a_window_counts_with_the_mean_over_its_characters():
    dataset = in_windows("random", random_text(40 * WINDOW + 1))
    config = Config(model="transformer", batch_size=4, epochs=1, milestones=())
    run = run_of(config, dataset, on=jax.devices()[:1])
    params, stats = steps.init_weights(run.model, 0)
    counted = np.array([True, True, False])
    loss, correct = steps.eval_step(
        run.model, dataset.pool("train"), params, stats, np.arange(3), counted
    )
    model = nnx.merge(run.model.graph, params, stats)
    logits = np.float64(model(dataset.train_images[:2], train=False))
    chances = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    labels = dataset.train_labels[:2]
    chosen = np.take_along_axis(chances, labels[..., None], -1)[..., 0]
    np.testing.assert_allclose(loss, -np.log(chosen).mean(1).sum(), rtol=1e-5)
    np.testing.assert_allclose(correct, (logits.argmax(-1) == labels).mean(1).sum(), rtol=1e-6)
