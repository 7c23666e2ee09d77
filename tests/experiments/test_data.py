"""The data sets of the examples in memory: found, read, told apart, augmented, batched."""

import dataclasses
import gzip
import itertools
import json
import os
import pickle
import subprocess
import sys
from functools import partial
from pathlib import Path

import compare
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from experiments import data, names
from experiments.data import DataError, Dataset, archives, batches
from experiments.data.augment import crop_and_flip, resize_and_crop
from experiments.data.idx import read_idx
from experiments.steps import Model
from PIL import Image
from published import cifar_files, python2_pickle, write_cifar, write_idx

EXAMPLES = Path(compare.__file__).parent


def one_line(error):
    return "\n" not in str(error.value)


# Names.


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        *[(name, name) for name in data.DATASETS],
        *[(name, "cifar10") for name in ("CIFAR10", "CIFAR-10", "Cifar_10")],
        ("CIFAR-100", "cifar100"),
        *[(n, "fashion_mnist") for n in ("Fashion_MNIST", "FashionMNIST", "fashion-mnist")],
        ("MNIST", "mnist"),
        *[(name, "imagenet2012") for name in ("ImageNet", "imagenet", "ImageNet2012")],
    ],
)
def test_spellings(spelling, name):
    assert names.find(spelling, data.DATASETS, data.ALIASES) == name


def test_unknown_names():
    with pytest.raises(DataError, match=r"must be one of digits, .*, got 'cifar11'") as error:
        data.load("cifar11")
    assert one_line(error)


# Images in memory.


def test_the_split_of_the_digits_is_fixed():
    first, second = data.load("digits"), data.load("Digits")
    assert first.train_images.shape == (600, 8, 8, 1)
    assert first.test_images.shape == (1197, 8, 8, 1)
    assert first.image_shape == (8, 8, 1)
    assert first.train_images.dtype == np.float32
    assert (first.train_images.min(), first.train_images.max()) == (0, 16)
    np.testing.assert_array_equal(first.train_images, second.train_images)
    np.testing.assert_array_equal(first.test_labels, second.test_labels)
    shares = [
        np.bincount(labels) / len(labels) for labels in (first.train_labels, first.test_labels)
    ]
    np.testing.assert_allclose(*shares, atol=0.002)


def test_the_digits_take_no_folder(tmp_path):
    with pytest.raises(DataError, match="take no data folder"):
        data.load("digits", tmp_path)


def dataset_of(train_images, train_labels, **settings):
    defaults = {"mean": np.float32([0]), "std": np.float32([1])}
    return Dataset(
        name="some",
        classes=int(max(train_labels)) + 1,
        train_images=train_images,
        train_labels=np.int32(train_labels),
        test_images=train_images[:1],
        test_labels=np.int32(train_labels[:1]),
        **{**defaults, **settings},
    )


def test_standardised_in_a_step_or_outside():
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 5, 3), np.uint8)
    mean, std = [120.5, 110.25, 100.0], [60.0, 50.0, 40.0]
    dataset = dataset_of(images, [0, 1, 2, 3], mean=np.float32(mean), std=np.float32(std))
    expected = np.empty(images.shape)
    for n, y, x, c in np.ndindex(*images.shape):
        expected[n, y, x, c] = (float(images[n, y, x, c]) - mean[c]) / std[c]
    for found in (dataset.standardise(images), jax.jit(dataset.standardise)(images)):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    scaled = dataset.standardise(jnp.asarray(images), input_norm=False)
    assert isinstance(scaled, jax.Array)
    np.testing.assert_allclose(scaled, images / 255, rtol=1e-6)


def test_the_digits_standardised():
    digits = data.load("digits")
    pixels = digits.standardise(digits.train_images)
    assert abs(pixels.mean()) < 1e-6
    assert abs(pixels.std() - 1) < 1e-6
    assert digits.standardise(digits.test_images, input_norm=False).max() == 1


