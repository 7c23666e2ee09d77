"""The networks in `experiments.models`, against public counts and against PyTorch."""

import json
import re
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from experiments import models as networks
from experiments import names
from experiments.models.layers import BatchNorm, conv, head
from experiments.models.vgg import VGG, adaptive_mean
from flax import nnx
from network_weights import images, weight

PYTORCH = json.loads((Path(__file__).parent / "fixtures/pytorch_logits.json").read_text())
CIFAR, IMAGENET = (32, 32, 3), (224, 224, 3)
NAMES = [name for name in networks.NETWORKS if name not in networks.OF_TEXT]
# One of each kind of block:
KINDS = [
    "softmax",
    "resnet",
    "small_vgg",
    "ResNet-10",
    "ResNet-50",
    "WRN-16-8",
    "VGG-11",
    "VGG-16-BN",
]
UNCONVOLVED = {"softmax", "mlp"}
NORMALISED = [name for name in NAMES if name not in {*UNCONVOLVED, "VGG-11", "VGG-16", "VGG-19"}]


def rngs(seed=0):
    """Of JAX's generators the one that compiles in a few seconds less."""
    return nnx.Rngs(jax.random.key(seed, impl="rbg"))


@cache
def abstract(name, image_shape=CIFAR, classes=10, **settings):
    """A network of shapes: graph, params, and what else there is."""
    make = networks.NETWORKS[name]
    model = nnx.eval_shape(lambda: make(image_shape, classes, rngs=rngs(), **settings))
    return nnx.split(model, nnx.Param, ...)


# What public implementations count, but for the two without a public source:
# a basic block of n inputs and m outputs has 9nm + 9m² weights and 4m of the normalisations,
# and nm + 2m of a projection, if any. So of the ResNets with one block in each group
#   stem 1,728 + 128, blocks 73,984 + 230,144 + 919,040 + 3,673,088, head 5,130: 4,903,242,
# and one more block of 64 channels, 73,984, makes ResNet-12. VGG-11 and 19 are torchvision's
# 132,863,336 and 143,667,240 less the 990 · 4,097 of the classes that CIFAR-10 lacks.
@pytest.mark.parametrize(
    ("name", "image_shape", "classes", "params"),
    [
        ("ResNet-10", CIFAR, 10, 4_903_242),
        ("ResNet-12", CIFAR, 10, 4_977_226),
        ("ResNet-18", CIFAR, 10, 11_173_962),
        ("ResNet-34", CIFAR, 10, 21_282_122),
        ("ResNet-50", CIFAR, 10, 23_520_842),
        ("WRN-16-8", CIFAR, 10, 10_961_370),
        ("WRN-16-10", CIFAR, 10, 17_116_634),
        ("WRN-28-10", CIFAR, 10, 36_479_194),
        ("VGG-11", CIFAR, 10, 128_807_306),
        ("VGG-16", CIFAR, 10, 134_301_514),
        ("VGG-19", CIFAR, 10, 139_611_210),
        ("VGG-16-BN", CIFAR, 10, 14_728_266),
        ("ResNet-18", IMAGENET, 1000, 11_689_512),
        ("ResNet-34", IMAGENET, 1000, 21_797_672),
        ("ResNet-50", IMAGENET, 1000, 25_557_032),
        ("VGG-16", IMAGENET, 1000, 138_357_544),
        ("ViT-S-16", IMAGENET, 1000, 22_050_664),
        ("softmax", (8, 8, 1), 10, 650),
        # In each of four blocks 12·32² + 13·32, in the last norm 64 and in the head 330; then the
        # embedding of a patch, and positions of 16 patches or of 49 and of the class token, which
        # is 32 more:
        ("small_vit", (8, 8, 1), 10, 51_946),
        ("small_vit", (28, 28, 1), 10, 53_386),
        # Of 3×3·1·16 + 32, 2·(3×3·16·16) + 64, 3×3·16·32 + 3×3·32·32 + 128 + 16·32 and 330:
        ("resnet", (8, 8, 1), 10, 19_642),
        # Of 3×3·16·(1 + 16) + 64, 3×3·32·(16 + 32) + 128 and 330:
        ("small_vgg", (8, 8, 1), 10, 16_794),
        # Of 3×3·8 + 16, 2·(3×3·8·8) + 32, 3×3·8·16 + 3×3·16·16 + 64 + 8·16, the same with
        # twice the channels 3×3·16·32 + 3×3·32·32 + 128 + 16·32, and 330:
        ("narrow_resnet", (28, 28, 1), 10, 19_714),
        # Of 3×3·8 + 16, 3×3·8·16 + 32, 3×3·16·32 + 64, 3×3·32·32 + 64 and 330:
        ("narrow_vgg", (28, 28, 1), 10, 15_554),
    ],
)
def test_parameters_are_as_many_as_published(name, image_shape, classes, params):
    leaves = jax.tree.leaves(abstract(name, image_shape, classes)[1])
    assert sum(leaf.size for leaf in leaves) == params


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, None) for name in NAMES), *((name, jnp.bfloat16) for name in KINDS)],
)
def test_shapes_and_dtypes(name, dtype):
    graph, params, rest = abstract(name, dtype=dtype)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}

    def call(params, rest, x):
        model = nnx.merge(graph, params, rest, copy=True)
        return model(x, train=True), nnx.state(model, nnx.Not(nnx.Param))

    trace = jax.make_jaxpr(call, return_shape=True)
    jaxpr, (logits, new_rest) = trace(params, rest, jnp.zeros((2, *CIFAR)))
    assert (logits.shape, logits.dtype) == ((2, 10), jnp.float32)
    assert jax.tree.map(jnp.shape, new_rest) == jax.tree.map(jnp.shape, rest)
    assert jax.tree.map(lambda x: x.dtype, new_rest) == jax.tree.map(lambda x: x.dtype, rest)

    compute = "f32" if dtype is None else "bf16"
    assert dtypes("conv_general_dilated", jaxpr) == (set() if name in UNCONVOLVED else {compute})
    assert dtypes("reduce_sum", jaxpr) == ({"f32"} if name in NORMALISED else set())


