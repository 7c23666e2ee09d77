# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   # ruff: noqa: D100
# ---

# %% [markdown]
# # First steps with `slrla_jax`
#
# `slrla_jax` provides the optimizers of the Lookahead family as
# [optax](https://optax.readthedocs.io) transformations. In about a minute on a CPU, this notebook
#
# 1. draws what Lookahead and SLRLA do on a loss surface with two parameters,
# 2. trains a small Flax network with one line changed from plain optax,
# 3. distributes the training over all devices of the machine, whether one or eight,
#
# and ends with advice on which optimizer to choose. If the package is not installed yet, the next
# cell installs it from the clone of the repository that contains this notebook. (On Colab, clone
# the repository first and change to its folder `examples/notebooks`.)

# %%
import importlib.util

if importlib.util.find_spec("slrla_jax") is None:
    # %pip install -q "../..[examples]"
    importlib.invalidate_caches()

# %%
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx
from matplotlib.colors import PowerNorm
from matplotlib.patheffects import withStroke
from sklearn.datasets import load_digits

from slrla_jax import Stage, lookahead, slow_params, slrla, slrla_sgd

# %% [markdown]
# ## 1. k steps forward, one step back
#
# Lookahead wraps an inner optimizer $A$, such as SGD, and keeps two sets of weights. Starting from
# the *slow weights* $\theta_{t-1}$, the inner optimizer takes $k$ steps on the *fast weights* $v$.
# Then comes a *sync*: the slow weights move a fraction $\alpha$ of the way towards the fast
# weights, and the fast weights restart from there.
#
# $$
# v_0 = \theta_{t-1}, \qquad
# v_\tau = A(v_{\tau-1}, g_{\tau-1}) \quad (\tau = 1, \dots, k), \qquad
# \theta_t = \theta_{t-1} + \alpha\,(v_k - \theta_{t-1})
# $$
#
# Why step back at all? With a large learning rate the fast weights jump from one wall of a valley
# to the other, and noisy gradients scatter them. A point between $\theta_{t-1}$ and $v_k$ averages
# out much of this motion. Progress along the valley, where the $k$ steps agree, is also shortened
# but not lost. The cost is one more copy of the weights; the number of gradients stays the same.
#
# SLRLA, *stagewise locally-regularised Lookahead*, divides training into stages. Stage $q$ runs
# Lookahead on the loss plus a quadratic pull towards the *anchor*, which is the slow weights
# $\theta_{q-1}$ at the start of the stage:
#
# $$
# F_q(\theta) = F(\theta) + \frac{\beta_q}{2}\,\lVert \theta - \theta_{q-1} \rVert^2,
# \qquad\text{so every gradient } g \text{ becomes } g + \beta_q\,(v - \theta_{q-1}).
# $$
#
# Each stage may have its own learning rate, length, $\beta$, $k$ and $\alpha$.
#
# To see this, consider a winding valley, steep across and shallow along its floor, with its minimum
# at the origin. Its gradients carry seeded noise.
#
# $$
# F(x, y) = \sqrt{1 + \left(x - 1.3 \sin\tfrac{y}{2.5}\right)^2} - 1 + 0.025\, y^2
# $$

# %%
START = jnp.array([2.2, 8.0])


def valley(point):
    """The loss F(x, y)."""
    x, y = point
    return jnp.sqrt(1 + (x - 1.3 * jnp.sin(y / 2.5)) ** 2) - 1 + 0.025 * y**2


def gradient_noise(seed, *shape):
    """Gaussian noise for the gradients of many steps."""
    return np.random.default_rng(seed).normal(0, 0.3, (*shape, 2)).astype(np.float32)


def descend(tx, noise):
    """The fast weights after every step, and the slow weights and anchor if `tx` has them."""

    def step(carry, noise):
        params, state = carry
        gradient = jax.grad(valley)(params) + noise
        updates, state = tx.update(gradient, state, params)
        params = optax.apply_updates(params, updates)

        has_slow = optax.tree_utils.tree_get(state, "LookaheadState") is not None
        path = {
            "fast": params,
            "slow": slow_params(state, params) if has_slow else None,
            "anchor": optax.tree_utils.tree_get(state, "anchor_params"),
        }
        return (params, state), path

    return jax.lax.scan(step, (START, tx.init(START)), noise)[1]


