"""Everything that a result depends on, besides the seed and the data: one frozen object.

A recipe is a `Config`, and another one is the same with some values replaced:

    replace(BASE, model="VGG-16", learning_rate=5e-2)

As JSON it is written into the settings of a run and into its checkpoints, which are compared by
it when the run is resumed.
"""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any


class SettingError(ValueError):
    """A setting that is impossible.

    Attributes:
      setting: its name, a field of `Config` or an option of a sweep.
    """

    def __init__(self, setting: str, message: str):
        super().__init__(message)
        self.setting = setting


@dataclass(frozen=True)
class Config:
    """Data and model, the length of the run and its stages, and the optimizer.

    Attributes:
      dataset: a name in `data.DATASETS`.
      train_images: how many of its training images; None for all.
      held_out: how many of its other training images are evaluated in place of the test images,
        as tuning must; None for none.
      validation_split: the fraction of the training images that are set apart, and choose the best
        epoch; None where the test images choose it.
      image_size: height and width that images are resized and cropped to, at random in training if
        the data set is augmented; None for images as they are.
      channel_std: what the channels of standardised images are divided by, as fractions of
        white; None for the data set's own standard deviation.
      model: a name in `models.NETWORKS`.
      input_norm: whether the channels of images are standardised, or pixels only scaled to
        [0, 1].
      bf16: whether to compute in bfloat16; params stay in float32.
      epochs: passes over the training images, or multiples of `epoch_steps`.
      epoch_steps: how many steps are called an epoch; None for a pass over the training images.
      equal: whether optimizers with these epochs take them all ("epochs"), or take equally many
        gradients ("gradients"): one that needs several in a step then takes so many steps fewer.
      batch_size: images in a batch, over all devices.
      eval_every: epochs between two evaluations.
      recalibrate: whether slow weights are also evaluated with BatchNorm statistics that are
        recalibrated for them.
      milestones: where the next stage begins: fractions of the run below 1, or epochs.
      fit_milestones: whether milestones that a short run has no room for are left out, or are an
        error.
      stages_in: whether stages end with an epoch ("epochs") or at any step ("steps").
      whole_cycles: whether stages are rounded to whole cycles of `sync_period` steps.
      learning_rate: of the first stage.
      decay: the factor by which the learning rate changes from stage to stage.
      warmup: the fraction of the run in which the learning rate rises from 0, linearly.
      annealing: by what the learning rate is multiplied besides: "none" for 1; "cosine" for half
        a cosine wave that falls from 1 to 0; "linear" for 1 until the last fifth of the run, in
        which it falls to 0.
      optimizer: a name in `optimizers.OPTIMIZERS`.
      inner: the inner optimizer of those that wrap one, a name in `optimizers.INNER`.
      momentum: of SGD; b1 of the adaptive optimizers.
      weight_decay: coupled (L2) or decoupled, as the inner optimizer has it.
      sync_period: k of Lookahead and SLRLA, one value for all stages or one for each; of
        Multilayer Lookahead one for each layer, the inner one first, or one value for two layers.
      slow_step_size: α, likewise; for Lookbehind also "adaptive".
      outer_learning_rate: η of SNOO.
      outer_momentum: μ of SNOO.
      train_interpolation: μ_y of primal averaging.
      eval_interpolation: μ_x of primal averaging.
      ema_decay: d of the exponential moving average of the params, which has weight 1 − d for
        those of each step.
      beta: β of the local regulariser in the paper's convention, likewise.
      anchor_period: S, steps between two anchors of the released form of SLRLA; None for an
        anchor that is refreshed at every sync.
      b0: b_0 of AdaLoss, AdaGrad-Norm, SGD_Constant and SGD_DecaySqrt.
      loss_weight: α of AdaLoss and SGD_DecaySqrt.
      loss_offset: c of AdaLoss.
      ascent_steps: k of Lookbehind.
      rho: ρ of SAM, ASAM and Lookbehind; None for the paper's.
      eta: η of ASAM.
    """

    dataset: str = "digits"
    train_images: int | None = None
    held_out: int | None = None
    validation_split: float | None = None
    image_size: int | None = None
    channel_std: tuple[float, ...] | None = None
    model: str = "resnet"
    input_norm: bool = True
    bf16: bool = False
    epochs: int = 30
    epoch_steps: int | None = None
    equal: str = "epochs"
    batch_size: int = 64
    eval_every: int = 1
    recalibrate: bool = True
    milestones: tuple[float, ...] = (0.3, 0.6, 0.8)
    fit_milestones: bool = True
    stages_in: str = "epochs"
    whole_cycles: bool = False
    learning_rate: float = 0.1
    decay: float = 0.2
    warmup: float = 0.0
    annealing: str = "none"
    optimizer: str = "sgd"
    inner: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 1e-3
    sync_period: int | tuple[int, ...] = 5
    slow_step_size: float | str | tuple[float, ...] = 0.8
    outer_learning_rate: float = 0.8
    outer_momentum: float = 0.75
    train_interpolation: float = 0.7
    eval_interpolation: float = 0.9967
    ema_decay: float = 0.99
    beta: float | tuple[float, ...] = 0.0
    anchor_period: int | None = None
    b0: float = 1.0
    loss_weight: float = 1.0
    loss_offset: float = 0.0
    ascent_steps: int = 2
    rho: float | None = None
    eta: float = 0.0

    def each_stage(self, name: str) -> tuple[Any, ...]:
        """Returns the value that a setting has in each stage.

        Raises:
          SettingError: if the setting has neither one value nor one for each stage.
        """
        value, stages = getattr(self, name), len(self.milestones) + 1
        values = value if isinstance(value, tuple) else (value,)
        if len(values) not in (1, stages):
            raise SettingError(
                name, f"must be one value or {stages}, for {stages} stages, got {values}"
            )
        return values * stages if len(values) == 1 else values

    def each_layer(self, name: str) -> tuple[Any, ...]:
        """Returns the value that a setting has in each layer of Multilayer Lookahead.

        Raises:
          SettingError: if there are not as many periods as slow step sizes.
        """
        given = [v for v in (self.sync_period, self.slow_step_size) if isinstance(v, tuple)]
        layers = {len(value) for value in given} or {2}
        if len(layers) > 1:
            raise SettingError(
                name,
                "must have one value for each layer, got periods "
                f"{self.sync_period} and slow step sizes {self.slow_step_size}",
            )
        value = getattr(self, name)
        return value if isinstance(value, tuple) else (value,) * layers.pop()

    def as_json(self) -> dict[str, Any]:
        """Returns the settings as JSON has them."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_json(cls, settings: dict[str, Any]) -> "Config":
        """Returns the configuration that was written as JSON."""
        return cls(**{n: tuple(v) if isinstance(v, list) else v for n, v in settings.items()})
