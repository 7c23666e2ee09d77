"""The plan for many workers: its formulas against simulations, and its page against the results."""

import json
import math
import os
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import cycles
import numpy as np
import plan_workers
import pytest
import slow_link_worker
import slow_links
import star
from cycles import Setting
from plan_tables import TABLES, parameters

ROOT = Path(slow_links.__file__).parent.parent
PAGE = ROOT / "docs/many_workers.md"
RESULTS = ROOT / "benchmarks/results"
OF = Setting(
    workers=8,
    sync_period=10,
    step_seconds=0.5,
    sent_bytes=6e6,
    bits_per_second=2e7,
    latency=0.02,
    arrays=3,
)
# Without links, in cycles of one second.
ALONE = replace(OF, step_seconds=0.1, sent_bytes=0.0, bits_per_second=math.inf, latency=0.0)


# cycles.py


@pytest.mark.parametrize("workers", [2, 3, 8])
def test_bytes_and_messages_are_those_of_a_ring(workers):
    """A ring that sums 24 numbers and passes the sums on, message by message."""
    rng = np.random.default_rng(0)
    held = rng.standard_normal((workers, workers, 24 // workers))  # Worker, part, entry.
    mean, sent, rounds = held.mean(axis=0), np.zeros(workers), 0
    for summing in (True, False):
        for turn in range(workers - 1):
            rounds += 1
            parts = [(w - turn + (not summing)) % workers for w in range(workers)]
            messages = [held[w, part].copy() for w, part in enumerate(parts)]
            for w, (part, message) in enumerate(zip(parts, messages, strict=True)):
                to = (w + 1) % workers
                held[to, part] = held[to, part] + message if summing else message
                sent[w] += message.nbytes
    np.testing.assert_allclose(held / workers, [mean] * workers)
    np.testing.assert_allclose(sent, cycles.ring_bytes(workers, mean.nbytes))
    assert rounds == cycles.messages(workers)


@pytest.mark.parametrize("latency", [0.0, 0.003, 0.05, 0.3])
@pytest.mark.parametrize("workers", [2, 3, 8])
def test_an_exchange_takes_the_time_of_its_halves(workers, latency):
    """Of workers that do the same: a half is sent on when it has come and the link is free."""
    of = replace(OF, workers=workers, latency=latency)
    half = 8 * of.sent_bytes / of.arrays / workers / 2 / of.bits_per_second
    now = 0.0
    for _ in range(2 * of.arrays):
        free, here = now, [now, now]
        for _ in range(workers - 1):
            for which in (0, 1):
                free = max(free, here[which]) + half
                here[which] = free + latency
        now = max(here)
    assert cycles.exchange_seconds(of) == pytest.approx(now)


def test_equal_workers_take_the_time_of_the_formula():
    # A part of 2/8 MB takes 0.1 s at 20 Mbit/s: two phases of 7 · 0.1 + 0.02 for each of 3 arrays.
    assert cycles.exchange_seconds(OF) == pytest.approx(4.32)
    assert cycles.cycle_seconds(OF) == pytest.approx(9.32)
    outcome = cycles.simulate(OF, 7, np.random.default_rng(0))
    assert outcome.seconds == pytest.approx(7 * 9.32)
    assert outcome.utilisation == pytest.approx(cycles.utilisation(OF)) == pytest.approx(5 / 9.32)
    assert (outcome.share, outcome.failures) == (1.0, 0)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_the_least_period_is_the_least(share):
    k = cycles.least_period(OF, share)
    assert cycles.utilisation(replace(OF, sync_period=k)) >= share - 1e-9
    assert cycles.utilisation(replace(OF, sync_period=k - 1)) < share
    assert cycles.least_period(replace(ALONE, latency=1e-9), share) == 1


@pytest.mark.parametrize("workers", [1, 5, 1_000])
def test_the_slowest_of_exponential_steps_takes_a_harmonic_number(workers):
    harmonic = np.sum(1 / np.arange(1, workers + 1))
    assert cycles.slowest_by_jitter(workers, 1.0, 1) == pytest.approx(harmonic, rel=1e-4)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"jitter": 0.5}, cycles.slowest_by_jitter(8, 0.5, 10)),
        ({"spread": 0.3}, cycles.slowest_by_spread(8, 0.3)),
    ],
    ids=["jitter", "spread"],
)
def test_the_slowest_worker(changed, expected):
    rng = np.random.default_rng(1)
    of = replace(ALONE, **changed)
    seconds = [cycles.simulate(of, 1, rng).seconds for _ in range(4_000)]
    error = np.std(seconds) / math.sqrt(len(seconds))
    assert abs(np.mean(seconds) - expected) < 4 * error
    assert error < 0.01