# %% [markdown]
# The loop above is the same as for any optax optimizer: the params are the fast weights, and the
# slow weights are in the optimizer state, from which `slow_params` reads them.
#
# Three optimizers start from the same point, with the same noise and the same learning rate, 1.5.
# That is large for this valley: above 1.56, gradient descent cannot settle at the minimum, even
# without noise.

# %%
LEARNING_RATE, K, ALPHA, BETA = 1.5, 5, 0.5, 0.06
CYCLES = 6  # Lookahead cycles per stage of SLRLA

stage = Stage(CYCLES, LEARNING_RATE, beta=BETA, sync_period=K, slow_step_size=ALPHA)
optimizers = {
    "SGD": optax.sgd(LEARNING_RATE),
    "Lookahead": lookahead(optax.sgd(LEARNING_RATE), sync_period=K, slow_step_size=ALPHA),
    "SLRLA": slrla(optax.sgd, [stage] * 14),
}
paths = {name: descend(tx, gradient_noise(44, 120)) for name, tx in optimizers.items()}

# %%
FAST, SLOW, ANCHOR = "#E69F00", "#0072B2", "#882255"  # distinguishable with colour blindness
plt.rcParams.update({"figure.dpi": 100, "figure.constrained_layout.use": True})


def draw_valley(ax, xlim, ylim):
    """Draws contour lines of the loss, the valley floor (dotted), and a cross at the minimum."""
    x, y = np.meshgrid(np.linspace(*xlim, 120), np.linspace(*ylim, 160))
    levels = np.linspace(0, 2.1, 15) ** 2
    ax.contourf(x, y, valley((x, y)), levels, cmap="Greys", norm=PowerNorm(0.5, 0, 7), alpha=0.4)
    ax.contour(x, y, valley((x, y)), levels, colors="0.6", linewidths=0.4)
    ax.plot(1.3 * np.sin(y[:, 0] / 2.5), y[:, 0], ":", color="0.3", lw=1)
    ax.plot(0, 0, "+", color="black", ms=13, mew=2.5, zorder=5)
    ax.set(xlim=xlim, ylim=ylim, xlabel="$x$", aspect="equal")


def cycles_of(path):
    """The slow weights θ_0, θ_1, …, and the fast weights v_0, …, v_k of each cycle.

    After a sync the params are the new slow weights, so v_k, where the step back starts, is
    computed from them.
    """
    theta = np.concatenate([START[None], path["slow"][K - 1 :: K]])
    v_k = theta[:-1] + (theta[1:] - theta[:-1]) / ALPHA
    between = np.reshape(path["fast"], (-1, K, 2))[:, :-1]
    return theta, np.concatenate([theta[:-1, None], between, v_k[:, None]], axis=1)


def draw_arrow(ax, start, end, **style):
    """Draws an arrow from one point to another."""
    ax.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "shrinkA": 0, **style})


def draw_name(ax, name, point, shift, color):
    """Writes a label next to a point, with a white outline."""
    text = ax.annotate(name, point, shift, textcoords="offset points", color=color, size=13)
    text.set_path_effects([withStroke(linewidth=3, foreground="white", alpha=0.8)])


def draw_cycle(ax, path, t):
    """Draws cycle t, from θ_{t−1} to θ_t: k steps forward, one step back."""
    theta, cycles = cycles_of(path)
    v = cycles[t - 1]
    ax.plot(*v.T, "o-", color=FAST, ms=6, lw=1.5, label="fast weights $v$")
    ax.plot(*theta[t - 1 : t + 1].T, "o", color=SLOW, ms=10, label=r"slow weights $\theta$")
    ax.plot([], [], "--", color=SLOW, label="step back")
    draw_arrow(ax, v[K], theta[t], color=SLOW, linestyle="--", linewidth=1.5, shrinkB=5)
    for tau in range(1, K + 1):
        draw_name(ax, f"$v_{tau}$", v[tau], (7, -13), "black")
    for s in t - 1, t:
        draw_name(ax, rf"$\theta_{s}$", theta[s], (8, 6), SLOW)


