"""The programs that `compile_ahead.py` compiles: functions with the shapes of their arguments.

There are four kinds of them: one update of the params of a ResNet-34, the same with the slow
weights in the memory of the host, the same for four replicas that train alone and meet at syncs,
and one whole training step of the examples' ResNet-18.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from contenders import LEARNING_RATE, OPTIMIZERS, SYNC_PERIOD, Contender, contenders, resnet34
from experiments.data import Dataset
from experiments.models import NETWORKS
from experiments.steps import Model, init_state, train_step
from jax.sharding import AxisType, Mesh, NamedSharding, Sharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

import slrla_jax

REPLICAS = 4
AXIS = "replica"
GRADIENT = "gradient alone"


class Source(NamedTuple):
    """A function that is to be compiled.

    Attributes:
      function: the function.
      arguments: its arguments, as `jax.ShapeDtypeStruct`s on the devices of the target.
      donated: which arguments are donated.
      params: the params that it updates.
      gradients: how often it evaluates the gradient of a network.
      out_shardings: where the results are; None for what the compiler chooses.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    donated: tuple[int, ...]
    params: Any
    gradients: int = 0
    out_shardings: Any = None


def update_programs(optimizer: str, devices: list[Any], small: bool) -> dict[str, Source]:
    """An update with each contender around the optimizer, and those of manual syncs."""
    on_device = SingleDeviceSharding(devices[0])
    params = on(on_device, _params(small))

    def source(contender: Contender) -> Source:
        own_params, state = on(on_device, jax.eval_shape(contender.start, params))
        return Source(contender.step, (params, state, own_params), (1, 2), params)

    return {c.name: source(c) for found in contenders(optimizer) for c in with_manual(found)}


def host_programs(optimizer: str, devices: list[Any], small: bool) -> dict[str, Source]:
    """An update with manual syncs, and all that only syncs read in the memory of the host."""
    on_device = SingleDeviceSharding(devices[0])
    params = on(on_device, _params(small))
    inner = OPTIMIZERS[optimizer](LEARNING_RATE)
    kept = {"sync_period": None, "memory_kind": "pinned_host"}
    compared = [
        Contender("lookahead", slrla_jax.lookahead(inner, **kept), full_sync=True),
        Contender("snoo", slrla_jax.snoo(inner, **kept), full_sync=True),
    ]

    def source(contender: Contender) -> Source:
        init = contender.transform.init
        # Abstract evaluation does not tell the memories apart either, but a compiled init does.
        places = jax.tree.map(
            lambda found: on_device.with_memory_kind(found.memory_kind),
            jax.jit(init).lower(params).compile().output_shardings,
        )
        state = jax.tree.map(on, places, jax.eval_shape(init, params))
        return Source(
            contender.step,
            (params, state, params),
            (1, 2),
            params,
            out_shardings=jax.tree.map(lambda x: x.sharding, (state, params)),
        )

    manual = [c for found in compared for c in with_manual(found)[1:]]
    return {c.name: source(c) for c in [Contender("inner", inner), *manual]}


def with_manual(contender: Contender) -> list[Contender]:
    """The contender, followed by its steps without a sync and with one, if it takes `sync`."""
    if contender.full_sync is None:
        return [contender]
    manual = [
        replace(contender, name=f"{contender.name}, sync={sync}", sync=sync)
        for sync in (False, contender.full_sync)
    ]
    return [contender, *manual]


def replica_programs(optimizer: str, devices: list[Any], small: bool) -> dict[str, Source]:
    """An update of replicas on as many devices: the inner optimizer alone, and DiLoCo."""
    mesh = Mesh(np.asarray(devices), (AXIS,), axis_types=(AxisType.Auto,))
    inner = OPTIMIZERS[optimizer](LEARNING_RATE)
    diloco = slrla_jax.diloco(inner, AXIS, SYNC_PERIOD)
    compared = [Contender("inner", inner), Contender("diloco", diloco, full_sync=True)]
    return {
        c.name: _on_replicas(c, mesh, _params(small)) for one in compared for c in with_manual(one)
    }