def test_failures_after_which_all_restart():
    of = replace(ALONE, failure_seconds=20.0, restart_seconds=0.7)
    outcome = cycles.simulate(of, 4_000, np.random.default_rng(2))
    expected = cycles.seconds_if_all_restart(of, 1.0)
    assert expected == pytest.approx((20 / 8 + 0.7) * (math.exp(8 / 20) - 1))
    # The time of a cycle has about a geometric number of failures, of a few seconds each.
    assert outcome.seconds / 4_000 == pytest.approx(expected, rel=0.06)
    assert outcome.utilisation == pytest.approx(1 / expected, rel=0.06)
    assert cycles.seconds_if_all_restart(ALONE, 1.0) == 1.0


@pytest.mark.parametrize("away", [0.0, 0.4, 2.3])
def test_failures_after_which_the_others_go_on(away):
    of = replace(ALONE, workers=200, failure_seconds=5.0, restart_seconds=away)
    outcome = cycles.simulate(of, 1_000, np.random.default_rng(3), others_go_on=True)
    expected = cycles.share_if_others_go_on(of, 1.0)
    assert outcome.seconds == pytest.approx(1_000)
    # Some 20,000 failures or more.
    assert outcome.share == pytest.approx(expected, rel=0.01)
    assert cycles.share_if_others_go_on(ALONE, 1.0) == 1.0
    if away == 0:  # The cycle that it fails in, and no other.
        assert expected == pytest.approx(math.exp(-1 / 5))


def test_a_lone_worker_that_fails_goes_on_when_it_is_back():
    of = replace(ALONE, workers=1, failure_seconds=0.5, restart_seconds=3.0)
    outcome = cycles.simulate(of, 200, np.random.default_rng(4), others_go_on=True)
    assert outcome.seconds > (outcome.failures - 1) * 3.0 > 300
    assert outcome.share == pytest.approx(1 - outcome.failures / 200)


# The plan


def test_the_plan_is_what_the_formulas_say():
    results = json.loads((RESULTS / "plan_workers.json").read_text())
    args = plan_workers.make_parser().parse_args([])
    assert {k: tuple(v) if k == "workers" else v for k, v in results["settings"].items()} == {
        k: v for k, v in vars(args).items() if k in results["settings"]
    }
    for name, make in TABLES.items():
        if name != "simulation":
            assert json.loads(json.dumps(make(args))) == results["tables"][name]


def test_the_models_have_the_sizes_of_their_names():
    found = {name: parameters(name) for name in ("150 M", "1 B", "7 B")}
    wanted = {"150 M": 150e6, "1 B": 1e9, "7 B": 7e9}
    assert found == pytest.approx(wanted, rel=0.05)


def test_a_worker_holds_six_copies_with_adamw():
    header, rows = TABLES["memory"](plan_workers.make_parser().parse_args([]))
    for row in rows:
        cells = (cell.split() for cell in row[1:])
        sizes = [float(number) * {"MB": 1e6, "GB": 1e9}[unit] for number, unit in cells]
        copies = dict(zip(header[1:], np.array(sizes) / (4 * parameters(row[0])), strict=True))
        assert copies == pytest.approx(
            {
                "params": 1,
                "inner state": 2,
                "residual": 1,
                "θ": 1,
                "outer momentum": 1,
                "a worker": 6,
                "common to all": 2,
            },
            rel=0.01,
        )


