"""Local training: workers that train by themselves, and exchange weights every k steps.

    run = run_of_workers(LocalConfig(workers=4, sync_period=20, ...), dataset)

Every worker has examples, batches and an inner optimizer of its own. A cycle (`cycle`) is k steps of
a worker, the last of which makes the outer step of `slrla_jax.diloco` with the others; or, for
comparison, steps before each of which the gradients are averaged. Workers are devices, of one process or of
many, or are all on one device. Everything around a cycle is that of other runs: `LocalRun` (`run`) goes
through `experiments.train` and `experiments.sweep`.

`shards` divides the examples among the workers, `traffic` counts the bytes that a worker sends, and
`study` tunes, compares and draws.
"""
