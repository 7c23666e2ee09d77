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
# `slrla_jax` holds the optimizers of the Lookahead family as
# [optax](https://optax.readthedocs.io) transformations. In about a minute on a CPU this notebook
#
# 1. draws what Lookahead and SLRLA do, on a landscape of two parameters,
# 2. trains a small Flax network, with one line changed from plain optax,
# 3. splits the training over all devices of the machine, be it one or eight,
#
# and ends with a list of what to choose when. The next cell installs the package where it is
# missing.

# %%
import importlib.util

if importlib.util.find_spec("slrla_jax") is None:
    # %pip install -q "slrla-jax[examples]"
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
# Lookahead wraps an inner optimizer $A$, SGD say, and keeps two sets of weights. From the *slow
# weights* $\theta_{t-1}$ the inner optimizer makes $k$ steps on the *fast weights* $v$. Then comes
# a *sync*: the slow weights go a fraction $\alpha$ of the way, and the fast weights start again
# from there.
#
# $$
# v_0 = \theta_{t-1}, \qquad
# v_\tau = A(v_{\tau-1}, g_{\tau-1}) \quad (\tau = 1, \dots, k), \qquad
# \theta_t = \theta_{t-1} + \alpha\,(v_k - \theta_{t-1})
# $$
#
# Why step back at all? With a long learning rate the fast weights jump from one wall of a valley to
# the other, and noisy gradients throw them about. A point between $\theta_{t-1}$ and $v_k$ evens
# out much of that. The progress along the valley, on which the $k$ steps agree, is shortened too,
# but it is not lost. The price is one more copy of the weights; gradients are as many as before.
#
# SLRLA, *stagewise locally-regularised Lookahead*, divides training into stages. Stage $q$ runs
# Lookahead on the loss plus a spring to the *anchor*, the slow weights $\theta_{q-1}$ with which
# the stage began:
#
# $$
# F_q(\theta) = F(\theta) + \frac{\beta_q}{2}\,\lVert \theta - \theta_{q-1} \rVert^2,
# \qquad\text{so every gradient } g \text{ becomes } g + \beta_q\,(v - \theta_{q-1}).
# $$
#
# Each stage may have its own learning rate, length, $\beta$, $k$ and $\alpha$.
#
# To watch this, here is a winding valley, steep across and shallow along, with its lowest point at
# the origin. Its gradients come with seeded noise.
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
    """Normal noise for the gradients of many steps."""
    return np.random.default_rng(seed).normal(0, 0.3, (*shape, 2)).astype(np.float32)


def descend(tx, noise):
    """The fast weights after every step, and slow weights and anchor where `tx` has them."""

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
# The loop above is the one you would write for any optax optimizer: the params are the fast
# weights, and the slow weights live in the optimizer's state, from where `slow_params` reads them.
#
# Three optimizers start from the same point, with the same noise and the same learning rate, 1.5.
# That is long for this valley: above 1.56, gradient descent cannot settle at the lowest point, even
# without noise.

# %%
LEARNING_RATE, K, ALPHA, BETA = 1.5, 5, 0.5, 0.06
CYCLES = 6  # of Lookahead, in a stage of SLRLA

stage = Stage(CYCLES, LEARNING_RATE, beta=BETA, sync_period=K, slow_step_size=ALPHA)
optimizers = {
    "SGD": optax.sgd(LEARNING_RATE),
    "Lookahead": lookahead(optax.sgd(LEARNING_RATE), sync_period=K, slow_step_size=ALPHA),
    "SLRLA": slrla(optax.sgd, [stage] * 14),
}
paths = {name: descend(tx, gradient_noise(44, 120)) for name, tx in optimizers.items()}

# %%
FAST, SLOW, ANCHOR = "#E69F00", "#0072B2", "#882255"  # distinct to colour-blind eyes too
plt.rcParams.update({"figure.dpi": 100, "figure.constrained_layout.use": True})


