"""Data sets as their publishers write them, and as TensorFlow Datasets does."""

import gzip
import io
import pickle
import struct
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


class Python2Pickler(pickle._Pickler):
    """Writes strings, and what an array is made of, as Python 2 did."""

    def __init__(self, file):
        super().__init__(file, protocol=2)
        self.dispatch = {**self.dispatch, **dict.fromkeys((bytes, str), type(self).save_string)}

    def save_string(self, text):
        content = text.encode("latin1") if isinstance(text, str) else text
        self.write(pickle.BINSTRING + struct.pack("<i", len(content)) + content)
        self.memoize(text)


def python2_pickle(batch):
    file = io.BytesIO()
    Python2Pickler(file).dump(batch)
    return file.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


CIFAR_FOLDERS = {
    ("cifar10", "python"): "cifar-10-batches-py",
    ("cifar10", "binary"): "cifar-10-batches-bin",
    ("cifar100", "python"): "cifar-100-python",
    ("cifar100", "binary"): "cifar-100-binary",
}


def cifar_files(name, kind, arrays, dumps=python2_pickle):
    """The content of the files in one of CIFAR's archives, by name."""
    parts = {"test_batch": arrays["test"]}
    for i, pair in enumerate(zip(*(np.split(x, 5) for x in arrays["train"]), strict=True)):
        parts[f"data_batch_{i + 1}"] = pair
    files = {}
    for file, (images, labels) in (arrays if name == "cifar100" else parts).items():
        pixels = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
        both = {"coarse_labels": labels // 5, "fine_labels": labels}
        label_columns = both if name == "cifar100" else {"labels": labels}
        if kind == "binary":
            columns = [np.stack([*label_columns.values()], axis=1), pixels]
            files[f"{file}.bin"] = np.concatenate(columns, axis=1).astype(np.uint8).tobytes()
        else:
            lists = {key: column.tolist() for key, column in label_columns.items()}
            files[file] = dumps({"batch_label": file, "data": pixels, **lists})
    return files


def write_cifar(folder, name, kind, files, packed=True):
    """An archive of CIFAR with these files in a folder, or only that folder."""
    inside = CIFAR_FOLDERS[name, kind]
    if not packed:
        (folder / inside).mkdir(parents=True)
        for file, content in files.items():
            (folder / inside / file).write_bytes(content)
        return folder / inside
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"cifar-{name.removeprefix('cifar')}-{kind}.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for file, content in files.items():
            info = tarfile.TarInfo(f"{inside}/{file}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def write_archives(folder, name, arrays):
    """The archives that TensorFlow Datasets would download."""
    if name == "fashion_mnist":
        folder.mkdir(parents=True)
        for split, prefix in (("train", "train"), ("test", "t10k")):
            images, labels = arrays[split]
            write_idx(folder / f"{prefix}-images-idx3-ubyte.gz", images[..., 0])
            write_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", labels)
        return
    names = (
        {"batches.meta.txt": 10}
        if name == "cifar10"
        else {"coarse_label_names.txt": 20, "fine_label_names.txt": 100}
    )
    texts = {
        file: "".join(f"class {i}\n" for i in range(classes)).encode()
        for file, classes in names.items()
    }
    write_cifar(folder, name, "binary", cifar_files(name, "binary", arrays) | texts)


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
