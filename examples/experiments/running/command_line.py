"""What the command lines of the training programs have in common, and what it means."""

import argparse
import functools
import shlex
import signal
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from rich.console import Console

from experiments import data
from experiments import models as networks
from experiments.config import Config
from experiments.data import Data, DataError
from experiments.optimizers import OPTIMIZERS
from experiments.running import flags
from experiments.running.launch import Job, LaunchError, launch
from experiments.schedules import Stages
from experiments.training import (
    CheckpointError,
    Diverged,
    Model,
    Run,
    Stopped,
    seeds_together_are_faster,
    steps_per_dispatch,
)

# Flags that a run may be resumed with other values of. (Each checkpoint knows its own seeds, and
# how far an extended run has come. How far it is to go changes no step of it.)
NOT_IN_THE_RESULT = (
    *("data_path", "root", "exp_name", "resume", "checkpoint", "save_every", "seeds"),
    *("batch_norm", "tensorboard", "extend_epochs"),
)


def add_flags(
    parser: flags.Parser, *, epochs: str, batch_size: str, network: str, input_norm: str | None
) -> None:
    """Adds the flags that all training programs have, some under a name of the program's own.

    Without a flag for `input_norm` images are always standardised.
    """
    add = parser.add_argument_group("what is trained on what").add_argument
    add(
        "--dataset",
        type=flags.spelling(data.find),
        default="cifar10",
        metavar="NAME",
        help=f"{', '.join(data.DATASETS)}, in any spelling (default: %(default)s)",
    )
    add(
        "--data_path",
        type=Path,
        metavar="DIR",
        help="where the data set is, or is to be prepared; see examples/README.md",
    )
    add("--train_images", type=flags.count, metavar="N", help="train on N of the images only")
    add(
        network,
        dest="network",
        type=flags.spelling(networks.find),
        default="ResNet-18",
        metavar="NAME",
        help=f"{', '.join(networks.NETWORKS)}, in any spelling (default: %(default)s)",
    )
    if input_norm is None:
        parser.set_defaults(input_norm=True)
    else:
        add(
            input_norm,
            dest="input_norm",
            action="store_true",
            help="standardise the channels of the images; else pixels are scaled to between 0 and "
            "1",
        )
    add("--bf16", action="store_true", help="compute in bfloat16; params stay in float32")
    add = parser.add_argument_group("how long, and from where").add_argument
    add(
        epochs,
        dest="epochs",
        type=flags.count,
        metavar="N",
        default=100,
        help="passes over the training images (default: %(default)s)",
    )
    add(
        batch_size,
        dest="batch_size",
        type=flags.count,
        metavar="N",
        default=128,
        help="images in a batch, over all devices (default: 128)",
    )
    add(
        "--eval_every",
        type=flags.count,
        metavar="N",
        default=1,
        help="evaluate after every N-th epoch, and after the last (default: 1)",
    )
    add(
        "--SEED",
        "--seed",
        dest="seed",
        type=flags.number("a whole number, at least 0", lambda n: n >= 0, int),
        default=0,
        metavar="N",
        help="of weights, batches and augmentation (default: 0)",
    )
    add(
        "--seeds",
        type=flags.count,
        default=1,
        metavar="N",
        help="train from N seeds, from --SEED on; one after the other on CPU, together on GPU and "
        "TPU (default: 1)",
    )
    add(
        "--batch_norm",
        choices=("running", "recalibrated"),
        default="running",
        help="whose accuracy counts for the best epoch: with the running statistics, which the "
        "fast weights have left, or with statistics taken anew for the slow weights. Both are "
        "reported (default: %(default)s)",
    )
    add = parser.add_argument_group("where to, and going on").add_argument
    add("--root", type=Path, default=Path("runs"), help="folder of all runs (default: %(default)s)")
    add("--exp_name", type=flags.folder_name, help="folder of this run (default: its time)")
    add(
        "--resume",
        action="store_true",
        help="go on from the last checkpoint, if there is one, as if the run had not stopped",
    )
    add(
        "--extend_epochs",
        type=flags.count,
        metavar="N",
        help="with --resume and the flags that a finished run had: go on for N epochs more than "
        f"those of {epochs}, in its last stage and with its last learning rate",
    )
    add(
        "--checkpoint",
        type=Path,
        metavar="DIR",
        help="where the checkpoints are (default: in the folder of the run)",
    )
    add(
        "--save_every",
        type=flags.count,
        metavar="STEPS",
        help="save so often within an epoch, and not only at its end",
    )
    add("--tensorboard", action="store_true", help="write TensorBoard's event files too")