def draw_valley(ax, xlim, ylim):
    """Contour lines of the loss, the valley's floor dotted, and a cross at the lowest point."""
    x, y = np.meshgrid(np.linspace(*xlim, 120), np.linspace(*ylim, 160))
    levels = np.linspace(0, 2.1, 15) ** 2
    ax.contourf(x, y, valley((x, y)), levels, cmap="Greys", norm=PowerNorm(0.5, 0, 7), alpha=0.4)
    ax.contour(x, y, valley((x, y)), levels, colors="0.6", linewidths=0.4)
    ax.plot(1.3 * np.sin(y[:, 0] / 2.5), y[:, 0], ":", color="0.3", lw=1)
    ax.plot(0, 0, "+", color="black", ms=13, mew=2.5, zorder=5)
    ax.set(xlim=xlim, ylim=ylim, xlabel="$x$", aspect="equal")


def cycles_of(path):
    """The slow weights θ_0, θ_1, …, and the fast weights v_0, …, v_k of each cycle.

    After a sync the params are the new slow weights, so v_k, where the step back sets out, is
    found from them.
    """
    theta = np.concatenate([START[None], path["slow"][K - 1 :: K]])
    v_k = theta[:-1] + (theta[1:] - theta[:-1]) / ALPHA
    between = np.reshape(path["fast"], (-1, K, 2))[:, :-1]
    return theta, np.concatenate([theta[:-1, None], between, v_k[:, None]], axis=1)


def draw_arrow(ax, start, end, **style):
    """An arrow from one point to another."""
    ax.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "shrinkA": 0, **style})


def draw_name(ax, name, point, shift, color):
    """A name beside a point, with a white halo."""
    text = ax.annotate(name, point, shift, textcoords="offset points", color=color, size=13)
    text.set_path_effects([withStroke(linewidth=3, foreground="white", alpha=0.8)])


def draw_cycle(ax, path, t):
    """From θ_{t−1} to θ_t: k steps forward, one step back."""
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
# First the second cycle of both, as under a magnifying glass. Lookahead's fast weights jump to and
# fro across the floor of the valley (dotted); the step back lands close to it. SLRLA meets the same
# noise, but is tied to its anchor $\theta_0$, the starting point of this first stage. At each point
# where a gradient is taken, an arrow shows the anchor's part of the step,
# $-\eta\beta\,(v - \theta_0)$ with the learning rate $\eta$: the farther away, the stronger. So
# SLRLA goes less far.

# %%
fig, axes = plt.subplots(1, 2, figsize=(9, 6.8), sharey=True)
for ax, name in zip(axes, ("Lookahead", "SLRLA"), strict=True):
    draw_valley(ax, (-0.6, 2.7), (3.3, 8.4))
    draw_cycle(ax, paths[name], t=2)
    ax.set_title(f"{name}, second cycle")
axes[0].set_ylabel("$y$")

anchor = paths["SLRLA"]["anchor"][K]
axes[1].plot(*anchor, "*", color=ANCHOR, ms=18, mec="white", label=r"anchor $\theta_0$")
axes[1].plot([], [], color=ANCHOR, lw=2.5, label="pull to the anchor")
for v in cycles_of(paths["SLRLA"])[1][1, :K]:
    draw_arrow(axes[1], v, v - LEARNING_RATE * BETA * (v - anchor), color=ANCHOR, linewidth=2.5)

for ax in axes:
    ax.legend(loc="upper left")
plt.show()

# %% [markdown]
# Now the first 120 steps. SGD is the first to come down, and then roams the bottom of the valley.
# Lookahead's fast weights are as restless, but its slow weights take a calmer way down and keep
# closer to the lowest point. SLRLA is held by its anchors and comes down in stages; each anchor
# pulls until the next takes its place.