def test_fewer_training_images():
    labels = np.repeat([2, 0, 1], [60, 30, 10])[np.random.default_rng(0).permutation(100)]
    images = np.arange(100, dtype=np.uint8).reshape(100, 1, 1, 1)
    whole = dataset_of(images, labels)
    chosen = {n: whole.with_training_images(n) for n in (10, 20, 50, 100)}
    for n, dataset in chosen.items():
        assert len(dataset.train_images) == len(dataset.train_labels) == n
        which = dataset.train_images.ravel()
        np.testing.assert_array_equal(dataset.train_labels, labels[which])
        shares = np.bincount(dataset.train_labels, minlength=3)
        assert np.abs(shares - n * np.array([0.3, 0.1, 0.6])).max() < 1
        assert dataset.test_images is whole.test_images
    for small, large in itertools.pairwise(chosen.values()):
        assert set(small.train_images.ravel()) < set(large.train_images.ravel())
    np.testing.assert_array_equal(chosen[100].train_images, images)


@pytest.mark.parametrize("n", [-1, 0, 9, 601])
def test_too_few_or_too_many_training_images(n):
    with pytest.raises(DataError, match=f"cannot train on {n} images of digits: there are 600"):
        data.load("digits").with_training_images(n)


# Batches by index.


def test_a_pass_over_the_data_shows_an_image_once():
    stream = batches(0, examples=11, batch_size=3)
    first, second = (np.concatenate([next(stream) for _ in range(3)]) for _ in range(2))
    assert len(set(first)) == len(set(second)) == 9
    assert list(first) != list(second)


def test_the_orders_are_those_of_one_generator():
    rng = np.random.default_rng(5)
    expected = [rng.permutation(7)[:6].reshape(2, 3) for _ in range(3)]
    found = list(itertools.islice(batches(5, examples=7, batch_size=3), 6))
    np.testing.assert_array_equal(found, np.concatenate(expected))


@pytest.mark.parametrize("start", [0, 1, 3, 4, 7, 12])
def test_batches_resume_where_they_stopped(start):
    all_of_them = list(itertools.islice(batches(1, 13, 3), 20))
    rest = list(itertools.islice(batches(1, 13, 3, start=start), 20 - start))
    np.testing.assert_array_equal(rest, all_of_them[start:])


@pytest.mark.parametrize("size", [0, 12])
def test_batches_that_cannot_be(size):
    with pytest.raises(ValueError, match=f"batch_size must be from 1 to 11, got {size}"):
        next(batches(0, 11, size))


# Augmentation.


def test_crops_and_flips_are_those_of_padded_images():
    padding, height, width = 2, 4, 5
    images = np.random.default_rng(0).integers(1, 256, (600, height, width, 2), np.uint8)
    chosen = np.random.default_rng(1).permutation(600)[:500]
    augment = jax.jit(crop_and_flip, static_argnums=3)
    found = np.asarray(augment(jax.random.key(0), images, chosen, padding))
    assert found.dtype == np.uint8
    assert found.shape == (500, height, width, 2)

    seen = []
    for image, result in zip(images[chosen], found, strict=True):
        padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
        fits = []
        for top, left, flip in np.ndindex(2 * padding + 1, 2 * padding + 1, 2):
            crop = padded[top : top + height, left : left + width]
            if np.array_equal(crop[:, ::-1] if flip else crop, result):
                fits.append((top, left, flip))
        assert len(fits) == 1
        seen += fits
    # Each of the 50 ways is as likely as the others: 10 ± 3.2 of 500.
    counts = np.unique(np.array(seen), axis=0, return_counts=True)[1]
    assert len(counts) == 50
    assert ((counts - 10.0) ** 2 / 10).sum() < 100

    np.testing.assert_array_equal(found, augment(jax.random.key(0), images, chosen, padding))
    assert (found != augment(jax.random.key(1), images, chosen, padding)).any()
    as_floats = augment(jax.random.key(0), np.float32(images), chosen, padding)
    np.testing.assert_array_equal(as_floats, np.float32(found))


