"""`fedsr demo --quick` as a user runs it: one process, from nothing to the report, interrupted and resumed."""

from __future__ import annotations

import csv
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
COMMAND = [sys.executable, "-m", "fedsr_monai", "demo", "--quick", "--from_scratch", "--sites", "2", "--out"]
STAGES = ["simulate", "check", "federate", "personalise", "evaluate", "report"]


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory) -> tuple[Path, int, str]:
    """The folder of a demo that Ctrl-C stopped while it simulated, its exit status and what it wrote to standard error."""
    out = tmp_path_factory.mktemp("demo") / "demo"
    process = subprocess.Popen(
        [*COMMAND, str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        start_new_session=True,
        # what a shell starts in the background, tests too, ignores SIGINT, and so do its children
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        deadline = time.monotonic() + 120
        while not (out / "sites" / "adult-3t" / "images").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # what Ctrl-C sends: to the workers too
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert not list(out.rglob("*.part"))
    return out, process.returncode, errors


@pytest.fixture(scope="module")
def demo(interrupted) -> tuple[Path, subprocess.CompletedProcess]:
    """The same command again, which goes on and completes."""
    out = interrupted[0]
    return out, subprocess.run([*COMMAND, str(out)], capture_output=True, text=True, env=ENVIRONMENT, timeout=300)


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_an_interrupt_is_one_line(interrupted):
    _, status, errors = interrupted
    assert errors.splitlines()[-1] == "fedsr: interrupted; run the same command again to resume"
    assert "terminating" not in errors and "Traceback" not in errors
    assert status == 130


def test_every_stage_says_one_line(demo):
    out, done = demo
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[: len(STAGES)]] == STAGES
    sites = ["adult-3t", "elderly-3t", "paediatric"]
    assert [line.split()[0] for line in lines[len(STAGES) : -1]] == sites
    assert lines[-1] == f"report: {out / 'report.html'}"


def test_the_log_tells_what_begins_and_each_item_that_is_finished(demo):
    lines = demo[1].stderr.splitlines()
    assert all(re.match(r"\d\d:\d\d:\d\d \w+", line) for line in lines), lines
    begun = [line.split()[1].rstrip(":") for line in lines if line.split()[1].endswith(":")]
    assert list(dict.fromkeys(name for name in begun if name in STAGES)) == STAGES
    assert sum("evaluate paediatric" in line for line in lines) >= 1


def test_the_sites_of_the_rounds_and_the_one_that_joined_are_measured(demo):
    run = demo[0] / "run"
    took_part = {(row["site"], row["status"]) for row in rows(run / "participation.csv")}
    assert took_part == {("adult-3t", "ok"), ("elderly-3t", "ok")}
    measured = rows(run / "evaluation" / "metrics.csv")
    assert {row["site"] for row in measured} == {"adult-3t", "elderly-3t", "paediatric"}
    assert {row["task"] for row in measured} == {"unregistered", "registration", "segmentation"}
    unregistered = [float(row["dice"]) for row in measured if row["task"] == "unregistered"]
    assert 0.2 < sum(unregistered) / len(unregistered) < 0.95


def test_the_report_says_what_the_demo_began_with(demo):
    page = (demo[0] / "report.html").read_text()
    assert "FedSR demo: simulated sites, from random weights" in page
    assert all(f">{site}<" in page for site in ("adult-3t", "elderly-3t", "paediatric"))


def test_again_changes_no_weight(demo):
    out, first = demo
    files = [*(out / "run").rglob("*.safetensors"), *(out / "run").rglob("model.pt")]
    before = {file: file.read_bytes() for file in files}
    again = subprocess.run([*COMMAND, str(out)], capture_output=True, text=True, env=ENVIRONMENT, timeout=300)
    assert again.returncode == 0
    assert again.stdout.splitlines()[len(STAGES) :] == first.stdout.splitlines()[len(STAGES) :]
    assert before and {file: file.read_bytes() for file in files} == before