def test_what_cannot_be_planned(capsys):
    with pytest.raises(SystemExit, match="2"):
        plan_workers.make_parser().parse_args(["--workers", "8,1"])
    assert "--workers: must be a whole number, at least 2, got '1'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("program", "module"), [("plan_workers", plan_workers), ("slow_links", slow_links)]
)
def test_the_page_has_the_tables_of_the_results(program, module):
    marks = rf"<!-- \.\./benchmarks/results/{program}\.json#(\w+) -->\n\n(.*?)\n\n<!-- end -->"
    tables = re.findall(marks, PAGE.read_text(encoding="utf-8"), re.DOTALL)
    results = json.loads((RESULTS / f"{program}.json").read_text())
    assert {name for name, _ in tables} - {"conditions"} == set(module.TABLES)
    for name, table in tables:
        assert table == module.report(results, name)


def test_predictions_err_as_the_page_says():
    results = json.loads((RESULTS / "slow_links.json").read_text())
    far = []
    for table, name in (("rates", "sync"), ("dtypes", "sync"), ("cycles", "cycle")):
        for case, found in slow_links.of_table(results, table):
            (sent, wanted), (seconds, predicted) = slow_links.measured(case, found, name)
            assert wanted == pytest.approx(sent, rel=0.07 if case.is_fast else 0.03)
            is_near = predicted == pytest.approx(seconds, rel=0.05 if table == "cycles" else 0.15)
            if not (is_near or table == "dtypes" or case.is_fast):
                far.append((table, case.workers, case.parameters, case.rates[0]))
    assert far == [("rates", 4, 100_000, 1e8)]


# Slow links


def test_what_is_predicted_for_a_link():
    case = slow_links.Case(
        "rates", "", (1e9, 2e7), latency=0.01, pauses=(0.0, 0.1), parameters=10**6, arrays=2
    )
    # 4 MB, half of them twice; 1.5 headers of 66 bytes each 1,448.
    wire = 4e6 * (1448 + 66 + 33) / 1448
    assert slow_links.predicted_bytes(case) == pytest.approx(wire)
    messages = 2 * 2 * 0.02  # Two phases of each array, and there and back.
    assert slow_links.predicted_seconds(case) == pytest.approx(0.2 + messages + wire * 8 / 2e7)
    parallel = replace(case, data_parallel=True)
    assert slow_links.predicted_bytes(parallel) == pytest.approx(2 * wire)
    assert slow_links.predicted_seconds(parallel) == pytest.approx(
        0.2 + 2 * (messages + wire * 8 / 2e7)
    )
    # The slower of two exponential steps takes 3/2 of the mean.
    late = replace(parallel, jitter=1.0)
    assert slow_links.predicted_seconds(late) - slow_links.predicted_seconds(
        parallel
    ) == pytest.approx(0.1, rel=1e-3)


@pytest.mark.parametrize("parallel", [False, True])
def test_a_process_says_how_long_its_cycles_took(parallel, monkeypatch):
    count = iter(range(0, 1_000, 10))
    monkeypatch.setattr(slow_link_worker, "sent", lambda: next(count))
    job = {"parameters": 8, "arrays": 2, "send": "float32", "sync_period": 3, "cycles": 2}
    job |= {"pauses": [1e-3], "jitter": 0.5, "data_parallel": parallel}
    found = slow_link_worker.work(job, 0)
    assert found["bytes"] == [10, 10]
    assert all(len(times) == 2 and min(times) > 0 for times in found.values())
    whole = 2 * np.array(found["step"]) + found["sync"]
    np.testing.assert_allclose(whole, found["cycle"], rtol=1e-6)


def test_a_machine_without_slow_links(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["slow_links.py", "--small"])
    monkeypatch.setattr(shutil, "which", lambda tool: None if tool == "tc" else tool)
    with pytest.raises(SystemExit, match="1"):
        slow_links.main()
    line = "slow_links.py: slow links need the command tc, which is not here\n"
    assert capsys.readouterr().err == line
    monkeypatch.undo()
    monkeypatch.setattr(os, "geteuid", lambda: 1)
    with pytest.raises(OSError, match="need root"):
        star.check()