def test_no_padding_flips_only():
    images = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4, 1).repeat(8, axis=0)
    found = np.asarray(crop_and_flip(jax.random.key(0), images, np.arange(16), 0))
    flipped = (found == images[:, :, ::-1]).all(axis=(1, 2, 3))
    np.testing.assert_array_equal(found[~flipped], images[~flipped])
    assert set(flipped) == {False, True}


# Images of another size.


def resized_by_pillow(image, height, width, mode):
    """A channel after the other, as bytes ("L") or as float32 numbers ("F")."""
    channels = [
        np.asarray(
            Image.fromarray(c.astype({"L": "u1", "F": "f4"}[mode])).resize(
                (width, height), Image.Resampling.BILINEAR
            )
        )
        for c in np.moveaxis(image, -1, 0)
    ]
    return np.stack(channels, axis=-1).astype(np.float64)


@pytest.mark.parametrize(
    ("shape", "size", "larger"),
    [((32, 32, 3), 224, (256, 256)), ((8, 8, 1), 21, (24, 24)), ((28, 42, 1), 7, (8, 12))],
)
def test_resized_and_cropped_as_by_pillow(shape, size, larger):
    images = np.random.default_rng(0).integers(0, 256, (2, *shape), np.uint8)
    found = np.asarray(jax.jit(resize_and_crop, static_argnums=1)(images, size))
    assert (found.shape, found.dtype) == ((2, size, size, shape[-1]), np.float32)
    top, left = ((side - size) // 2 for side in larger)
    for mode, tolerance in (("F", 1e-3), ("L", 1.0)):
        expected = np.stack([resized_by_pillow(image, *larger, mode) for image in images])
        difference = found - expected[:, top : top + size, left : left + size]
        assert np.abs(difference).max() <= tolerance
        if mode == "L":  # Which is rounded, and our images are not.
            assert np.abs(difference).max() > 0.5


def test_crops_of_another_size_are_random():
    images = np.random.default_rng(0).integers(0, 256, (1, 5, 6, 2), np.uint8)
    crops = jax.jit(resize_and_crop, static_argnums=1)
    found = np.asarray(crops(images.repeat(400, axis=0), 7, jax.random.key(0)))
    larger = resized_by_pillow(images[0], 8, 9, "F")
    seen = []
    for result in found:
        fits = []
        for top, left, flip in np.ndindex(2, 3, 2):
            crop = larger[top : top + 7, left : left + 7]
            if np.allclose(crop[:, ::-1] if flip else crop, result, rtol=0, atol=1e-3):
                fits.append((top, left, flip))
        assert len(fits) == 1
        seen += fits
    # Each of the 12 ways is as likely as the others.
    counts = np.unique(np.array(seen), axis=0, return_counts=True)[1]
    assert len(counts) == 12
    assert ((counts - 400 / 12) ** 2 / (400 / 12)).sum() < 35


def test_images_of_another_size_in_a_step():
    images = np.random.default_rng(0).integers(0, 256, (6, 5, 5, 3), np.uint8)
    own = {"mean": np.float32([9, 8, 7]), "std": np.float32([3, 4, 5])}
    plain = dataset_of(images, range(6), **own).with_image_size(7)
    augmented = dataclasses.replace(plain, augmented=True)
    assert plain.image_shape == (7, 7, 3)
    pool, batch = plain.pool("train"), np.array([4, 1])
    expected = plain.standardise(np.asarray(resize_and_crop(images[batch], 7)))

    def taken(dataset, key=None):
        inputs, labels = Model(None, dataset).take(pool, batch, key)
        np.testing.assert_array_equal(labels, [4, 1])
        return np.asarray(inputs)

    keys = jax.random.split(jax.random.key(0), 3)
    for inputs in (taken(plain), taken(plain, keys[0]), taken(augmented)):
        np.testing.assert_allclose(inputs, expected, rtol=1e-5, atol=1e-5)
    assert any(abs(taken(augmented, key) - expected).max() > 0.1 for key in keys)
    (first, counted), *_ = plain.eval_batches("test", 500, 1)
    assert len(first) == 200
    assert counted.all()


def test_text_and_streams_have_no_other_size():
    text = data.load("python_reference")
    with pytest.raises(DataError, match="is text, which has no images of 64 pixels"):
        text.with_image_size(64)


# Images that are set apart.


def test_validation_images():
    labels = np.repeat([2, 0, 1], [60, 30, 10])[np.random.default_rng(0).permutation(100)]
    images = np.arange(100, dtype=np.uint8).reshape(100, 1, 1, 1)
    whole = dataset_of(images, labels)
    assert (whole.validation_size, whole.splits) == (0, ("train", "test"))
    dataset = whole.with_validation(10)
    assert dataset.splits == ("train", "test", "validation")
    assert (dataset.train_size, dataset.test_size, dataset.validation_size) == (90, 1, 10)
    apart, own = dataset.pool("validation")
    np.testing.assert_array_equal(np.bincount(own), [3, 1, 6])
    np.testing.assert_array_equal(own, labels[apart.ravel()])
    both = {*apart.ravel(), *dataset.train_images.ravel()}
    assert both == set(range(100))
    np.testing.assert_array_equal(apart, whole.with_held_out(10).test_images)
    assert dataset.test_images is whole.test_images
    digests = {d.fingerprint() for d in (whole, dataset, whole.with_training_images(90))}
    assert len(digests) == 3
    with pytest.raises(DataError, match="cannot hold out 100 of the 100 training images of some"):
        whole.with_validation(100)


# Folders of IDX files.


def make_idx_folder(folder, suffix, shape=(5, 6), before_idx="-"):
    rng = np.random.default_rng(0)
    arrays = {}
    for split, size in (("train", 40), ("t10k", 20)):
        arrays[split] = rng.integers(0, 256, (size, *shape)), rng.integers(0, 10, size)
        write_idx(folder / f"{split}-images{before_idx}idx3-ubyte{suffix}", arrays[split][0])
        write_idx(folder / f"{split}-labels{before_idx}idx1-ubyte{suffix}", arrays[split][1])
    return arrays


@pytest.mark.parametrize("suffix", [".gz", ""])
@pytest.mark.parametrize("before_idx", ["-", "."])
def test_idx_folders(tmp_path, suffix, before_idx):
    arrays = make_idx_folder(tmp_path, suffix, before_idx=before_idx)
    dataset = data.load("Fashion-MNIST", tmp_path)
    assert (dataset.name, dataset.classes) == ("fashion_mnist", 10)
    assert dataset.train_images.dtype == np.uint8
    np.testing.assert_array_equal(dataset.train_images[..., 0], arrays["train"][0])
    np.testing.assert_array_equal(dataset.test_labels, arrays["t10k"][1])
    pixels = arrays["train"][0]
    expected = (arrays["t10k"][0] - pixels.mean()) / pixels.std()
    found = dataset.standardise(dataset.test_images)[..., 0]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_the_comparison_on_an_idx_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_idx_folder(tmp_path, ".gz")
    flags = "--dataset fashion_mnist --batch_size 8 --network softmax --epochs 2 --seeds 2"
    flags += f" --optimizers sla --stages 0.5 --data_path {tmp_path}"
    assert compare.main(flags.split()) == 0
    records = (tmp_path / "runs/compare-fashion_mnist-1/metrics.jsonl").read_text().splitlines()
    assert len([json.loads(record) for record in records]) == 2 * 3


def damage(folder, kind):
    images = folder / "train-images-idx3-ubyte.gz"
    labels = folder / "train-labels-idx1-ubyte.gz"
    if kind == "missing":
        images.unlink()
    elif kind == "truncated":
        images.write_bytes(images.read_bytes()[:-200])
    elif kind == "not gzip":
        images.write_bytes(b"<html>404 Not Found</html>")
    elif kind == "short":
        with gzip.open(images, "rb") as file:
            content = file.read()
        with gzip.open(images, "wb") as file:
            file.write(content[:-1])
    elif kind == "swapped":
        images.write_bytes(labels.read_bytes())
    elif kind == "fewer labels":
        write_idx(labels, np.zeros(39))
    elif kind == "eleven classes":
        write_idx(labels, np.full(40, 10))
    elif kind == "empty":
        write_idx(images, np.zeros((0, 5, 6)))
        write_idx(labels, np.zeros(0))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "no train-images-idx3-ubyte or train-images.idx3-ubyte, gzipped or not"),
        ("truncated", "train-images-idx3-ubyte.gz cannot be read"),
        ("not gzip", "train-images-idx3-ubyte.gz cannot be read"),
        ("short", "should hold 1,200 bytes after its header, not 1,199"),
        ("swapped", "is not an IDX file of bytes in 3 dimensions"),
        ("fewer labels", "40 images but 39 labels"),
        ("eleven classes", "labels from 0 to 9"),
        ("empty", "labels from 0 to 9"),
    ],
)
def test_damaged_idx_folders(tmp_path, kind, message):
    make_idx_folder(tmp_path, ".gz")
    damage(tmp_path, kind)
    with pytest.raises(DataError, match=message) as error:
        data.load("mnist", tmp_path)
    assert one_line(error)


