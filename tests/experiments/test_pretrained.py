"""timm's weights in the networks here: the same logits, and files that are refused."""

import json
import sys
from functools import cache, partial
from pathlib import Path
from types import ModuleType

import jax
import numpy as np
import optax
import pytest
from experiments import models, pretrained
from experiments.config import SettingError
from experiments.steps import Model, State, init_weights
from flax import nnx
from network_weights import images, normal
from safetensors.numpy import save, save_file
from timm_tensors import resnet50_shapes, tensors, vit_shapes

TIMM = json.loads((Path(__file__).parent / "fixtures/timm_logits.json").read_text())
SMALL = {"classes": 5, "size": 8, "patch": 2, "width": 32, "depth": 4, "channels": 1}


def small_tensors(**settings):
    return tensors(vit_shapes(**SMALL | settings))


def written(path, content):
    save_file(content, path)
    return path


def small_model(*, size=8, classes=5):
    make = partial(models.NETWORKS["small_vit"], (size, size, 1), classes)
    return Model(make, None, name="small_vit")


def logits(weights, name, x, *, train=False):
    """Of a network whose params all come from a file."""
    make = models.NETWORKS[name]
    model = nnx.eval_shape(lambda: make(x.shape[1:], 10, rngs=nnx.Rngs(0)))
    graph, params, stats = nnx.split(model, nnx.Param, ...)
    filled = pretrained.fill(weights, name, nnx.as_pure(params), nnx.as_pure(stats))
    # Operation by operation: one of each shape is compiled, and not the whole network.
    return nnx.merge(graph, *filled, copy=True)(x, train=train)


@cache
def of_timm(folder, name):
    shapes = {"ViT-S-16": vit_shapes, "ResNet-50": resnet50_shapes}[name]()
    return pretrained.read(written(folder / f"{name}.safetensors", tensors(shapes)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("weights")


@pytest.mark.parametrize(
    ("case", "mode"),
    [
        ("ViT-S-16 at 96", "logits"),
        ("ResNet-50", "logits"),
        ("ResNet-50", "training_logits"),
    ],
)
def test_logits_are_those_of_timm(folder, case, mode):
    name, expected = case.split(" ")[0], np.reshape(TIMM[case][mode], (-1, 10))
    x = images(TIMM[case]["images"], TIMM[case]["size"])
    found = logits(of_timm(folder, name), name, x, train=mode == "training_logits")
    assert expected.std() > 0.5
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_training_is_another_thing_than_testing():
    case = TIMM["ResNet-50"]
    assert np.abs(np.subtract(case["logits"], case["training_logits"])).max() > 0.1


def test_positions_are_interpolated_as_by_timm():
    for case in TIMM["resampled"]:
        before, after = case["before"], case["after"]
        found = pretrained.resampled(normal("positions", (1 + before**2, 2)), 1 + after**2)
        expected = np.reshape(case["values"], (1 + after**2, 2))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def small_shapes(classes=5):
    return jax.eval_shape(lambda: init_weights(small_model(classes=classes), 0))


def filled(path, classes=5):
    """The params of a small network, of which those stay shapes that the file does not have."""
    weights = pretrained.read(path)
    return weights.tensors, pretrained.fill(weights, "small_vit", *small_shapes(classes))[0]


def test_params_are_those_of_the_file(tmp_path):
    tensors, params = filled(written(tmp_path / "five", small_tensors()))
    np.testing.assert_array_equal(params["head"]["kernel"], tensors["head.weight"].T)
    np.testing.assert_array_equal(params["class_token"], tensors["cls_token"].ravel())
    np.testing.assert_array_equal(params["positions"], tensors["pos_embed"][0])
    np.testing.assert_array_equal(
        params["blocks"][2]["down"]["kernel"], tensors["blocks.2.mlp.fc2.weight"].T
    )


def test_a_head_for_other_classes_is_a_new_one(tmp_path):
    _, params = filled(written(tmp_path / "five", small_tensors()), classes=3)
    new = {
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree.leaves_with_path(params)
        if isinstance(leaf, jax.ShapeDtypeStruct)
    }
    assert new == {"['head']['bias']", "['head']['kernel']"}


def test_half_precision_is_widened(tmp_path):
    halves = {name: value.astype(np.float16) for name, value in small_tensors().items()}
    tensors, params = filled(written(tmp_path / "halves", halves))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}
    np.testing.assert_array_equal(params["norm"]["bias"], tensors["norm.bias"])


def test_the_optimizer_begins_with_these_weights(tmp_path, monkeypatch):
    params, stats = jax.tree.map(lambda leaf: np.zeros(leaf.shape, "f4"), small_shapes(3))
    zeros = State(params, stats, None, jax.random.key(1), 0, 0.0, 0.0)
    monkeypatch.setattr(pretrained, "init_state", lambda model, tx, seed: zeros)
    weights = pretrained.read(written(tmp_path / "five", small_tensors()))
    tx = optax.GradientTransformation(lambda params: params, None)
    state = pretrained.start(weights, small_model(classes=3), tx, 0)
    np.testing.assert_array_equal(state.opt_state["positions"], weights.tensors["pos_embed"][0])
    np.testing.assert_array_equal(state.opt_state["head"]["kernel"], np.zeros((32, 3)))
    assert state.key is zeros.key


def test_the_digest_is_that_of_the_whole_file(tmp_path):
    content = small_tensors()
    one = pretrained.read(written(tmp_path / "one", content)).digest
    assert one == pretrained.read(written(tmp_path / "again", content)).digest
    content["norm.bias"][0] += 1
    assert len(one) == 16
    assert one != pretrained.read(written(tmp_path / "other", content)).digest


# Files that are refused.


def refused(path, model=None):
    with pytest.raises(SettingError) as error:
        pretrained.check(pretrained.read(path), model or small_model())
    assert error.value.setting == "weights"
    assert "\n" not in str(error.value)
    return str(error.value)


def without(name):
    return {n: value for n, value in small_tensors().items() if n != name}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (without("blocks.3.norm2.bias"), "has no blocks.3.norm2.bias"),
        (
            small_tensors() | {"blocks.4.norm1.bias": np.zeros(32, "f4")},
            "has blocks.4.norm1.bias, which small_vit does not have",
        ),
        (
            small_tensors() | {"blocks.1.mlp.fc1.weight": np.zeros((128, 31), "f4")},
            "has blocks.1.mlp.fc1.weight of shape (128, 31) where (128, 32) is needed",
        ),
        (
            small_tensors(patch=4),
            "has patch_embed.proj.weight of shape (32, 1, 4, 4) where (32, 1, 2, 2) is needed",
        ),
        (
            small_tensors() | {"head.weight": np.zeros((7, 31), "f4")},
            "has head.weight of shape (7, 31) where (5, 32) is needed",
        ),
        (
            small_tensors() | {"pos_embed": np.zeros((1, 16, 32), "f4")},
            "has pos_embed of 16 positions where 17 are needed",
        ),
        (
            small_tensors() | {"cls_token": np.zeros((1, 1, 32), "i4")},
            "has cls_token as int32",
        ),
        ({"conv1.weight": np.zeros((64, 3, 7, 7), "f4")}, "has no "),
    ],
)
def test_other_networks_are_refused(tmp_path, content, message):
    path = written(tmp_path / "some.safetensors", content)
    assert f"{path} {message}" in refused(path)


