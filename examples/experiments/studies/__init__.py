"""What trained weights are like: sharpness, robustness to noise, forgetting.

Functions of params and of a loss or a metric; none of them trains. They ask for no
network: what they need of one is a function of its params, with data, statistics of
BatchNorm and the rest inside.
"""
