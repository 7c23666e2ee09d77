"""Arrays that are kept in the memory of the host.

The type of an array says which memory it is in, also inside a compiled function, where
arrays in different memories cannot meet in an operation. They are therefore moved to the
device before they are read, and back to where they were when they are written.
"""

from typing import Any

import jax
import jax.numpy as jnp

HOST = "pinned_host"


def check_kind(name: str, kind: str | None, sync_period: Any) -> None:
    """Raises unless the kind is None or that of the host, with manual syncs only."""
    if kind is None:
        return
    if kind != HOST:
        raise ValueError(f"`{name}` must be {HOST!r} or None, got {kind!r}.")
    if sync_period is not None:
        raise ValueError(
            f"`{name}` = {kind!r} needs manual syncs, because an automatic one would read the "
            f"memory of the host at every step: the sync period must be None, got {sync_period!r}."
        )
    if not hasattr(jax, "memory"):
        raise ValueError(
            f"`{name}` = {kind!r} needs a version of jax with jax.memory, got {jax.__version__}."
        )


def put(tree: Any, kind: str | None) -> Any:
    """Moves arrays to the memory of that kind; None leaves them where they are.

    Scalars, as the counts of an optimizer, stay on the device.
    """
    if kind is None:
        return tree
    return jax.tree.map(
        lambda x: jax.device_put(x, jax.memory.Space.Host) if jnp.ndim(x) else x, tree
    )


def on_device(tree: Any) -> Any:
    """Moves arrays that are in the memory of the host to that of the device."""
    return jax.tree.map(
        lambda x: jax.device_put(x, jax.memory.Space.Device) if _is_on_host(x) else x, tree
    )


def as_before(tree: Any, before: Any) -> Any:
    """Moves arrays to the memory that those in another tree are in."""
    return jax.tree.map(
        lambda x, old: jax.device_put(x, jax.memory.Space.Host) if _is_on_host(old) else x,
        tree,
        before,
    )


def _is_on_host(x: Any) -> bool:
    if not hasattr(jax, "memory"):  # a version of jax whose types do not say it
        return False
    return bool(jax.typeof(x).memory_space == jax.memory.Space.Host)
