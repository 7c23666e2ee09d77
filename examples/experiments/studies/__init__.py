"""What trained weights are like, small problems with many settings at once, and games.

Sharpness, robustness to noise and forgetting are functions of params and of a loss or a metric,
which do not train. They ask for no network: what they need of one is a function of its params,
with data, statistics of BatchNorm and the rest inside. `ablation`, `convergence` and
`policy_gradient` train all settings at once, in one compiled program. In a game several players
step (`players`): `games` has bilinear ones and their rates, `gan` a generative adversarial network
as a run of the one runner, and `judge` the measure of its images.
"""