# %% [markdown]
# First, a close-up of the second cycle of Lookahead and of SLRLA. Lookahead's fast weights jump
# back and forth across the floor of the valley (dotted); the step back lands close to it. SLRLA
# sees the same noise, but is pulled towards its anchor $\theta_0$, the starting point of this first
# stage. At each point where a gradient is evaluated, an arrow shows the contribution of the anchor
# to the step, $-\eta\beta\,(v - \theta_0)$ with learning rate $\eta$, which grows with the
# distance. SLRLA therefore moves less far.

# %%
fig, axes = plt.subplots(1, 2, figsize=(9, 6.8), sharey=True)
for ax, name in zip(axes, ("Lookahead", "SLRLA"), strict=True):
    draw_valley(ax, (-0.6, 2.7), (3.3, 8.4))
    draw_cycle(ax, paths[name], t=2)
    ax.set_title(f"{name}, second cycle")
axes[0].set_ylabel("$y$")

anchor = paths["SLRLA"]["anchor"][K]
axes[1].plot(*anchor, "*", color=ANCHOR, ms=18, mec="white", label=r"anchor $\theta_0$")
axes[1].plot([], [], color=ANCHOR, lw=2.5, label="pull towards the anchor")
for v in cycles_of(paths["SLRLA"])[1][1, :K]:
    draw_arrow(axes[1], v, v - LEARNING_RATE * BETA * (v - anchor), color=ANCHOR, linewidth=2.5)

for ax in axes:
    ax.legend(loc="upper left")
plt.show()

# %% [markdown]
# Now the first 120 steps. SGD descends first and then wanders around the bottom of the valley.
# Lookahead's fast weights are just as noisy, but its slow weights descend more smoothly and stay
# closer to the minimum. SLRLA is held back by its anchors and descends in stages; each anchor pulls
# until the next one replaces it.


# %%
def draw_path(ax, path):
    """Draws a whole path: fast weights, slow weights at every sync, and anchors of all stages."""
    fast = {"color": FAST, "ms": 2.2, "lw": 0.7, "alpha": 0.85, "label": "fast weights $v$"}
    slow = {"color": SLOW, "ms": 5, "lw": 1.8, "mec": "white", "label": r"slow weights $\theta$"}
    if path["slow"] is None:
        ax.plot(*np.concatenate([START[None], path["fast"]]).T, "o-", **fast)
        return
    theta, cycles = cycles_of(path)
    ax.plot(*cycles.reshape(-1, 2).T, "o-", **fast)
    ax.plot(*theta.T, "o-", **slow)
    if path["anchor"] is not None:
        anchors = path["anchor"][:: K * CYCLES]
        ax.plot(*anchors.T, "*", color=ANCHOR, ms=16, mec="white", label="anchors")


fig, axes = plt.subplots(1, 3, figsize=(10.5, 7.4), sharey=True)
for ax, (name, path) in zip(axes, paths.items(), strict=True):
    draw_valley(ax, (-2.9, 2.9), (-2.6, 8.9))
    draw_path(ax, path)
    ax.set_title(name)
    ax.legend(loc="upper left")
axes[0].set_ylabel("$y$")
plt.show()

# %% [markdown]
# A single path proves little, so here is the loss averaged over 200 noise seeds.

# %%
noise = gradient_noise(0, 200, 300)
many = {name: jax.vmap(partial(descend, tx))(noise) for name, tx in optimizers.items()}
mean_loss = jax.jit(lambda points: jax.vmap(jax.vmap(valley))(points).mean(axis=0))

