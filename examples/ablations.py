"""What α and β do to training loss, test loss and their difference in softmax regression.

    python examples/ablations.py --dataset fashion_mnist --data_path DIR

A convex problem, for which the theory of the SLRLA paper says what to expect: with few samples
for the steps that are taken, a slow step size α below 1 is best. As a smaller α makes smaller
steps, SGD with c times the learning rate is there to tell what else it does. All settings and all
seeds are trained at once, in one compiled program; from few samples and from many for the same
number of steps. Each seed draws its own samples and batches; all start from zero.
"""

import functools
import itertools
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from experiments import data
from experiments.config import Config
from experiments.data import DataError, Dataset
from experiments.reporting import ablation_report
from experiments.running import flags
from experiments.schedules import Stages, stages_of, with_milestones_that_fit

from slrla_jax import Stage, slow_params, slrla

ALPHAS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
BETAS = (0.0, 0.001, 0.01, 0.05, 0.2, 0.8, 2.0, 5.0, 20.0, 50.0)

# The paper's softmax regression: stagewise, and each stage with half the learning rate.
LEARNING_RATE, DECAY, MILESTONES = 0.05, 0.5, (0.3, 0.6, 0.8)
MOMENTUM, WEIGHT_DECAY = 0.9, 1e-4
K, ALPHA = 5, 0.8
SCORED_AT_ONCE = 1_000

Params = dict[str, jax.Array]
Pool = tuple[jax.Array, jax.Array]


class Grid(NamedTuple):
    """Settings that are trained side by side.

    Attributes:
      alphas: slow step sizes, float32 of shape (settings,).
      betas: strengths of the regulariser in the paper's convention, likewise.
      rates: learning rates of the first stage, likewise.
    """

    alphas: jax.Array
    betas: jax.Array
    rates: jax.Array


def grid() -> Grid:
    """All α with β = 0, which is stagewise Lookahead; all β; SGD with as many learning rates."""
    lookahead = [(alpha, 0.0, LEARNING_RATE) for alpha in ALPHAS]
    regularised = [(ALPHA, beta, LEARNING_RATE) for beta in BETAS]
    sgd = [(1.0, 0.0, c * LEARNING_RATE) for c in ALPHAS]
    return Grid(*map(jnp.array, zip(*lookahead, *regularised, *sgd, strict=True)))


def groups() -> dict[str, dict[str, Any]]:
    """What is varied in `grid`, in its order, and where the method is switched off."""
    return {
        "α": {"settings": ALPHAS, "off": 1.0},
        "β": {"settings": BETAS, "off": 0.0},
        "c": {"settings": ALPHAS, "off": 1.0},
    }


def optimizer(
    alpha: jax.Array, beta: jax.Array, rate: jax.Array, cycles: Sequence[int]
) -> optax.GradientTransformation:
    """SLRLA as Algorithm 3 around SGD with momentum, in stages of so many cycles."""
    return slrla(
        lambda schedule: optax.chain(
            optax.add_decayed_weights(WEIGHT_DECAY), optax.sgd(schedule, momentum=MOMENTUM)
        ),
        [
            Stage(t, rate * DECAY**q, beta=beta, sync_period=K, slow_step_size=alpha)
            for q, t in enumerate(cycles)
        ],
    )


