"""Data sets through TensorFlow Datasets, without a network, and ImageNet's stream of them.

What TensorFlow would prepare is written here without it. Only the test that begins with
the archives themselves needs TensorFlow, and is skipped where it is not installed.
"""

import dataclasses
import hashlib
import importlib.util
import io
import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
import requests
import tensorflow_datasets as tfds
from experiments import data
from experiments.data import DataError, archives, stream
from PIL import Image
from published import encoded, write_archives, write_prepared
from tensorflow_datasets.image_classification import mnist

SHAPES = {"cifar10": (32, 32, 3), "cifar100": (32, 32, 3), "fashion_mnist": (28, 28, 1)}
IMAGE_SIZES = [(300, 260), (256, 256), (270, 400), (500, 300)]


def one_line(error):
    return "\n" not in str(error.value)


# Through TensorFlow Datasets.


def random_arrays(name):
    rng = np.random.default_rng(0)
    classes = 100 if name == "cifar100" else 10
    return {
        split: (
            rng.integers(0, 256, (size, *SHAPES[name]), np.uint8),
            rng.integers(0, classes, size),
        )
        for split, size in (("train", 40), ("test", 20))
    }


def check_arrays(dataset, name, arrays, in_order):
    assert dataset.name == name
    assert dataset.image_shape == SHAPES[name]
    assert dataset.classes == (100 if name == "cifar100" else 10)
    for split, (images, labels) in arrays.items():
        found = getattr(dataset, f"{split}_images"), getattr(dataset, f"{split}_labels")
        assert (found[0].dtype, found[1].dtype) == (np.uint8, np.int32)
        pairs = [
            [(int(label), image.tobytes()) for image, label in zip(*both, strict=True)]
            for both in (found, (images, labels))
        ]
        assert pairs[0] == pairs[1] if in_order else sorted(pairs[0]) == sorted(pairs[1])


