"""Local training: workers that train by themselves, and exchange weights every k steps.

    run = run_of_workers(LocalConfig(workers=4, sync_period=20, ...), dataset)

Every worker has examples, batches and an inner optimizer of its own. A cycle (`cycle`) is k steps
of a worker, the last of which makes the outer step of `slrla_jax.diloco` with the others; or, for
comparison, steps in which the gradients are averaged (`methods`). Workers are devices, of one
process or of many, or are all on one device. Everything around a cycle is that of other runs: a
`LocalRun` (`run`) goes through `experiments.train` and `experiments.sweep`.

`shards` divides the examples among the workers, `traffic` counts the bytes that a worker sends,
`study` tunes and compares, and `table` shows what came out.
"""
