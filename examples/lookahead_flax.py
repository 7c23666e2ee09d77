"""Lookahead around Adam in Flax NNX: change one line, and evaluate the slow weights.

    python examples/lookahead_flax.py

9 s (8 s of CPU time) on two cores of an Intel Xeon at 2.5 GHz, shared with other work:
99.5 % accuracy on the 597 test images with the slow weights, for one seed.
"""

import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

from slrla_jax import lookahead, slow_params

EPOCHS = 8
BATCH_SIZE = 32
LEARNING_RATE = 1e-2


def load_data():
    """Scikit-learn's digits in a fixed random order: 1,200 for training and 597 for testing."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    images = (images[order] / 16).astype(np.float32).reshape(-1, 8, 8, 1)
    labels = labels[order]
    return (images[:1200], labels[:1200]), (images[1200:], labels[1200:])


class CNN(nnx.Module):
    """Two convolutions and a hidden layer."""

    def __init__(self, rngs):
        self.conv1 = nnx.Conv(1, 16, kernel_size=(3, 3), rngs=rngs)
        self.conv2 = nnx.Conv(16, 32, kernel_size=(3, 3), rngs=rngs)
        self.hidden = nnx.Linear(4 * 4 * 32, 64, rngs=rngs)
        self.output = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x):
        """The logits of a batch of images."""
        x = nnx.relu(self.conv1(x))
        x = nnx.relu(self.conv2(x))
        x = nnx.max_pool(x, window_shape=(2, 2), strides=(2, 2))
        x = nnx.relu(self.hidden(x.reshape(x.shape[0], -1)))
        return self.output(x)


def loss_fn(model, images, labels):
    """Mean cross-entropy of a batch."""
    return optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()


@nnx.jit
def train_step(model, optimizer, images, labels):
    """One training step, the same for any optax optimizer."""
    loss, grads = nnx.value_and_grad(loss_fn)(model, images, labels)
    optimizer.update(model, grads)
    return loss


@nnx.jit
def eval_step(model, images, labels):
    """Accuracy of a model."""
    return (model(images).argmax(axis=-1) == labels).mean()


def slow_model(model, optimizer):
    """A copy of the model with the slow weights.

    The model itself holds the fast weights; the slow weights are in the optimizer state.
    """
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    return nnx.merge(graphdef, slow_params(optimizer.opt_state, params), rest, copy=True)


def main():
    """Trains a small network on the digits and compares its fast and slow weights."""
    (images, labels), test = load_data()
    model = CNN(nnx.Rngs(0))

    # Only this line changes. It was: tx = optax.adam(LEARNING_RATE)
    tx = lookahead(optax.adam(LEARNING_RATE), sync_period=5, slow_step_size=0.5)

    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    rng = np.random.default_rng(0)
    for epoch in range(1, EPOCHS + 1):
        # An epoch has 37 steps, so most epochs end in mid-cycle, where fast and slow weights
        # differ.
        batches = rng.permutation(len(images))[: len(images) // BATCH_SIZE * BATCH_SIZE]
        losses = [
            train_step(model, optimizer, images[batch], labels[batch])
            for batch in batches.reshape(-1, BATCH_SIZE)
        ]
        fast, slow = eval_step(model, *test), eval_step(slow_model(model, optimizer), *test)
        print(
            f"epoch {epoch}: training loss {np.mean(losses):.4f}, "
            f"test accuracy {fast:.2%} with the fast weights, {slow:.2%} with the slow weights"
        )
    print(f"final test accuracy: {slow:.2%}")


if __name__ == "__main__":
    main()