def test_an_absurd_idx_header(tmp_path):
    path = tmp_path / "images"
    path.write_bytes(bytes([0, 0, 8, 3]) + 12 * b"\xff")
    with pytest.raises(DataError, match="should hold"):
        read_idx(path, 3)


# CIFAR's archives.


def cifar_arrays(name, classes=None):
    rng = np.random.default_rng(0)
    classes = classes or int(name.removeprefix("cifar"))
    return {
        split: (rng.integers(0, 256, (n, 32, 32, 3), np.uint8), rng.integers(0, classes, n))
        for split, n in (("train", 40), ("test", 20))
    }


def check_cifar(dataset, name, arrays):
    assert (dataset.name, dataset.classes) == (name, int(name.removeprefix("cifar")))
    for split, (images, labels) in arrays.items():
        found_images, found_labels = dataset.pool(split)
        assert (found_images.dtype, found_labels.dtype) == (np.uint8, np.int32)
        np.testing.assert_array_equal(found_images, images)
        np.testing.assert_array_equal(found_labels, labels)


@pytest.fixture
def no_tensorflow_datasets(monkeypatch):
    monkeypatch.setattr(archives, "read", None)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("kind", ["python", "binary"])
def test_cifar_as_published(tmp_path, no_tensorflow_datasets, name, kind):
    arrays = cifar_arrays(name)
    files = cifar_files(name, kind, arrays)
    write_cifar(tmp_path / "packed", name, kind, files)
    unpacked = write_cifar(tmp_path / "unpacked", name, kind, files, packed=False)
    for folder in (tmp_path / "packed", tmp_path / "unpacked", unpacked):
        dataset = data.load(name, folder)
        check_cifar(dataset, name, arrays)
        assert dataset.train_images.flags.c_contiguous
        assert dataset.augmented