def test_files_that_are_no_weights_are_refused(tmp_path):
    path = tmp_path / "some.safetensors"
    assert "cannot be read: No such file or directory" in refused(path)
    for content in (b"", b"hello, world", b"\x02\0\0\0\0\0\0\0[]", bytes(100)):
        path.write_bytes(content)
        assert f"{path} is not a .safetensors file" in refused(path)
    whole = save(small_tensors())
    begin = 8 + int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8:begin])
    name, (start, end) = max(
        ((n, t["data_offsets"]) for n, t in header.items() if n[0] != "_"), key=lambda x: x[1]
    )
    for length in (begin + end - 1, begin + start + 1):
        path.write_bytes(whole[:length])
        assert f"{path} is cut short, within or before {name}" in refused(path)
    path.write_bytes(whole[: begin - 5])
    assert f"{path} is not a .safetensors file" in refused(path)


def test_weights_are_for_some_networks_only(tmp_path):
    path = written(tmp_path / "five", small_tensors())
    softmax = Model(partial(models.NETWORKS["softmax"], (8, 8, 1), 5), None, name="softmax")
    assert "are not for softmax, but for ViT-S-16, small_vit" in refused(path, softmax)


# Where the weights come from.


def hub(download):
    module = ModuleType("huggingface_hub")
    module.hf_hub_download = download
    return module


def test_weights_are_downloaded_where_that_is_possible(tmp_path, monkeypatch):
    asked = []

    def download(repository, name):
        asked.append((repository, name))
        return str(tmp_path / "cached")

    monkeypatch.setitem(sys.modules, "huggingface_hub", hub(download))
    assert pretrained.find("ViT-S-16", None) == tmp_path / "cached"
    assert pretrained.find("ResNet-50", None) == tmp_path / "cached"
    assert asked == [
        ("timm/vit_small_patch16_224.augreg_in21k_ft_in1k", "model.safetensors"),
        ("timm/resnet50.fb_swsl_ig1b_ft_in1k", "model.safetensors"),
    ]
    assert pretrained.find("ResNet-50", tmp_path / "mine") == tmp_path / "mine"
    assert len(asked) == 2


def test_otherwise_a_line_says_where_they_are(monkeypatch):
    def download(repository, name):
        raise ConnectionError("no network\nhere")

    by_hand = (
        "download model.safetensors of timm/resnet50.fb_swsl_ig1b_ft_in1k from the Hugging Face "
        "Hub to any folder, and name it by --weights; --scratch begins without"
    )
    for module, why in (
        (None, "need huggingface_hub, of the extra `pretrained`; or "),
        (hub(download), "cannot be downloaded (ConnectionError); "),
    ):
        monkeypatch.setitem(sys.modules, "huggingface_hub", module)
        with pytest.raises(SettingError) as error:
            pretrained.find("ResNet-50", None)
        assert str(error.value) == f"{why}{by_hand}"
    with pytest.raises(SettingError, match="there are none for resnet; --scratch begins without"):
        pretrained.find("resnet", None)