# %%
def draw_path(ax, path):
    """A whole path: fast weights, slow weights at every sync, the anchor of every stage."""
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
# One path proves little, so here is the loss averaged over 200 seeds of the noise.

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
# SGD descends fastest and stays at a mean loss of about 0.17, for noise keeps throwing it up the
# walls. So it does with Lookahead's fast weights, but every sync brings them down to the slow
# weights, which settle below half of that. Hence the rule: **evaluate, and deploy, the slow
# weights.**
#
# SLRLA takes longer to the same level. On this valley its anchors buy nothing, and they are not
# meant to: what they are for is *generalisation*, the gap between training and test, of which a
# single landscape knows nothing. [Zhou et al.][1] bound both parts of the error. For a
# $\lambda$-strongly convex loss and $n$ examples, trained to the same optimisation error, their
# bound on the gap is of the order $1/(n\lambda)$ with Lookahead and
# $1/(n\,(\lambda + \beta/\alpha))$ with SLRLA.
#
# [1]: https://proceedings.neurips.cc/paper/2021/hash/e53a0a2978c28872a4505bdb51db06dc-Abstract.html

# %% [markdown]
# ## 2. One line changed: a Flax network
#
# The data are scikit-learn's handwritten digits, 1,797 images of 8 × 8 pixels, and the network has
# one hidden layer. Everything in the next cell is plain Flax NNX and optax.

# %%
images, labels = load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(images))
images, labels = (images[order] / 16).astype(np.float32), labels[order]
train_images, test_images = images[:1297], images[1297:]
train_labels, test_labels = labels[:1297], labels[1297:]

BATCH, STEPS = 32, 199


class Net(nnx.Module):
    """A perceptron with one hidden layer."""

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
    """The share of test images that the model gets right."""
    return jnp.mean(jnp.argmax(model(test_images), axis=-1) == test_labels)


@nnx.jit
def train_step(model, optimizer, images, labels):
    """One step on one batch."""
    grads = nnx.grad(cross_entropy)(model, images, labels)
    optimizer.update(model, grads)


def train(tx, seed=0):
    """Trains a new network with an optax optimizer."""
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
# The same with Lookahead. One line changes, that of the optimizer. Another one is added for the
# evaluation: the model now holds the fast weights, and `slow_params` finds the slow ones in
# `optimizer.opt_state`. They differ in the middle of a cycle only, and 199 steps end one step
# before a sync.

# %%
tx = lookahead(optax.sgd(0.2, momentum=0.9), sync_period=5, slow_step_size=0.5)

model, optimizer = train(tx)
graphdef, params = nnx.split(model, nnx.Param)
slow_model = nnx.merge(graphdef, slow_params(optimizer.opt_state, params))
print(f"Lookahead, fast weights: {accuracy(model):.1%}")
print(f"Lookahead, slow weights: {accuracy(slow_model):.1%}")

# %% [markdown]
# One run on 500 test images tells little: an accuracy of 97 % has a standard error of 0.8 %. So
# here are ten seeds for each of three learning rates, and also SGD with a learning rate that decays
# to zero. To save time the whole training is one compiled function, on the params themselves rather
# than on a model. `functional_step` is what you would write for any function of a tree of params;
# its argument `axis` is for the next section.


# %%
graphdef, _ = nnx.split(Net(nnx.Rngs(0)), nnx.Param)


def init_params(seed):
    """The params of a new network, as a tree of arrays."""
    return nnx.as_pure(nnx.state(Net(nnx.Rngs(seed)), nnx.Param))


def net(params):
    """The network with these params."""
    return nnx.merge(graphdef, params, copy=True)


def functional_step(tx, params, state, images, labels, axis=None):
    """One step on one batch; with `axis`, on the parts of it that the devices hold."""
    grads = jax.grad(lambda p: cross_entropy(net(p), images, labels))(params)
    if axis is not None:
        grads = jax.lax.pmean(grads, axis)
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state