def dataset_of(args: argparse.Namespace, parser: flags.Parser) -> Data:
    """The data set, with as many training images as were asked for."""
    try:
        dataset = data.load(args.dataset, args.data_path)
    except DataError as error:
        parser.error(f"--data_path: {error}")
    if args.train_images is not None:
        try:
            dataset = dataset.with_training_images(args.train_images)
        except DataError as error:
            parser.error(f"--train_images: {error}")
    if dataset.train_size < args.batch_size:
        parser.error(
            f"batch size {args.batch_size}: there are {dataset.train_size} training images"
        )
    if args.batch_size % jax.device_count():
        parser.error(f"batch size {args.batch_size}: {jax.device_count()} devices cannot share it")
    return dataset


def model_of(args: argparse.Namespace, parser: flags.Parser, dataset: Data) -> Model:
    """The network for the data set, as yet without weights."""
    model = Model(
        make=functools.partial(
            networks.NETWORKS[args.network],
            dataset.image_shape,
            dataset.classes,
            dtype=jnp.bfloat16 if args.bf16 else None,
        ),
        dataset=dataset,
        input_norm=args.input_norm,
    )
    try:
        _ = model.graph
    except ValueError as error:
        parser.error(f"network {args.network}: {error}")
    return model


def job_of(
    args: argparse.Namespace,
    parser: flags.Parser,
    model: Model,
    config: Config,
    stages: Stages,
) -> Job:
    """The job: the optimizer's part, and what the common flags say.

    Args:
      args: the flags.
      parser: their parser.
      model: the network.
      config: has the optimizer, and how it is set.
      stages: those of the run, of which the last goes on where the run is extended.
    """
    optimizer = OPTIMIZERS[config.optimizer]
    gradients_per_step = optimizer.gradients(config)
    ends = stages.ends
    more = args.extend_epochs or 0
    if more:
        rate, end = ends[-1]
        ends[-1] = (rate, end + more * (model.dataset.train_size // args.batch_size))
    name = args.exp_name or datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    run = Run(
        label=name,
        model=model,
        dataset=model.dataset,
        tx=optimizer.make(config, stages),
        slow_params=optimizer.slow_params,
        epochs=args.epochs + more,
        steps=ends[-1][1],
        batch_size=args.batch_size,
        eval_every=args.eval_every,
        recalibrate=optimizer.slow_params is not None and bool(_batch_statistics(model)),
        steps_per_dispatch=steps_per_dispatch(),
        gradients_per_step=gradients_per_step,
        more_epochs=more,
    )
    params = nnx.state(nnx.eval_shape(lambda: model.make(rngs=nnx.Rngs(0))), nnx.Param)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    epochs = f"{args.epochs} epoch{'s' if args.epochs > 1 else ''}"
    epochs += f" and {more} more" if more else ""
    values = {n: str(v) if isinstance(v, Path) else v for n, v in vars(args).items()}
    return Job(
        folder=args.root / name,
        run=run,
        seeds=range(args.seed, args.seed + args.seeds),
        learning_rate=stages.schedule,
        stages=ends,
        settings={
            "command": shlex.join([Path(sys.executable).name, *sys.argv]),
            "started": datetime.now().astimezone().isoformat(timespec="seconds"),
            "flags": values,
            "stages": [{"learning_rate": rate, "last_step": end} for rate, end in ends],
            "gradients_per_run": run.steps * gradients_per_step,
        },
        fingerprint={n: v for n, v in values.items() if n not in NOT_IN_THE_RESULT},
        flag_of=parser.flag_of,
        title=f"{args.dataset}, {model.dataset.train_size:,} training and "
        f"{model.dataset.test_size:,} test images; {args.network}, {size:,} parameters; "
        f"{epochs}, {run.steps:,} steps of {args.batch_size} images"
        + (f" with {gradients_per_step} gradients each" if gradients_per_step > 1 else ""),
        together=args.seeds > 1 and seeds_together_are_faster(),
        save_every=args.save_every,
        resume=args.resume,
        checkpoint=args.checkpoint,
        tensorboard=args.tensorboard,
        counts="recalibrated_test_accuracy"
        if args.batch_norm == "recalibrated" and run.recalibrate
        else "test_accuracy",
    )


def run_job(program: str, make_job: Callable[[], Job], again: str = "--resume") -> int:
    """Makes and runs a job; what goes wrong is one line. Returns the exit code.

    Args:
      program: the name that the line begins with.
      make_job: makes the job, which may take a while.
      again: what resumes an interrupted run, in words.
    """
    try:
        launch(make_job(), Console())
    except KeyboardInterrupt:
        print(f"{program}: interrupted before the training began", file=sys.stderr)
        return 130
    except Stopped as error:
        print(f"{program}: {error}; {again} resumes from there", file=sys.stderr)
        return 128 + (error.number or signal.SIGTERM)
    except LaunchError as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        return 2
    except (CheckpointError, Diverged) as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 1
    return 0


def _batch_statistics(model: Model) -> list[Any]:
    """The running statistics that a network has, without values."""
    network = nnx.eval_shape(lambda: model.make(rngs=nnx.Rngs(0)))
    return jax.tree.leaves(nnx.state(network, nnx.BatchStat))