def dtypes(primitive, jaxpr):
    """The dtypes that a primitive returns in a program, as it is printed."""
    return set(re.findall(rf":(\w+)\[[\d,]*\] = {primitive}\[", str(jaxpr)))


def test_residual_networks_have_two_forms():
    def stem(size):
        graph, params, rest = abstract("ResNet-18", (size, size, 3))
        model = nnx.merge(graph, params, rest)
        return model.conv.kernel.shape, model.conv.strides, model.pools

    assert stem(63) == ((3, 3, 3, 64), 1, False)
    assert stem(64) == ((7, 7, 3, 64), 2, True)


def test_the_vggs_need_32_pixels():
    for name in ("VGG-11", "VGG-16", "VGG-19", "VGG-16-BN"):
        with pytest.raises(ValueError, match=r"image_shape: must be at least 32 .* got 28×28"):
            abstract(name, (28, 28, 1))


@pytest.mark.parametrize(
    ("name", "found"),
    [
        *((name, name) for name in NAMES),
        ("resnet50", "ResNet-50"),
        ("RESNET_18", "ResNet-18"),
        ("wrn1610", "WRN-16-10"),
        ("vgg16bn", "VGG-16-BN"),
        ("vgg-16", "VGG-16"),
        ("Small-VGG", "small_vgg"),
        ("ResNet", "resnet"),
    ],
)
def test_find(name, found):
    assert names.find(name, networks.NETWORKS) == found


@pytest.mark.parametrize("name", ["ResNet-20", "", "resnet 18"])
def test_find_names_what_there_is(name):
    with pytest.raises(ValueError, match=r"must be one of resnet, .*ViT-S-16, got") as e:
        names.find(name, networks.NETWORKS)
    assert str(e.value).endswith(f"got {name!r}")


def filled(graph, *states):
    """A network taken apart, with the weights of `network_weights.py`."""

    def concrete(path, variable):
        if isinstance(variable, nnx.RngKey):
            return jax.random.key(0, impl="rbg")
        if isinstance(variable, nnx.RngCount):
            return jnp.zeros((), jnp.uint32)
        return jnp.asarray(weight("/".join(map(str, path)), variable.shape))

    return graph, *(nnx.map_state(concrete, state) for state in states)


def pytorch_case(name):
    """The network of a fixture, and its images."""
    x = images(PYTORCH[name]["images"], PYTORCH[name]["size"])
    return *filled(*abstract(name, x.shape[1:])), x


@pytest.mark.parametrize("name", [name for name in PYTORCH if name in NAMES])
def test_logits_are_those_of_pytorch(name):
    graph, params, rest, x = pytorch_case(name)
    logits = jax.jit(lambda p, r, x: nnx.merge(graph, p, r)(x, train=False))(params, rest, x)
    expected = np.reshape(PYTORCH[name]["logits"], (-1, 10))
    assert expected.std() > 0.3
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)