def test_both_cifars_in_the_default_folder(tmp_path, monkeypatch, no_tensorflow_datasets):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    for name in ("cifar10", "cifar100"):
        write_cifar(tmp_path, name, "python", cifar_files(name, "python", cifar_arrays(name)))
    for name in ("cifar10", "cifar100"):
        check_cifar(data.load(name), name, cifar_arrays(name))


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_cifar_pickled_by_python_3(tmp_path, no_tensorflow_datasets, protocol):
    arrays = cifar_arrays("cifar100")
    files = cifar_files("cifar100", "python", arrays, partial(pickle.dumps, protocol=protocol))
    write_cifar(tmp_path, "cifar100", "python", files)
    check_cifar(data.load("cifar100", tmp_path), "cifar100", arrays)


class Calls:
    """Unpickled, it makes a folder."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("function", "named"),
    [(os.mkdir, f"{os.name}.mkdir"), (eval, "builtins.eval"), (getattr, "builtins.getattr")],
)
def test_a_pickle_that_would_run_code(tmp_path, function, named):
    marker = tmp_path / "made"
    args = {os.mkdir: (str(marker),), eval: (f"__import__('os').mkdir({str(marker)!r})",)}
    content = pickle.dumps({"data": Calls(function, *args.get(function, ({}, "keys")))})
    files = cifar_files("cifar10", "python", cifar_arrays("cifar10")) | {"data_batch_2": content}
    place = write_cifar(tmp_path, "cifar10", "python", files)
    with pytest.raises(DataError, match=f"{place}/data_batch_2 cannot be read: .* {named}"):
        data.load("cifar10", tmp_path)
    assert not marker.exists()


def pickled(**changes):
    batch = {"data": np.zeros((8, 3072), np.uint8), "labels": [0] * 8} | changes
    return python2_pickle({key: value for key, value in batch.items() if value is not None})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "has no data_batch_2$"),
        (b"", "data_batch_2 cannot be read: "),
        (b"<html>404 Not Found</html>", "data_batch_2 cannot be read: "),
        (pickled()[:-20], "data_batch_2 cannot be read: "),
        (python2_pickle([1, 2]), "data_batch_2 cannot be read: it has no data with labels"),
        (pickled(labels=None), "it has no data with labels"),
        (pickled(data=np.zeros((8, 3072))), "it does not hold 3,072 bytes for each label"),
        (pickled(data=np.zeros((7, 3072), np.uint8)), "3,072 bytes for each label"),
        (pickled(data=np.zeros((8, 1024), np.uint8)), "3,072 bytes for each label"),
        (pickled(labels=[0.5] * 8), "labels should be integers"),
        (pickled(labels=[[0] * 4] * 2), "labels should be integers"),
        (pickled(labels=[*range(7), 10]), "data_batch_2 should have labels from 0 to 9"),
        (pickled(labels=[*range(7), -1]), "data_batch_2 should have labels from 0 to 9"),
        (
            pickled(data=np.zeros((0, 3072), np.uint8), labels=np.zeros(0, int)),
            "data_batch_2 should have labels from 0 to 9",
        ),
    ],
)
@pytest.mark.parametrize("packed", [True, False])
def test_damaged_files_of_cifar(tmp_path, content, message, packed):
    files = cifar_files("cifar10", "python", cifar_arrays("cifar10")) | {"data_batch_2": content}
    if content is None:
        del files["data_batch_2"]
    place = write_cifar(tmp_path, "cifar10", "python", files, packed)
    with pytest.raises(DataError, match=f"{place}.*{message}") as error:
        data.load("cifar10", tmp_path)
    assert one_line(error)


def test_damaged_binary_files_of_cifar(tmp_path):
    files = cifar_files("cifar100", "binary", cifar_arrays("cifar100"))
    files["test.bin"] = files["test.bin"][:-1]
    write_cifar(tmp_path, "cifar100", "binary", files)
    with pytest.raises(DataError, match=r"test\.bin cannot be read: .* records of 3,074 bytes"):
        data.load("cifar100", tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "header only", "one byte", "HTML", "a folder"])
def test_damaged_archives_of_cifar(tmp_path, damage):
    files = cifar_files("cifar10", "binary", cifar_arrays("cifar10"))
    path = write_cifar(tmp_path, "cifar10", "binary", files)
    content = bytearray(path.read_bytes())
    if damage == "a folder":
        path.unlink()
        path.mkdir()
    elif damage == "HTML":
        path.write_bytes(b"<html>404 Not Found</html>")
    elif damage == "one byte":  # Of a pixel: random bytes are not compressed.
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    else:
        path.write_bytes(content[: 12 if damage == "header only" else len(content) // 2])
    with pytest.raises(DataError, match=f"^{path} (cannot be read: |has no data_batch_1)") as error:
        data.load("cifar10", tmp_path)
    assert one_line(error)


# What may not be read.


@pytest.mark.parametrize("name", ["mnist", "cifar10", "imagenet"])
def test_a_folder_that_may_not_be_read(tmp_path, monkeypatch, name):
    def refuse(path):  # To root, who may run these tests, nothing is refused.
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(DataError, match=f"^{tmp_path} cannot be read: permission denied$"):
        data.load(name, tmp_path)


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    make_idx_folder(tmp_path, "")
    place = write_cifar(
        tmp_path, "cifar10", "python", cifar_files("cifar10", "python", cifar_arrays("cifar10"))
    )

    def refuse(path, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("tarfile.open", refuse)
    with pytest.raises(DataError, match=f"^{place} cannot be read: permission denied$"):
        data.load("cifar10", tmp_path)
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match=r"-images-idx3-ubyte cannot be read: permission denied$"):
        data.load("mnist", tmp_path)


# Fingerprints.


def test_fingerprints_tell_data_apart():
    images = np.random.default_rng(0).integers(0, 256, (12, 4, 3, 3), np.uint8)
    labels = np.arange(12, dtype=np.int32)
    first = dataset_of(images, labels)
    one_pixel, one_label = images.copy(), labels.copy()
    one_pixel[5, 2, 1, 0] ^= 1
    one_label[7] = 3
    changes = [
        {"train_images": one_pixel},
        {"train_images": images[::-1]},
        {"train_images": images.reshape(12, 3, 4, 3)},
        {"train_images": images.view(np.int8)},
        {"train_images": images[:11], "train_labels": labels[:11]},
        {"train_labels": one_label},
        {"test_images": one_pixel[5:6]},
        {"test_labels": np.int32([1])},
        {"mean": np.float32([0.5])},
        {"std": np.float32([0.5])},
    ]
    others = [dataclasses.replace(first, **change).fingerprint() for change in changes]
    assert len({first.fingerprint(), *others}) == 1 + len(changes)
    assert all(len(digest) == 16 and int(digest, 16) >= 0 for digest in others)
    strided = np.asfortranarray(images)
    assert dataclasses.replace(first, train_images=strided).fingerprint() == first.fingerprint()


def test_fingerprints_of_the_same_data_are_the_same(tmp_path, no_tensorflow_datasets):
    fixed = dataset_of(np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3), [0, 1])
    assert fixed.fingerprint() == "e1f56f9356e8fde3"
    digests = set()
    for kind in ("python", "binary"):
        files = cifar_files("cifar10", kind, cifar_arrays("cifar10"))
        write_cifar(tmp_path / kind, "cifar10", kind, files)
        digests.add(data.load("cifar10", tmp_path / kind).fingerprint())
    assert len(digests) == 1


def test_a_fingerprint_is_computed_once(monkeypatch):
    dataset = dataset_of(np.zeros((2, 2, 2, 3), np.uint8), [0, 1])
    first = dataset.fingerprint()
    monkeypatch.setattr("hashlib.blake2b", None)
    assert dataset.fingerprint() == first


# What is imported.


def test_the_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match=r"digits needs sklearn.*: pip install -e '.\[examples\]'$"):
        data.load("digits")


def test_nothing_is_imported_before_it_is_needed():
    code = "import sys, experiments.data; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=EXAMPLES, capture_output=True, text=True, check=True
    )
    heavy = {"PIL", "grain", "jax", "requests", "sklearn", "tensorflow", "tensorflow_datasets"}
    assert not set(done.stdout.split()) & heavy
