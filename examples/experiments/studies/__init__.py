"""What trained weights are like, and small problems with many settings at once.

Sharpness, robustness to noise and forgetting are functions of params and of a loss or a metric,
which do not train. They ask for no network: what they need of one is a function of its params,
with data, statistics of BatchNorm and the rest inside. `ablation`, `convergence` and
`policy_gradient` train all settings and seeds in one compiled program.
"""