fig, ax = plt.subplots(figsize=(8.5, 4))
ax.semilogy(mean_loss(many["SGD"]["fast"]), color=FAST, label="SGD")
ax.semilogy(
    mean_loss(many["Lookahead"]["fast"]), color=SLOW, lw=0.6, alpha=0.6, label="Lookahead, fast"
)
ax.semilogy(mean_loss(many["Lookahead"]["slow"]), color=SLOW, lw=2, label="Lookahead, slow")
ax.semilogy(mean_loss(many["SLRLA"]["slow"]), color=ANCHOR, lw=2, label="SLRLA, slow")
ax.set(xlabel="step", ylabel="mean loss")
ax.legend()
plt.show()

# %% [markdown]
# SGD descends fastest and then stays at a mean loss of about 0.17, because the noise keeps pushing
# it up the walls. The noise does the same to Lookahead's fast weights, but every sync brings them
# back to the slow weights, which settle below half of that loss. Hence the rule: **evaluate and
# deploy the slow weights.**
#
# SLRLA takes longer to reach the same level. In this valley its anchors gain nothing, nor are they
# meant to: they address *generalisation*, the gap between training and test error, which a single
# loss surface cannot show. [Zhou et al.][1] bound both parts of the error. For a
# $\lambda$-strongly convex loss and $n$ examples, trained to the same optimisation error, their
# bound on the gap is of order $1/(n\lambda)$ for Lookahead and
# $1/(n\,(\lambda + \beta/\alpha))$ for SLRLA.
#
# [1]: https://proceedings.neurips.cc/paper/2021/hash/e53a0a2978c28872a4505bdb51db06dc-Abstract.html

# %% [markdown]
# ## 2. One line changed: a Flax network
#
# The data set is scikit-learn's handwritten digits, 1,797 images of 8 × 8 pixels, and the network
# has one hidden layer. Everything in the next cell is plain Flax NNX and optax.

# %%
images, labels = load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(images))
images, labels = (images[order] / 16).astype(np.float32), labels[order]
train_images, test_images = images[:1297], images[1297:]
train_labels, test_labels = labels[:1297], labels[1297:]

BATCH, STEPS = 32, 199


class Net(nnx.Module):
    """A multilayer perceptron with one hidden layer."""

    def __init__(self, rngs):
        self.hidden = nnx.Linear(64, 64, rngs=rngs)
        self.output = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, images):
        """The logits of a batch of flat images."""
        return self.output(nnx.relu(self.hidden(images)))


def cross_entropy(model, images, labels):
    """The training loss."""
    return optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()


def accuracy(model):
    """Accuracy on the test images."""
    return jnp.mean(jnp.argmax(model(test_images), axis=-1) == test_labels)


@nnx.jit
def train_step(model, optimizer, images, labels):
    """One training step on one batch."""
    grads = nnx.grad(cross_entropy)(model, images, labels)
    optimizer.update(model, grads)


def train(tx, seed=0):
    """Trains a new network with the given optax optimizer."""
    model = Net(nnx.Rngs(seed))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    rng = np.random.default_rng(seed)
    for _ in range(STEPS):
        batch = rng.integers(len(train_images), size=BATCH)
        train_step(model, optimizer, train_images[batch], train_labels[batch])
    return model, optimizer


# %%
tx = optax.sgd(0.2, momentum=0.9)

model, optimizer = train(tx)
print(f"SGD: {accuracy(model):.1%} of the test images")

# %% [markdown]
# Now the same with Lookahead. Only the line that makes the optimizer changes. Evaluation needs one
# more step: the model now holds the fast weights, and `slow_params` reads the slow weights from
# `optimizer.opt_state`. The two differ only in mid-cycle, and 199 steps end one step before a sync.

# %%
tx = lookahead(optax.sgd(0.2, momentum=0.9), sync_period=5, slow_step_size=0.5)

model, optimizer = train(tx)
graphdef, params = nnx.split(model, nnx.Param)
slow_model = nnx.merge(graphdef, slow_params(optimizer.opt_state, params))
print(f"Lookahead, fast weights: {accuracy(model):.1%}")
print(f"Lookahead, slow weights: {accuracy(slow_model):.1%}")

