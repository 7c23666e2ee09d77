"""DiLoCo with workers that leave and join: a process is killed, and another takes its place.

    python examples/elastic_workers.py

27 s (16 s of CPU time) on two cores of an AMD EPYC, shared with other work, of which 4 s until
the dead worker is given up; 93.6 or 95.0 % accuracy on the 597 test images.
"""

import contextlib
import functools
import os
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental.multihost_utils import ProcessFailureError, live_devices
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from sklearn.datasets import load_digits

from slrla_jax import diloco, slow_params

WORKERS = 3
CYCLES = 12
STEPS = 20  # of each worker in a cycle
BATCH_SIZE = 32  # of each worker
HIDDEN = 32
KILLED, STARTED = 4, 7  # the cycles at whose end the last worker is killed and started again
SILENCE = 5  # seconds without a heartbeat after which a worker counts as dead
PATIENCE = 30  # seconds that a worker waits for others in an average
LIVES = 256  # virtual devices of a worker on a CPU; see `mesh_of`

TX = diloco(optax.sgd(0.05, momentum=0.9), "workers", sync_period=None)


@functools.cache
def load_data():
    """Scikit-learn's digits in a fixed random order: 1,200 for training and 597 for testing."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    images, labels = (images[order] / 16).astype(np.float32), labels[order]
    return (images[:1200], labels[:1200]), (images[1200:], labels[1200:])


def batches(worker, cycle, seed=0):
    """A worker's batches in a cycle, of its own images, whoever else is there."""
    (images, labels), _ = load_data()
    rng = np.random.default_rng([seed, worker, cycle])
    chosen = rng.integers(len(images) // WORKERS, size=(STEPS, BATCH_SIZE))
    return images[worker::WORKERS][chosen], labels[worker::WORKERS][chosen]


def beginning(seed=0):
    """The run of the first worker: params, one vector, and the state of the optimizer."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(0, 64**-0.5, 64 * HIDDEN), np.zeros(HIDDEN)
    output = rng.normal(0, HIDDEN**-0.5, HIDDEN * 10), np.zeros(10)
    params = np.concatenate([*hidden, *output]).astype(np.float32)
    return params, TX.init(params)


def logits_of(params, images):
    """A multilayer perceptron with one hidden layer."""
    ends = np.cumsum([64 * HIDDEN, HIDDEN, HIDDEN * 10])
    kernel, bias, kernel_2, bias_2 = jnp.split(params, ends)
    hidden = jax.nn.relu(images @ kernel.reshape(64, HIDDEN) + bias)
    return hidden @ kernel_2.reshape(HIDDEN, 10) + bias_2


def loss_fn(params, images, labels):
    """Mean cross-entropy of a batch."""
    logits = logits_of(params, images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def train_step(run, batch, sync=False):
    """One step of a worker's run; one with a sync averages over the workers."""
    params, opt_state = run
    grads = jax.grad(loss_fn)(params, *batch)
    updates, opt_state = TX.update(grads, opt_state, params, sync=sync)
    params = optax.apply_updates(params, updates)
    return slow_params(opt_state, params) if sync else params, opt_state


@jax.jit
def train_alone(run, batches):
    """All steps of a cycle but the last, for which a worker needs no other."""
    batches = jax.tree.map(lambda x: x[:-1], batches)
    return jax.lax.scan(lambda run, batch: (train_step(run, batch), None), run, batches)[0]


def sync_step(run, batches):
    """The last step of a cycle, where the axis "workers" is mapped."""
    return train_step(run, jax.tree.map(lambda x: x[-1], batches), sync=True)


@jax.jit
def eval_step(params, images, labels):
    """Accuracy of a network."""
    return (logits_of(params, images).argmax(axis=-1) == labels).mean()


def cycles_of(run):
    """How many cycles a run has behind it."""
    return int(run[1].steps_taken) // STEPS


def slow_part(run):
    """All that a worker must be given to join: the slow weights and the outer state."""
    return run[1]._replace(inner_state=())


def joined(slow, run):
    """The run of a worker that joins: the slow part of another's, and a new inner state."""
    params = slow_params(slow, run[0])
    return params, slow._replace(inner_state=TX.init(params).inner_state)


# From here on each worker is a process. A mesh has one device of each that is there.


def mesh_of(lives):
    """The mesh of the workers in `lives`, with the number that JAX has drawn for the life of each.

    On CPUs, Gloo keeps its connections by the devices that they are between, also when one end is
    dead, so each life has another device. Should that be an old one by chance, the worker fails as
    it joins, and may be started again.
    """
    devices = {w: [d for d in jax.devices() if d.process_index == w] for w in sorted(lives)}
    return Mesh([own[lives[w] % len(own)] for w, own in devices.items()], "workers")


def together(program, mesh, *own):
    """What a program of all workers returns to this one, whose rows of its arrays are `own`."""
    split = NamedSharding(mesh, PartitionSpec("workers"))
    own = jax.tree.map(lambda x: np.asarray(x)[None], own)
    rows = jax.tree.map(lambda x: jax.make_array_from_process_local_data(split, x), own)
    return jax.tree.map(lambda x: np.asarray(x.addressable_data(0)[0]), program(mesh, *rows))


@functools.partial(jax.jit, static_argnums=0)
def synced(mesh, *rows):
    """`sync_step` of all workers."""

    def of_one(*rows):
        run = sync_step(*jax.tree.map(lambda x: x[0], rows))
        return jax.tree.map(lambda x: x[None], run)

    split = PartitionSpec("workers")
    return jax.shard_map(of_one, mesh=mesh, in_specs=split, out_specs=split)(*rows)


@functools.partial(jax.jit, static_argnums=0)
def of_the_first(mesh, rows):
    """The row of the first worker, given to all."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.lax.with_sharding_constraint(jax.tree.map(lambda x: x[:1], rows), everywhere)


def work(worker, address, after_cycle=lambda cycle: None):
    """Trains with the workers that are there, of which 0 must live as long as the others.

    Returns the params, and the workers and seconds of each cycle, which ends with `after_cycle`.
    """
    jax.config.update("jax_enable_recoverability", True)
    jax.config.update("jax_enable_preemption_service", False)  # SIGTERM ends a worker as usual
    jax.config.update("jax_num_cpu_devices", LIVES)
    # If a worker dies while they average, another may give up, and a third wait for that one, on
    # CPUs for half an hour without this limit.
    limit = f"--xla_cpu_collective_timeout_seconds={PATIENCE}"
    os.environ["XLA_FLAGS"] = f"{limit} {os.environ.get('XLA_FLAGS', '')}"
    jax.distributed.initialize(address, WORKERS, worker, heartbeat_timeout_seconds=SILENCE)
    print(f"worker {worker} is there", flush=True)

    run, members, trained, history = beginning(), {}, None, []
    started = time.monotonic()
    while (cycle := cycles_of(run)) < CYCLES:
        try:
            # All leave this block together, and then know who is there: those who have died in it
            # are an error of all the others, and those who have come are in the next one.
            with live_devices(jax.devices()):
                lives = {d.process_index: life for d, life in live_devices.devices.items()}
                mesh, new = mesh_of(lives), lives.items() - members.items()
                if new:
                    slow = together(of_the_first, mesh, slow_part(run))
                    run = run if members else joined(slow, run)
                if trained is None:
                    own = batches(worker, cycles_of(run))
                    trained = train_alone(run, own)
                after = together(synced, mesh, trained, own)
                after_cycle(cycle)
        except ProcessFailureError as failure:
            if worker == 0:
                dead = sorted({device.process_index for device in failure.failed_devices})
                print(f"cycle {cycle}: workers {dead} are lost")
            continue  # What the others have trained is not.
        except jax.errors.JaxRuntimeError:
            if not (new and members):
                raise
            continue  # A new worker has failed, and will not be there next time.
        history.append((sorted(lives), seconds := time.monotonic() - started))
        started += seconds
        if worker == 0 and lives != members:
            print(f"cycle {cycle}: made by workers {sorted(lives)}, {seconds:.1f} s")
        run, members, trained = after, lives, None
    if worker == 0:  # The others need it to the end.
        with contextlib.suppress(ProcessFailureError), live_devices(jax.devices()):
            pass
    return run[0], history


def main():
    """Trains as the first worker, kills the last one and starts it again."""
    with socket.socket() as any_port:
        any_port.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{any_port.getsockname()[1]}"

    def start(worker):
        command = [sys.executable, __file__, str(worker), address]
        return subprocess.Popen(command, stdout=subprocess.PIPE)

    others = [start(worker) for worker in range(1, WORKERS)]

    def after_cycle(cycle):
        if cycle == KILLED:
            others[-1].kill()
            others[-1].wait()
        elif cycle >= STARTED and others[-1].poll() is not None:
            others[-1] = start(WORKERS - 1)
            others[-1].stdout.readline()

    try:
        params, history = work(0, address, after_cycle)
    finally:
        for process in others:
            process.kill()
    _, test = load_data()
    print(f"final test accuracy: {eval_step(params, *test):.2%}")
    return params, history


if __name__ == "__main__":
    if sys.argv[1:]:
        work(int(sys.argv[1]), sys.argv[2])
    else:
        main()