def test_a_training_pass_is_that_of_pytorch():
    case = PYTORCH["ResNet-18"]
    graph, params, rest, x = pytorch_case("ResNet-18")
    before = rest["norm"]["var"]

    @jax.jit
    def call(params, rest, x):
        model = nnx.merge(graph, params, rest, copy=True)
        return model(x, train=True), model.norm.mean[...], model.norm.var[...]

    logits, mean, var = call(params, rest, x)
    expected = np.reshape(case["training_logits"], (-1, 10))
    assert abs(expected - np.reshape(case["logits"], (-1, 10))).max() > 0.1
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)
    np.testing.assert_allclose(mean, case["mean"], rtol=0, atol=1e-5)
    # PyTorch has divided the batch's variance, a tenth of the new one, by n - 1.
    n = len(x) * 32 * 32
    biased = 0.9 * before + (np.array(case["var"]) - 0.9 * before) * (n - 1) / n
    np.testing.assert_allclose(var, biased, rtol=0, atol=1e-5)


def test_adaptive_means():
    rng = np.random.default_rng(0)
    for height, width in ((1, 1), (2, 3), (7, 7), (10, 15)):
        x = rng.normal(size=(2, height, width, 3)).astype(np.float32)
        expected = np.empty((2, 7, 7, 3))
        for i in range(7):
            for j in range(7):
                rows = range(int(np.floor(i * height / 7)), int(np.ceil((i + 1) * height / 7)))
                columns = range(int(np.floor(j * width / 7)), int(np.ceil((j + 1) * width / 7)))
                expected[:, i, j] = x[:, rows][:, :, columns].mean(axis=(1, 2))
        np.testing.assert_allclose(adaptive_mean(x, 7), expected, rtol=0, atol=1e-6)


def test_dropout_draws_anew_in_each_step():
    model = nnx.eval_shape(
        lambda: VGG(
            (4, 4, 1), 3, (1, 1), widths=(4, 4), hidden=16, rngs=nnx.Rngs(params=0, dropout=1)
        )
    )
    assert {v.tag for _, v in nnx.to_flat_state(nnx.state(model, nnx.RngState))} == {"dropout"}
    graph, params, rest = filled(*nnx.split(model, nnx.Param, ...))
    x = np.random.default_rng(0).normal(size=(5, 4, 4, 1)).astype(np.float32)

    def loss(params, rest, train):
        model = nnx.merge(graph, params, rest, copy=True)
        value = (model(x, train=train) ** 2).sum()
        return value, nnx.as_pure(nnx.state(model, nnx.Not(nnx.Param)))

    step = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnames="train")
    (first, rest_after_one), gradients = step(params, rest, train=True)
    (second, rest_after_two), _ = step(params, rest_after_one, train=True)
    (again, _), _ = step(params, rest, train=True)
    assert first != second
    assert first == again
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradients))
    counts = [rest["dropout1"]["rngs"]["count"] for rest in (rest, rest_after_one, rest_after_two)]
    assert counts == [0, 1, 2]

    (evaluated, untouched), _ = step(params, rest, train=False)
    assert evaluated == step(params, rest_after_two, train=False)[0][0] != first
    assert untouched["dropout1"]["rngs"]["count"] == 0


@pytest.mark.parametrize("name", [name for name in KINDS if name in NORMALISED])
def test_every_normalisation_is_that_of_the_papers(name):
    graph, params, rest = abstract(name)
    model = nnx.merge(graph, params, rest)
    norms = [module for _, module in nnx.iter_modules(model) if isinstance(module, nnx.BatchNorm)]
    assert len(norms) > 2
    assert {(norm.momentum, norm.epsilon) for norm in norms} == {(0.9, 1e-5)}


def test_normalisation_in_bfloat16_has_float32_statistics():
    norm = BatchNorm(1, dtype=jnp.bfloat16, rngs=rngs())
    norm.mean[...] = jnp.array([256.5])  # bfloat16 has 256 and 258.
    y = norm(jnp.array([[258.0]], jnp.bfloat16), train=False)
    assert y.dtype == jnp.bfloat16
    assert float(y[0, 0]) == 1.5
    norm(jnp.array([[256.0], [258.0]], jnp.bfloat16), train=True)
    np.testing.assert_allclose(norm.mean[...], 0.9 * 256.5 + 0.1 * 257, rtol=1e-6)


def test_initial_weights():
    kernel = np.array(conv(20, 30, 3, dtype=None, rngs=rngs()).kernel[...])
    assert abs(kernel.std() - np.sqrt(2 / (30 * 9))) < 0.02 * kernel.std()
    assert abs(kernel).max() > 2.5 * kernel.std()  # Not a truncated normal distribution.
    kernel = np.array(head(64, 1000, rngs=rngs()).kernel[...])
    assert 0.124 < abs(kernel).max() <= 1 / np.sqrt(64)