# %% [markdown]
# One run on 500 test images says little: an accuracy of 97 % has a standard error of 0.8 %. The
# next cells therefore use ten seeds for each of three learning rates, and add SGD with a learning
# rate that decays to zero. To save time, the whole training is one compiled function of the params
# rather than of a model. `functional_step` is the usual training step for any function of a tree of
# params; its argument `axis` is for the next section.


# %%
graphdef, _ = nnx.split(Net(nnx.Rngs(0)), nnx.Param)


def init_params(seed):
    """The params of a new network, as a tree of arrays."""
    return nnx.as_pure(nnx.state(Net(nnx.Rngs(seed)), nnx.Param))


def net(params):
    """The network with these params."""
    return nnx.merge(graphdef, params, copy=True)


def functional_step(tx, params, state, images, labels, axis=None):
    """One training step on a batch; with `axis`, on each device's part of the batch."""
    grads = jax.grad(lambda p: cross_entropy(net(p), images, labels))(params)
    if axis is not None:
        grads = jax.lax.pmean(grads, axis)
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state


def accuracies(make_optimizer, learning_rate, params, batches):
    """Test accuracy of the fast and the slow weights after training."""
    tx = make_optimizer(learning_rate)

    def step(carry, batch):
        images, labels = jnp.asarray(train_images)[batch], jnp.asarray(train_labels)[batch]
        return functional_step(tx, *carry, images, labels), None

    (params, state), _ = jax.lax.scan(step, (params, tx.init(params)), batches)
    has_slow = optax.tree_utils.tree_get(state, "LookaheadState") is not None
    slow = slow_params(state, params) if has_slow else params
    return accuracy(net(params)), accuracy(net(slow))


# %%
makers = {
    "SGD": lambda rate: optax.sgd(rate, momentum=0.9),
    "SGD, decay": lambda rate: optax.sgd(optax.cosine_decay_schedule(rate, STEPS), momentum=0.9),
    "Lookahead": lambda rate: lookahead(optax.sgd(rate, momentum=0.9), 5, 0.5),
    "SLRLA": lambda rate: slrla_sgd(rate, beta=0.4, slow_step_size=0.5, momentum=0.9),
}
SEEDS = range(10)
starts = [init_params(seed) for seed in SEEDS]
batches = np.random.default_rng(0).integers(len(train_images), size=(len(SEEDS), STEPS, BATCH))

print(f"{'':11}{'learning rate':15}{'fast weights':18}slow weights")
for name, make in makers.items():
    run = jax.jit(partial(accuracies, make))
    for rate in (0.05, 0.2, 0.4):
        runs = np.array([run(rate, starts[seed], batches[seed]) for seed in SEEDS])
        mean, std = 100 * runs.mean(axis=0), 100 * runs.std(axis=0, ddof=1)
        fast, slow = (f"{m:.1f} ± {s:.1f} %" for m, s in zip(mean, std, strict=True))
        print(f"{name:11}{rate:<15}{fast:18}{slow if 'SGD' not in name else ''}".rstrip())

# %% [markdown]
# What the table says, and what it does not say:
#
# - With the small learning rate there is little noise to remove. The step back only slows progress,
#   and SGD does as well or better.
# - With the larger learning rates SGD gets worse, and the slow weights of Lookahead get worse by
#   much less; they are also better than its fast weights. Lookahead tolerates too large a learning
#   rate.
# - A well-chosen decay does as much for SGD. On a small task, expect Lookahead to be more robust,
#   not more accurate.
# - SLRLA is behind Lookahead here. Its pull slows progress further, and 199 steps are few. This
#   says nothing about long training in stages, for which it was designed.

# %% [markdown]
# ## 3. All devices at once
#
# With `jax.pmap`, each device computes the gradient on its part of the batch, `jax.lax.pmean`
# averages the gradients, and every device makes the same update. The optimizer need not know about
# this: its counters and slow weights are equal on all devices, so all devices sync at the same
# step. The next cell uses all available devices and compares them with one device that receives the
# whole batch. To try eight devices on a CPU, set the environment variable
# `XLA_FLAGS=--xla_force_host_platform_device_count=8` before JAX starts.