def accuracies(make_optimizer, learning_rate, params, batches):
    """Test accuracy of the fast and of the slow weights after training."""
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
# What the table says, and what it does not:
#
# - With the short learning rate there is little noise to be rid of. The step back only shortens the
#   way, and SGD does as well or better.
# - With the longer ones SGD suffers, and much less so the slow weights of Lookahead, which are also
#   better than its fast weights. Lookahead forgives a learning rate that is too long.
# - A well chosen decay does as much for SGD. On a small task expect a steadier optimizer from
#   Lookahead, not a new record.
# - SLRLA is behind Lookahead here. Its pull is one more brake, and 199 steps are few. About long
#   training in stages, for which it is made, that tells nothing.

# %% [markdown]
# ## 3. All devices at once
#
# With `jax.pmap` each device computes the gradient on its part of the batch, `jax.lax.pmean`
# averages the gradients, and every device makes the same update. The optimizer needs to know
# nothing of that: its counters and slow weights are equal everywhere, so all devices sync at the
# same step. The next cell uses as many devices as there are and compares with one device that
# gets the whole batch. To see it with eight on a CPU, set the environment variable
# `XLA_FLAGS=--xla_force_host_platform_device_count=8` before JAX starts.

# %%
devices = jax.local_device_count()
size = 128 // devices * devices  # of a batch; the devices get equal parts
tx = lookahead(optax.sgd(0.2, momentum=0.9), sync_period=5, slow_step_size=0.5)

params = init_params(seed=0)
state = tx.init(params)
one_step = jax.jit(partial(functional_step, tx))

all_params, all_state = jax.tree.map(lambda x: np.stack([x] * devices), (params, state))
all_step = jax.pmap(partial(functional_step, tx, axis="devices"), axis_name="devices")

rng = np.random.default_rng(0)
with jax.default_matmul_precision("highest"):  # on GPUs and TPUs too
    for _ in range(13):
        batch = rng.integers(len(train_images), size=size)
        images, labels = train_images[batch], train_labels[batch]
        params, state = one_step(params, state, images, labels)

        parts = images.reshape(devices, -1, 64), labels.reshape(devices, -1)
        all_params, all_state = all_step(all_params, all_state, *parts)
        # A CPU's virtual devices share its threads: steps dispatched ahead could block a sum.
        jax.block_until_ready(all_params)

one = jax.device_get(jax.tree.leaves((params, slow_params(state, params))))
each = jax.device_get(jax.tree.leaves((all_params, slow_params(all_state, all_params))))
assert all((x == x[0]).all() for x in each)  # the devices agree, to the bit
difference = max(np.abs(x[0] - y).max() for x, y in zip(each, one, strict=True))
assert difference < 1e-5  # they agree with one device to rounding
print(f"{devices} device(s) with {size // devices} images each.")
print(f"Largest difference from one device, fast and slow weights: {difference:.0e}")

# %% [markdown]
# `slow_params` takes the replicated state as it is. With `jax.jit` and sharded arrays there is even
# less to do: the step is the one of a single device.

# %% [markdown]
# ## What to choose when
#
# - **`lookahead(inner)`** first. It goes around any optax optimizer, `optax.adamw` for example, and
#   costs one more copy of the weights. $k$ = 5 to 10 and $\alpha$ = 0.5 to 0.8 are the usual
#   range; a smaller $\alpha$ averages more and goes more slowly.
# - **`slrla(optimizer, stages)`** where training has stages anyway, such as a learning rate that
#   drops a few times: each stage then stays near the solution of the one before. With Adam and its
#   kin, `decoupled=True` keeps the pull out of their scaling, as AdamW does with weight decay.
# - **`slrla_sgd(...)`** for SLRLA around SGD with momentum in the form of the authors' code, with
#   the memory of Lookahead where the anchor is renewed at each sync, as it is by default.
# - **`multilayer_lookahead(inner, (5, 5), (0.8, 0.8))`**, Lookahead around Lookahead, where one
#   layer does not average enough; each layer takes one more copy.
# - **The inner optimizer alone** where the learning rate is short or decays to nearly zero, and
#   where only a few hundred steps are affordable: then there is little noise to average, and
#   stepping back costs time.
#
# And with all of them: evaluate `slow_params(opt_state, params)`, and save params and state
# together, since the slow weights are in the state.
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