def _on_replicas(contender: Contender, mesh: Mesh, params: Any) -> Source:
    """The update of a contender with `shard_map`.

    Each replica has params, gradients and an inner state of its own, along a first axis; the
    slow weights and the outer state are common to all.
    """
    own, common = P(AXIS), P()
    state = jax.eval_shape(contender.transform.init, params)
    of_params, of_state = (jax.tree.map(lambda _: own, tree) for tree in (params, state))
    if isinstance(state, slrla_jax.TwoLoopState):
        of_state = jax.tree.map(lambda _: common, state)._replace(inner_state=of_state.inner_state)

    def for_each(change: Callable[[Any], Any], tree: Any, specs: Any) -> Any:
        return jax.tree.map(lambda x, spec: change(x) if spec == own else x, tree, specs)

    def step(grads: Any, state: Any, params: Any) -> Any:
        one = partial(for_each, lambda x: x[0])
        grads, params, state = one(grads, of_params), one(params, of_params), one(state, of_state)
        state, params = contender.step(grads, state, params)
        several = partial(for_each, lambda x: x[None])
        return several(state, of_state), several(params, of_params)

    def shapes(tree: Any, specs: Any) -> Any:
        stacked = for_each(
            lambda x: jax.ShapeDtypeStruct((mesh.size, *x.shape), x.dtype), tree, specs
        )
        return jax.tree.map(lambda x, spec: on(NamedSharding(mesh, spec), x), stacked, specs)

    mapped = jax.shard_map(
        step,
        mesh=mesh,
        in_specs=(of_params, of_state, of_params),
        out_specs=(of_state, of_params),
    )
    arguments = (shapes(params, of_params), shapes(state, of_state), shapes(params, of_params))
    return Source(mapped, arguments, (1, 2), params)


def step_programs(devices: list[Any], small: bool) -> dict[str, Source]:
    """A training step with each contender around SGD with momentum, as the examples take it.

    The first has no optimizer: it evaluates the gradient and returns it.
    """
    on_device = SingleDeviceSharding(devices[0])
    size, images, batch_size = (8, 100, 4) if small else (32, 50_000, 128)
    network = NETWORKS["softmax" if small else "ResNet-18"]
    nothing = {"images": np.empty((0, size, size, 3), np.uint8), "labels": np.empty(0, np.int32)}
    dataset = Dataset(
        name="cifar10",
        classes=10,
        mean=255 * np.float32([0.4914, 0.4822, 0.4465]),
        std=255 * np.float32([0.2023, 0.1994, 0.2010]),
        augmented=True,
        **{f"{part}_{what}": x for part in ("train", "test") for what, x in nothing.items()},
    )
    model = Model(partial(network, dataset.image_shape, dataset.classes), dataset)
    pool = (
        jax.ShapeDtypeStruct((images, size, size, 3), jnp.uint8),
        jax.ShapeDtypeStruct((images,), jnp.int32),
    )
    batch = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
    keep = optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params),
        lambda grads, state, params: (jax.tree.map(jnp.zeros_like, params), grads),
    )
    adabound = Contender("adabound", slrla_jax.adabound(LEARNING_RATE))
    compared = [Contender(GRADIENT, keep), *contenders("momentum"), adabound]

    def source(contender: Contender) -> Source:
        state = jax.eval_shape(lambda: init_state(model, contender.transform, 0))
        return Source(
            partial(train_step, model, contender.transform),
            on(on_device, (pool, state, batch)),
            (1,),
            state.params,
            contender.gradients,
        )

    return {c.name: source(c) for c in compared if not c.pair}


def _params(small: bool) -> dict[str, Any]:
    shapes = resnet34((1,), 8, 10) if small else resnet34()
    return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}


def on(sharding: Sharding, tree: Any) -> Any:
    """The same shapes on the given devices, which abstract evaluation does not preserve."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)