# %%
devices = jax.local_device_count()
size = 128 // devices * devices  # batch size; every device gets an equal part
tx = lookahead(optax.sgd(0.2, momentum=0.9), sync_period=5, slow_step_size=0.5)

params = init_params(seed=0)
state = tx.init(params)
one_step = jax.jit(partial(functional_step, tx))

all_params, all_state = jax.tree.map(lambda x: np.stack([x] * devices), (params, state))
all_step = jax.pmap(partial(functional_step, tx, axis="devices"), axis_name="devices")

rng = np.random.default_rng(0)
with jax.default_matmul_precision("highest"):  # also on GPUs and TPUs
    for _ in range(13):
        batch = rng.integers(len(train_images), size=size)
        images, labels = train_images[batch], train_labels[batch]
        params, state = one_step(params, state, images, labels)

        parts = images.reshape(devices, -1, 64), labels.reshape(devices, -1)
        all_params, all_state = all_step(all_params, all_state, *parts)
        # Virtual CPU devices share threads: steps dispatched ahead could block a mean.
        jax.block_until_ready(all_params)

one = jax.device_get(jax.tree.leaves((params, slow_params(state, params))))
each = jax.device_get(jax.tree.leaves((all_params, slow_params(all_state, all_params))))
assert all((x == x[0]).all() for x in each)  # the devices agree bit-for-bit
difference = max(np.abs(x[0] - y).max() for x, y in zip(each, one, strict=True))
assert difference < 1e-5  # they agree with one device up to rounding
print(f"{devices} device(s) with {size // devices} images each.")
print(f"Largest difference from one device, fast and slow weights: {difference:.0e}")

# %% [markdown]
# `slow_params` accepts the replicated state as it is. With `jax.jit` and sharded arrays there is
# even less to do: the step is the same as for a single device.

# %% [markdown]
# ## Which optimizer to choose
#
# - **`lookahead(inner)`** is the one to try first. It wraps any optax optimizer, such as
#   `optax.adamw`, and costs one more copy of the weights. Usual values are $k$ = 5 to 10 and
#   $\alpha$ = 0.5 to 0.8; a smaller $\alpha$ averages more and makes progress more slowly.
# - **`slrla(optimizer, stages)`** suits training that has stages anyway, such as a learning rate
#   that drops a few times: each stage then stays near the solution of the previous one. With Adam
#   and similar optimizers, `decoupled=True` exempts the pull from their scaling, as AdamW does with
#   weight decay.
# - **`slrla_sgd(...)`** is SLRLA around SGD with momentum in the form of the authors' code. It
#   needs no more memory than Lookahead if the anchor is refreshed at every sync, as it is by
#   default.
# - **`multilayer_lookahead(inner, (5, 5), (0.8, 0.8))`**, Lookahead around Lookahead, is for cases
#   where one layer does not average enough; each layer needs one more copy of the weights.
# - **The inner optimizer alone** suffices if the learning rate is small or decays to nearly zero,
#   or if you can afford only a few hundred steps: there is then little noise to average, and the
#   steps back slow progress.
#
# With all of them, evaluate at `slow_params(opt_state, params)`, and save params and state
# together, because the slow weights are in the state.
#
# ## References
#
# - M. R. Zhang, J. Lucas, G. Hinton, J. Ba: [Lookahead Optimizer: k steps forward, 1 step
#   back](https://arxiv.org/abs/1907.08610), 2019.
# - P. Zhou, H. Yan, X. Yuan, J. Feng, S. Yan: [Towards Understanding Why Lookahead Generalizes
#   Better Than SGD and Beyond][1], NeurIPS 2021. SLRLA is from this paper.
# - D. Pushkin, L. Barba: [Multilayer Lookahead: a Nested Version of
#   Lookahead](https://arxiv.org/abs/2110.14254), 2021.
#
# [1]: https://proceedings.neurips.cc/paper/2021/hash/e53a0a2978c28872a4505bdb51db06dc-Abstract.html
