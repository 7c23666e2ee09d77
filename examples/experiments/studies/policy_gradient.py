"""REINFORCE with a baseline on CartPole, with many b0 from many seeds in one compiled program.

The environment is gymnax's CartPole-v1: a reward of 1 for each step, until the pole falls or after
500 steps. An update takes whole episodes of the present policy.
"""

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments.config import Config
from experiments.optimizers import INNER
from experiments.steps import Tree

BASE = Config(momentum=0.0, weight_decay=0.0)
ENVIRONMENT, PARAMS = gymnax.make("CartPole-v1")
LONGEST = PARAMS.max_steps_in_episode


class Policy(nnx.Module):
    """Observations of shape (..., 4) to logits of the actions, with one hidden layer."""

    def __init__(self, width: int = 32, *, rngs: nnx.Rngs):
        (observations,) = ENVIRONMENT.observation_space(PARAMS).shape
        self.hidden = nnx.Linear(observations, width, rngs=rngs)
        self.logits = nnx.Linear(width, ENVIRONMENT.num_actions, rngs=rngs)

    def __call__(self, observations: jax.Array) -> jax.Array:
        """Returns the logits, of shape (..., actions)."""
        return self.logits(jnp.tanh(self.hidden(observations)))


class Episodes(NamedTuple):
    """Whole episodes, each with as many steps as the longest may have.

    Attributes:
      observations: of shape (episodes, steps, 4).
      actions: of shape (episodes, steps).
      rewards: likewise; 0 after the end of an episode.
    """

    observations: jax.Array
    actions: jax.Array
    rewards: jax.Array

    @property
    def returns(self) -> jax.Array:
        """The return of each episode, of shape (episodes,): the number of its steps."""
        return self.rewards.sum(axis=1)


def act(graph: nnx.GraphDef, params: Tree, key: jax.Array, episodes: int) -> Episodes:
    """Returns so many episodes of a policy."""

    def step(carry: tuple, key: jax.Array) -> tuple[tuple, tuple]:
        state, observation, runs = carry
        for_action, for_step = jax.random.split(key)
        logits = nnx.merge(graph, params, copy=True)(observation)
        action = jax.random.categorical(for_action, logits)
        following, state, reward, terminated, truncated, _ = ENVIRONMENT.step(
            for_step, state, action, PARAMS
        )
        still = runs & ~terminated & ~truncated
        return (state, following, still), (observation, action, jnp.where(runs, reward, 0.0))

    def episode(key: jax.Array) -> Episodes:
        for_reset, for_steps = jax.random.split(key)
        observation, state = ENVIRONMENT.reset(for_reset, PARAMS)
        start = state, observation, jnp.bool_(True)
        return Episodes(*jax.lax.scan(step, start, jax.random.split(for_steps, LONGEST))[1])

    return jax.vmap(episode)(jax.random.split(key, episodes))


def advantages(rewards: jax.Array) -> jax.Array:
    """Returns the rewards still to come less their baseline, relative to the highest return.

    The baseline of a step is the mean over all episodes, those that have ended included, for
    which nothing is to come.

    Args:
      rewards: of shape (episodes, steps).
    """
    to_come = jnp.cumsum(rewards[:, ::-1], axis=1)[:, ::-1]
    return (to_come - to_come.mean(axis=0)) / LONGEST


def surrogate(params: Tree, graph: nnx.GraphDef, episodes: Episodes) -> jax.Array:
    """Returns −(1/E) Σ_episodes Σ_t log π(a_t | s_t) A_t, whose gradient is REINFORCE's.

    It may be negative. It is 0 where all advantages are, as when no episode ends early.
    """
    logits = nnx.merge(graph, params, copy=True)(episodes.observations)
    chosen = -optax.softmax_cross_entropy_with_integer_labels(logits, episodes.actions)
    terms = jnp.where(episodes.rewards > 0, chosen * advantages(episodes.rewards), 0.0)
    return -terms.sum(axis=1).mean()


def mean_returns(
    method: str,
    loss: str,
    learning_rate: float,
    b0: np.ndarray,
    seeds: np.ndarray,
    updates: int,
    episodes: int,
) -> np.ndarray:
    """Trains with every b0 from every seed.

    Args:
      method: a name in `optimizers.INNER`.
      loss: what AdaLoss is told: "surrogate", the surrogate loss; or "gap", how far the mean
        return is from the highest, relative to it.
      learning_rate: η.
      b0: of shape (values,).
      seeds: of shape (seeds,).
      updates: of the policy.
      episodes: of each update.

    Returns:
      The mean return of the episodes of each update, of shape (values, seeds, updates); NaN from
      where params are not finite.
    """
    of_all = _mean_returns(method, updates, episodes, loss == "gap", learning_rate, b0, seeds)
    return np.asarray(of_all, np.float64)


@partial(jax.jit, static_argnums=(0, 1, 2))
@partial(jax.vmap, in_axes=(None, None, None, None, None, 0, None))
@partial(jax.vmap, in_axes=(None, None, None, None, None, None, 0))
def _mean_returns(
    method: str,
    updates: int,
    episodes: int,
    by_gap: jax.Array,
    learning_rate: jax.Array,
    b0: jax.Array,
    seed: jax.Array,
) -> jax.Array:
    tx = optax.with_extra_args_support(INNER[method](learning_rate, replace(BASE, b0=b0)))
    for_params, for_updates = jax.random.split(jax.random.key(seed))
    graph, params = nnx.split(Policy(rngs=nnx.Rngs(for_params)))

    def update(
        carry: tuple[Tree, optax.OptState], key: jax.Array
    ) -> tuple[tuple[Tree, optax.OptState], jax.Array]:
        params, state = carry
        seen = act(graph, params, key, episodes)
        value, gradient = jax.value_and_grad(surrogate)(params, graph, seen)
        reached = seen.returns.mean()
        value = jnp.where(by_gap, 1 - reached / LONGEST, value)
        changes, state = tx.update(gradient, state, params, value=value)
        finite = jnp.all(jnp.array([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params)]))
        return (optax.apply_updates(params, changes), state), jnp.where(finite, reached, jnp.nan)

    params = nnx.as_pure(params)
    start = params, tx.init(params)
    return jax.lax.scan(update, start, jax.random.split(for_updates, updates))[1]