@pytest.mark.parametrize("name", SHAPES)
def test_what_is_prepared_is_read(tmp_path, name):
    arrays = random_arrays(name)
    splits = {
        split: [
            {"image": encoded(image), "label": int(label)}
            | ({} if name == "fashion_mnist" else {"id": f"{split}_{i}"})
            | ({"coarse_label": int(label) // 5} if name == "cifar100" else {})
            for i, (image, label) in enumerate(zip(images, labels, strict=True))
        ]
        for split, (images, labels) in arrays.items()
    }
    write_prepared(tmp_path, name, splits)
    dataset = data.load(name.upper(), tmp_path)
    check_arrays(dataset, name, arrays, in_order=True)
    if name == "cifar10":
        np.testing.assert_allclose(dataset.mean / 255, [0.4914, 0.4822, 0.4465], rtol=1e-6)
        np.testing.assert_allclose(dataset.std / 255, [0.2023, 0.1994, 0.2010], rtol=1e-6)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no test split", "3.0.2 cannot be read: "),
        ("half a file", "cifar10 cannot be read: .*records file"),
        ("half a description", "cifar10 cannot be read: .*JSON"),
        ("another format", "cifar10 cannot be read: .*TFRECORD"),
    ],
)
def test_what_cannot_be_read(tmp_path, kind, message):
    examples = [
        {"image": encoded(image), "label": int(label), "id": ""}
        for image, label in zip(*random_arrays("cifar10")["train"], strict=True)
    ]
    splits = {"train": examples, "test": examples}
    if kind == "no test split":
        del splits["test"]
    write_prepared(tmp_path, "cifar10", splits)
    records, description = (
        next(tmp_path.glob(f"cifar10/*/{file}")) for file in ("*train*", "dataset_info.json")
    )
    if kind == "half a file":
        records.write_bytes(records.read_bytes()[: records.stat().st_size // 2])
    elif kind == "half a description":
        description.write_text(description.read_text()[:50])
    elif kind == "another format":
        description.write_text(description.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(DataError, match=message) as error:
        data.load("cifar10", tmp_path)
    assert one_line(error)


def test_a_folder_that_is_not_there():
    for name in ("mnist", "cifar10", "imagenet"):
        with pytest.raises(DataError, match="there is no folder /nowhere"):
            data.load(name, Path("/nowhere"))


def without(monkeypatch, *modules):
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in modules else find(name)
    )


def with_tensorflow(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: object() if name == "tensorflow" else find(name)
    )


PACKAGES = ["PIL", "absl", "array_record", "grain", "importlib_resources", "tensorflow_datasets"]
MESSAGES = {
    "cifar10": "put cifar-10-python.tar.gz or cifar-10-binary.tar.gz there, to be read as is; or "
    "let TensorFlow Datasets prepare it from the network or from cifar-10-binary.tar.gz in "
    "downloads/manual there (pip install -e '.[prepare]') and read it (pip install -e '.[tfds]')",
    "cifar100": "put cifar-100-python.tar.gz or cifar-100-binary.tar.gz there, to be read as is; "
    "or let TensorFlow Datasets prepare it from the network or from cifar-100-binary.tar.gz in "
    "downloads/manual there (pip install -e '.[prepare]') and read it (pip install -e '.[tfds]')",
    **dict.fromkeys(
        ("mnist", "fashion_mnist"),
        "put train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz, "
        "t10k-labels-idx1-ubyte.gz there, to be read as is; or let TensorFlow Datasets prepare it "
        "from the network or from the same files in downloads/manual there "
        "(pip install -e '.[prepare]') and read it (pip install -e '.[tfds]')",
    ),
    "imagenet2012": "put ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar into "
    "downloads/manual there, and let TensorFlow Datasets prepare it "
    "(pip install -e '.[prepare]') and read it (pip install -e '.[tfds]')",
}


@pytest.mark.parametrize("extras", ["none", "tfds", "prepare"])
@pytest.mark.parametrize("name", MESSAGES)
def test_what_is_absent_whatever_is_installed(monkeypatch, tmp_path, name, extras):
    def unreachable(*args, **kwargs):
        raise requests.ConnectionError("name resolution failed\nfor good")

    monkeypatch.setattr(requests, "head", unreachable)
    if extras == "prepare":
        with_tensorflow(monkeypatch)
    else:
        without(monkeypatch, "tensorflow", *(PACKAGES if extras == "none" else ()))
    with pytest.raises(DataError) as empty:
        data.load(name, tmp_path)
    # Neither an unfinished preparation nor one archive of two makes a difference.
    (tmp_path / name / "unfinished").mkdir(parents=True)
    (tmp_path / "downloads/manual").mkdir(parents=True)
    (tmp_path / "downloads/manual" / archives.ARCHIVES["imagenet2012"][0]).touch()
    with pytest.raises(DataError) as almost_empty:
        data.load(name, tmp_path)
    message = f"{name} is not in {tmp_path}: {MESSAGES[name]}"
    assert str(empty.value) == str(almost_empty.value) == message


def test_imagenet_is_not_downloaded(monkeypatch, tmp_path):
    with_tensorflow(monkeypatch)
    monkeypatch.setattr(archives, "_reachable", lambda url: True)
    with pytest.raises(DataError, match=r"^imagenet2012 is not in "):
        data.load("imagenet", tmp_path)


def test_another_version_is_not_the_data_set(monkeypatch, tmp_path):
    (tmp_path / "cifar10/1.0.0").mkdir(parents=True)
    (tmp_path / "cifar10/1.0.0/dataset_info.json").write_text("{}")
    without(monkeypatch, "tensorflow")
    monkeypatch.setattr(archives, "_reachable", lambda url: True)
    with pytest.raises(DataError, match=r"^cifar10 is not in "):
        data.load("cifar10", tmp_path)


def test_the_default_folder(monkeypatch, tmp_path):
    without(monkeypatch, "tensorflow")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    with pytest.raises(DataError, match=f"^cifar10 is not in {tmp_path}/tensorflow_datasets: "):
        data.load("cifar10")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", MESSAGES)
def test_the_archives_are_those_that_would_be_downloaded(name):
    downloads = tfds.builder_cls(name).url_infos
    names = {info.filename or Path(url).name for url, info in downloads.items()}
    assert set(archives.ARCHIVES[name]) == names


@pytest.mark.parametrize("module", PACKAGES)
def test_without_a_package_to_read(monkeypatch, tmp_path, module):
    examples = [{**example, "file_name": ""} for example in pictures(1)]
    write_prepared(tmp_path, "imagenet2012", {"train": examples, "validation": examples})
    without(monkeypatch, module)
    with pytest.raises(DataError) as error:
        data.load("imagenet", tmp_path)
    assert str(error.value) == f"imagenet2012 needs {module}: pip install -e '.[tfds]'"


def test_a_preparation_that_fails_is_one_line(monkeypatch, tmp_path):
    def fail(*args, **kwargs):
        raise RuntimeError("wrong checksum\nand more")

    with_tensorflow(monkeypatch)
    monkeypatch.setattr(archives, "_reachable", lambda url: True)
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fail)
    with pytest.raises(DataError, match=r"cifar10 could not be prepared.*: wrong checksum$"):
        data.load("cifar10", tmp_path)


# Archives in their publishers' own formats, prepared by TensorFlow Datasets itself.


needs_tensorflow = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is None, reason="needs the extra `prepare`"
)


