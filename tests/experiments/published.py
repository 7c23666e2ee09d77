"""Data sets as their publishers write them, and as TensorFlow Datasets does."""

import gzip
import io
import tarfile

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image


def idx_bytes(array):
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return header + array.astype(np.uint8).tobytes()


def write_idx(path, array):
    with gzip.open(path, "wb") if path.suffix == ".gz" else path.open("wb") as file:
        file.write(idx_bytes(array))


def add_to(tar, name, content):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def cifar_records(labels, images):
    """Labels of one byte each, then the pixels of an image, channel by channel."""
    pixels = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    return np.concatenate([np.stack(labels, axis=1), pixels], axis=1).astype(np.uint8).tobytes()


def write_archives(folder, name, arrays):
    folder.mkdir(parents=True)
    (train, train_labels), (test, test_labels) = arrays["train"], arrays["test"]
    if name == "cifar10":
        with tarfile.open(folder / "cifar-10-binary.tar.gz", "w:gz") as tar:
            inside = "cifar-10-batches-bin"
            for i in range(5):
                part = slice(8 * i, 8 * (i + 1))
                records = cifar_records([train_labels[part]], train[part])
                add_to(tar, f"{inside}/data_batch_{i + 1}.bin", records)
            add_to(tar, f"{inside}/test_batch.bin", cifar_records([test_labels], test))
            names = "".join(f"class {i}\n" for i in range(10))
            add_to(tar, f"{inside}/batches.meta.txt", names.encode())
    elif name == "cifar100":
        with tarfile.open(folder / "cifar-100-binary.tar.gz", "w:gz") as tar:
            inside = "cifar-100-binary"
            for split, (images, labels) in arrays.items():
                records = cifar_records([labels // 5, labels], images)
                add_to(tar, f"{inside}/{split}.bin", records)
            for kind, classes in (("coarse", 20), ("fine", 100)):
                names = "".join(f"class {i}\n" for i in range(classes))
                add_to(tar, f"{inside}/{kind}_label_names.txt", names.encode())
    else:
        for split, prefix in (("train", "train"), ("test", "t10k")):
            images, labels = arrays[split]
            write_idx(folder / f"{prefix}-images-idx3-ubyte.gz", images[..., 0])
            write_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", labels)


def encoded(image, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(image.squeeze()).save(file, kind)
    return file.getvalue()


def write_prepared(folder, name, splits):
    """What TensorFlow Datasets leaves when it has prepared these examples, without it."""
    builder = tfds.builder(name, data_dir=folder, file_format="array_record")
    builder.data_path.mkdir(parents=True)
    features = builder.info.features
    infos = []
    for split, examples in splits.items():
        file = builder.data_path / f"{name}-{split}.array_record-00000-of-00001"
        writer = ArrayRecordWriter(str(file), "group_size:1")
        for example in examples:
            writer.write(features.serialize_example(features.encode_example(example)))
        writer.close()
        template = tfds.core.ShardedFileTemplate(
            data_dir=builder.data_path,
            dataset_name=name,
            split=split,
            filetype_suffix="array_record",
        )
        infos.append(
            tfds.core.SplitInfo(
                name=split, shard_lengths=[len(examples)], num_bytes=0, filename_template=template
            )
        )
    tfds.folder_dataset.write_metadata(
        data_dir=builder.data_path, features=features, split_infos=infos, check_data=False
    )
