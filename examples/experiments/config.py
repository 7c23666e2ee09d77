"""What a run is a function of, besides its seed: one frozen object, written down as JSON.

A recipe is a `Config` too, or one with some values replaced:

    replace(BASE, model="VGG-16", learning_rate=5e-2)
"""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Config:
    """Data and model, length and stages, and the optimizer with its settings.

    Attributes:
      dataset: a name in `data.DATASETS`.
      train_images: how many of its training images; None for all.
      model: a name in `models.NETWORKS`.
      input_norm: whether the channels of images are standardised, or pixels only scaled to
        [0, 1].
      bf16: whether to compute in bfloat16; params stay in float32.
      epochs: passes over the training images.
      batch_size: images in a batch, over all devices.
      milestones: where the next stage begins: fractions of the run below 1, or epochs.
      stages_in: whether stages end with an epoch ("epochs") or at any step ("steps").
      whole_cycles: whether stages are rounded to whole cycles of `sync_period` steps.
      learning_rate: of the first stage.
      decay: what the learning rate is multiplied with from stage to stage.
      optimizer: a name in `optimizers.OPTIMIZERS`.
      inner: of those that stand around another optimizer, its name in `optimizers.INNER`.
      momentum: of SGD; b1 of the adaptive ones.
      weight_decay: coupled (L2) or decoupled, as the inner optimizer has it.
      sync_period: k of Lookahead and SLRLA, one for all stages or one for each.
      slow_step_size: α, likewise; of Lookbehind also "adaptive".
      beta: β of the local regulariser in the paper's convention, likewise.
      anchor_period: S, steps between two anchors of the released form of SLRLA; None for an
        anchor that is refreshed at every sync.
      ascent_steps: k of Lookbehind.
      rho: ρ of SAM, ASAM and Lookbehind; None for the paper's.
      eta: η of ASAM.
    """

    dataset: str = "digits"
    train_images: int | None = None
    model: str = "resnet"
    input_norm: bool = True
    bf16: bool = False
    epochs: int = 30
    batch_size: int = 64
    milestones: tuple[float, ...] = (0.3, 0.6, 0.8)
    stages_in: str = "epochs"
    whole_cycles: bool = False
    learning_rate: float = 0.1
    decay: float = 0.2
    optimizer: str = "sgd"
    inner: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 1e-3
    sync_period: int | tuple[int, ...] = 5
    slow_step_size: float | str | tuple[float, ...] = 0.8
    beta: float | tuple[float, ...] = 0.0
    anchor_period: int | None = None
    ascent_steps: int = 2
    rho: float | None = None
    eta: float = 0.0

    def each_stage(self, name: str) -> tuple[Any, ...]:
        """A setting's value in each stage.

        Raises:
          ValueError: if it has neither one value nor one for each stage.
        """
        value, stages = getattr(self, name), len(self.milestones) + 1
        values = value if isinstance(value, tuple) else (value,)
        if len(values) not in (1, stages):
            raise ValueError(f"must be one value or {stages}, for {stages} stages, got {values}")
        return values * stages if len(values) == 1 else values

    def as_json(self) -> dict[str, Any]:
        """The settings as JSON has them, which a checkpoint is compared by."""
        return json.loads(json.dumps(dataclasses.asdict(self)))