@needs_tensorflow
@pytest.mark.parametrize("name", SHAPES)
def test_archives_put_there_by_hand(monkeypatch, tmp_path, name):
    if name == "fashion_mnist":  # Its format is read by numbers of examples that are known.
        monkeypatch.setattr(mnist, "_TRAIN_EXAMPLES", 40)
        monkeypatch.setattr(mnist, "_TEST_EXAMPLES", 20)
    arrays = random_arrays(name)
    by_hand = tmp_path / "downloads/manual"
    write_archives(by_hand, name, arrays)
    with pytest.raises(DataError, match="wrong checksum") as error:
        data.load(name, tmp_path)
    assert one_line(error)

    known = tfds.builder_cls(name).url_infos
    for url, info in known.items():
        content = (by_hand / info.filename).read_bytes()
        own = dataclasses.replace(
            info, size=len(content), checksum=hashlib.sha256(content).hexdigest()
        )
        monkeypatch.setitem(known, url, own)
    for _ in range(2):  # Once prepared, it is only read.
        check_arrays(data.load(name, tmp_path), name, arrays, in_order=False)
        monkeypatch.setattr(archives, "_prepare", None)


# ImageNet, as a stream.


def pictures(n, kind="JPEG"):
    """Images of several sizes: red grows from left to right, green downwards."""
    examples = []
    for i in range(n):
        width, height = IMAGE_SIZES[i % len(IMAGE_SIZES)]
        y, x = np.mgrid[:height, :width]
        pixels = np.stack([x * 255 // width, y * 255 // height, np.full_like(x, 9 * i)], axis=-1)
        examples.append({"image": encoded(np.uint8(pixels), kind), "label": i})
    return examples


def stream_of(examples, workers=0):
    return data.Stream(
        name="imagenet2012",
        classes=1000,
        mean=np.float32([1, 2, 3]),
        std=np.float32([4, 5, 6]),
        train=examples,
        test=examples,
        workers=workers,
    )


def take(stream, n):
    return list(itertools.islice(stream, n))


def same_batches(first, second):
    for (a, labels), (b, other_labels) in zip(first, second, strict=True):
        np.testing.assert_array_equal(labels, other_labels)
        np.testing.assert_array_equal(a, b)


def test_a_stream_of_training_batches():
    stream = stream_of(pictures(6))
    assert (stream.train_size, stream.test_size, stream.image_shape) == (6, 6, (224, 224, 3))
    run = take(stream.train_batches(3, batch_size=4), 6)
    for images, labels in run:
        assert (images.shape, images.dtype) == ((4, 224, 224, 3), np.uint8)
        assert (labels.shape, labels.dtype) == ((4,), np.int32)
    labels = np.concatenate([labels for _, labels in run]).reshape(4, 6)
    assert all(set(labels[n]) == set(range(6)) for n in range(4))
    assert len({tuple(order) for order in labels}) > 1
    # Blue tells which image it is; the same image is cropped differently each time.
    images = np.concatenate([images for images, _ in run])
    np.testing.assert_allclose(images[..., 2].mean(axis=(1, 2)), 9 * labels.ravel(), atol=2)
    assert len({image.tobytes() for image in images}) == 24

    same_batches(take(stream.train_batches(3, 4), 6), run)
    for start in (1, 4):
        same_batches(take(stream.train_batches(3, 4, start_step=start), 6 - start), run[start:])
    assert (take(stream.train_batches(4, 4), 1)[0][0] != run[0][0]).any()


def test_processes_share_the_images():
    stream = stream_of(pictures(8))
    for shards in (
        [take(stream.train_batches(0, 4, 0, p, 2), 2) for p in range(2)],
        [list(stream.test_batches(4, p, 2)) * 2 for p in range(2)],
    ):
        for passed in range(2):
            first, second = (set(shard[passed][1]) for shard in shards)
            assert len(first) == len(second) == 4
            assert first | second == set(range(8))


def test_every_test_image_once():
    examples = pictures(5, "PNG")
    run = list(stream_of(examples).test_batches(2))
    assert [len(images) for images, _ in run] == [2, 2, 1]
    assert np.concatenate([labels for _, labels in run]).tolist() == list(range(5))
    # This one has 256×256 pixels and is only cut.
    pixels = np.asarray(Image.open(io.BytesIO(examples[1]["image"])))
    np.testing.assert_array_equal(run[0][0][1], pixels[16:240, 16:240])
    # Of the others the middle is in the middle, and 224/256 of the shorter side are kept.
    width, height = IMAGE_SIZES[0]
    red, green = run[0][0][0][..., 0].mean(axis=0), run[0][0][0][..., 1].mean(axis=1)
    np.testing.assert_allclose(green[[0, -1]], 255 * np.array([1, 15]) / 16, atol=2)
    np.testing.assert_allclose(np.ptp(red), np.ptp(green) * height / width, atol=2)
    np.testing.assert_allclose(red.mean(), 127.5, atol=2)


@pytest.mark.parametrize(
    ("module", "use"),
    [
        ("PIL", lambda images: stream.centre_crop(images.test[0])),
        ("grain", lambda images: next(images.train_batches(0, 1))),
        ("grain", lambda images: next(images.test_batches(1))),
    ],
)
def test_a_stream_without_a_package(monkeypatch, module, use):
    images = stream_of(pictures(1))
    without(monkeypatch, module)
    with pytest.raises(DataError, match=rf"needs {module}: pip install -e '.\[tfds\]'$"):
        use(images)


def test_fingerprints_of_streams():
    examples = pictures(4)
    digest = stream_of(examples).fingerprint()
    assert digest == stream_of(examples).fingerprint()
    assert len(digest) == 16
    other_label, other_image = {**examples[0], "label": 9}, {**examples[0], "image": b"other"}
    changed = [
        stream_of(examples[1:]),
        stream_of([other_label, *examples[1:]]),
        stream_of([other_image, *examples[1:]]),
        stream_of([*examples[:3], other_image]),
        stream_of([examples[0], *examples]),
        dataclasses.replace(stream_of(examples), test=[*examples[:3], other_label]),
        dataclasses.replace(stream_of(examples), name="another"),
        stream_of([]),
    ]
    assert len({digest, *(other.fingerprint() for other in changed)}) == 1 + len(changed)


def test_random_boxes():
    rng = np.random.default_rng(0)
    for width, height in [(500, 375), (300, 500), (64, 64)]:
        boxes = np.array([stream.random_box(width, height, rng) for _ in range(500)])
        left, top, right, bottom = boxes.T
        assert min(left) >= 0
        assert min(top) >= 0
        assert max(right) <= width
        assert max(bottom) <= height
        areas = (right - left) * (bottom - top) / (width * height)
        ratios = (right - left) / (bottom - top)
        assert 0.07 < areas.min() < 0.15
        assert 0.7 < areas.max() <= 1
        assert 0.7 < ratios.min() < 0.8
        assert 1.25 < ratios.max() < 1.4
        assert len(set(left)) > 10
        assert len(set(top)) > 10
    assert stream.random_box(1000, 12, rng) == (492, 0, 508, 12)
    assert stream.random_box(12, 1000, rng) == (0, 492, 12, 508)


def test_a_random_crop_is_what_its_box_says():
    example = pictures(4, "PNG")[3]
    width, height = IMAGE_SIZES[3]
    flips = []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        left, top, right, bottom = stream.random_box(width, height, rng)
        flips.append(rng.random() < 0.5)
        pixels, label = stream.random_crop(example, np.random.default_rng(seed))
        assert label == 3
        red, green = pixels[..., 0].mean(axis=0), pixels[..., 1].mean(axis=1)
        edges = np.array([left, right]) / width * 255
        np.testing.assert_allclose(red[[0, -1]], edges[::-1] if flips[-1] else edges, atol=3)
        np.testing.assert_allclose(green[[0, -1]], np.array([top, bottom]) / height * 255, atol=3)
    assert set(flips) == {False, True}


def test_other_colour_modes():
    grey = {"image": encoded(np.full((260, 260), 77, np.uint8)), "label": 0}
    assert (stream.centre_crop(grey)[0] == 77).all()
    assert stream.centre_crop(grey)[0].shape == (224, 224, 3)


def test_worker_processes_read_what_is_prepared(tmp_path):
    examples = [{**example, "file_name": ""} for example in pictures(7)]
    write_prepared(tmp_path, "imagenet2012", {"train": examples, "validation": examples[:3]})
    stream = data.load("ImageNet", tmp_path)
    assert (stream.classes, stream.train_size, stream.test_size) == (1000, 7, 3)
    assert stream.fingerprint() == dataclasses.replace(stream, train=examples).fingerprint()
    np.testing.assert_allclose(stream.std / 255, [0.229, 0.224, 0.225], rtol=1e-6)
    run = take(dataclasses.replace(stream, workers=0).train_batches(0, 3), 5)
    in_workers = dataclasses.replace(stream, workers=2).train_batches(0, 3, start_step=1)
    same_batches(take(in_workers, 4), run[1:])
    in_workers.close()