def cross_entropy(params: Params, inputs: jax.Array, labels: jax.Array) -> jax.Array:
    """The mean over a batch: inputs of shape (batch, pixels), labels of shape (batch,)."""
    logits = inputs @ params["kernel"] + params["bias"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def train(
    dataset: Dataset, pool: Pool, cycles: Sequence[int], settings: Grid, order: jax.Array
) -> Params:
    """The slow weights of each setting after its last step.

    Args:
      dataset: knows the images' shape, and how to standardise them.
      pool: the images and labels that `order` names.
      cycles: length of each stage, in cycles of K steps.
      settings: what is trained side by side, on the same batches.
      order: indices of training images, of shape (steps, batch).

    Returns:
      Weights with a leading axis of settings.
    """
    images, labels = pool

    def begin(*setting: jax.Array) -> tuple[Params, optax.OptState]:
        pixels = int(np.prod(dataset.image_shape))
        params = {
            "kernel": jnp.zeros((pixels, dataset.classes)),
            "bias": jnp.zeros(dataset.classes),
        }
        return params, optimizer(*setting, cycles).init(params)

    def step(batch: Any, setting: Grid, params: Params, state: Any) -> tuple[Params, Any]:
        gradients = jax.grad(cross_entropy)(params, *batch)
        updates, state = optimizer(*setting, cycles).update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    def all_settings(
        carry: tuple[Params, Any], batch: jax.Array
    ) -> tuple[tuple[Params, Any], None]:
        inputs = dataset.standardise(images[batch]).reshape(len(batch), -1)
        one = functools.partial(step, (inputs, labels[batch]))
        return jax.vmap(one)(settings, *carry), None

    (params, state), _ = jax.lax.scan(all_settings, jax.vmap(begin)(*settings), order)
    return jax.vmap(slow_params)(state, params)


def score(
    dataset: Dataset, pool: Pool, params: Params, indices: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Mean loss and accuracy of each setting on some images, of shape (settings,)."""
    images, labels = pool

    def one(index: jax.Array) -> tuple[jax.Array, jax.Array]:
        inputs = dataset.standardise(images[index]).reshape(-1)
        logits = inputs @ params["kernel"] + params["bias"]
        losses = optax.softmax_cross_entropy_with_integer_labels(
            logits, jnp.broadcast_to(labels[index], logits.shape[:-1])
        )
        return losses, jnp.float32(logits.argmax(-1) == labels[index])

    losses, correct = jax.lax.map(one, indices, batch_size=SCORED_AT_ONCE)
    return losses.mean(0), correct.mean(0)


def ablate(
    dataset: Dataset, samples: int, steps: int, batch_size: int, seeds: int, settings: Grid
) -> dict[str, np.ndarray]:
    """Trains every setting from every seed on as many samples of its own.

    Returns:
      `train_loss` on those samples, `test_loss` and `test_accuracy` (a fraction) on all test
      images, and `gap`, test minus training loss; each of shape (seeds, settings).
    """
    cycles = [length // K for length in stages_in(steps).lengths]
    chosen = np.stack(
        [np.random.default_rng(s).permutation(dataset.train_size)[:samples] for s in range(seeds)]
    )
    order = np.stack(
        [
            own[list(itertools.islice(data.batches(s, samples, batch_size), K * sum(cycles)))]
            for s, own in enumerate(chosen)
        ]
    )

    pools = (
        (dataset.train_images, dataset.train_labels),
        (dataset.test_images, dataset.test_labels),
    )

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(None, 0, 0))
    def run(pools: tuple[Pool, Pool], chosen: jax.Array, order: jax.Array) -> dict[str, jax.Array]:
        seen, unseen = pools
        params = train(dataset, seen, cycles, settings, order)
        train_loss, _ = score(dataset, seen, params, chosen)
        every = jnp.arange(dataset.test_size)
        test_loss, test_accuracy = score(dataset, unseen, params, every)
        return {
            "train_loss": train_loss,
            "test_loss": test_loss,
            "gap": test_loss - train_loss,
            "test_accuracy": test_accuracy,
        }

    return jax.device_get(run(pools, np.int32(chosen), np.int32(order)))


def stages_in(steps: int) -> Stages:
    """The stages of a run of so many steps, in whole cycles of K."""
    config = Config(milestones=MILESTONES, stages_in="steps", whole_cycles=True, sync_period=K)
    return stages_of(with_milestones_that_fit(config, steps, 1), steps, 1)


def make_parser() -> flags.Parser:
    """The command line."""
    parser = flags.Parser(
        prog="ablations.py",
        description="Train softmax regression with many α and β at once, from few samples and "
        "from many.",
    )
    add = parser.add_argument
    add(
        "--dataset",
        type=flags.spelling(data.find),
        default="digits",
        metavar="NAME",
        help="one that is in memory (default: %(default)s)",
    )
    add("--data_path", type=Path, metavar="DIR", help="as main.py's")
    add(
        "--samples",
        type=flags.listed(flags.count),
        metavar="LIST",
        help="training images of a seed: one ablation for each number (default: all, and a "
        "thirtieth of them, at least a batch)",
    )
    add("--steps", type=flags.count, default=4_680, metavar="N", help="(default: %(default)s)")
    add("--batch_size", type=flags.count, default=128, metavar="N", help="(default: %(default)s)")
    add("--seeds", type=flags.count, default=5, metavar="N", help="(default: %(default)s)")
    add(
        "--results",
        type=Path,
        default=Path("runs/results/ablations"),
        metavar="DIR",
        help="folder of tables, plots and numbers (default: %(default)s)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = make_parser()
    args = parser.parse_args(argv)
    try:
        dataset = data.load(args.dataset, args.data_path)
    except DataError as error:
        parser.error(f"--data_path: {error}")
    if not isinstance(dataset, Dataset):
        parser.error(f"--dataset: {args.dataset} is not in memory")
    if args.batch_size > dataset.train_size:
        parser.error(f"--batch_size: must be at most {dataset.train_size}, got {args.batch_size}")
    few = max(dataset.train_size // 30, args.batch_size)
    sizes = args.samples or tuple(dict.fromkeys((dataset.train_size, few)))
    for samples in sizes:
        if not args.batch_size <= samples <= dataset.train_size:
            parser.error(
                f"--samples: must be from {args.batch_size} (the batch size) to "
                f"{dataset.train_size}, got {samples}"
            )

    results: dict[str, Any] = {
        "command": shown_command(argv, args.data_path),
        "dataset": args.dataset,
        "steps": -(-args.steps // K) * K,
        "batch_size": args.batch_size,
        "alpha": ALPHA,
        "learning_rate": LEARNING_RATE,
        "seeds": list(range(args.seeds)),
        "groups": groups(),
        "samples": {},
    }
    for samples in sizes:
        started = time.perf_counter()
        values = ablate(dataset, samples, args.steps, args.batch_size, args.seeds, grid())
        seconds = time.perf_counter() - started
        print(f"{samples} samples: {seconds:.0f} s with compilation", flush=True)
        results["samples"][samples] = {"seconds": round(seconds, 1)} | {
            name: np.round(np.float64(value), 5).tolist() for name, value in values.items()
        }
    ablation_report.write(args.results, results)
    table = (args.results / "table.md").read_text(encoding="utf-8")
    print(f"\n{table}\nAll of it is in {args.results.resolve()}")
    return 0


def shown_command(argv: Sequence[str], data_path: Path | None) -> str:
    """The command as it is written down: with DIR for where the data are on this machine."""
    shown = ["DIR" if Path(arg) == data_path else arg for arg in argv]
    return shlex.join(["python", "examples/ablations.py", *shown])


if __name__ == "__main__":
    sys.exit(main())
