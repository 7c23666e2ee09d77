"""A laboratory for the theorems on Lookahead: problems, runs, fits, and a module for each theorem.

problems.py, classification.py  losses whose population risk and empirical minimum are known
solve.py                        the empirical minimum
lookaheads.py                   the theorems' optimizers
runs.py                         weights and errors of all settings and data sets at once
fits.py                         exponents with confidence intervals
rates.py                        errors over decades of steps, which Theorems 2 and 3 share
plots.py                        what the pictures share
convex.py                       Theorem 1
strongly_convex.py              Theorem 2
polyak_lojasiewicz.py           Theorem 3
sync_period.py                  the k of Theorems 1 to 3
stages.py, promise.py           Theorem 4: gradients to reach ε, and what is promised of each stage
regulariser.py                  Theorem 4: generalisation
stability.py                    what the generalisation errors rest on

A module of a theorem has a `TITLE`, its `PREDICTION`, `PROBLEMS` by their names, `measure`, which
runs one of them, and `draw`.
"""
