"""FLARE's own simulator, with one process per site: what its processes may do to a run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from nvflare.recipe import SimEnv

from fedsr_monai.federation.storage import read_tensors
from fedsr_monai.flare.job import export_job
from fedsr_monai.flare.recipe import FedSRRecipe
from fedsr_monai.flare.startup_kit import prepare_startup_kit

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SITES = {"a": 3, "b": 2, "c": 1}
FAIL = {"fail": "$@output_dir + '/fail'"}  # a file in the site's own folder says how


@pytest.fixture
def simulate(inputs, tmp_path):
    """Run a job in the simulator; returns the run folder, which server and sites share here."""

    def run(rounds: int, threads: int, own: dict | None = None, **options) -> Path:
        job = export_job(tmp_path / f"job-{rounds}", SITES, rounds, run="run", bundle=inputs / "bundle", **options)
        workspace = tmp_path / f"workspace-{rounds}"
        workspace.mkdir()
        prepare_startup_kit(workspace, inputs / "data" / "{SITE_NAME}", tmp_path / "state")
        file = workspace / "local" / "fedsr.json"
        content = json.loads(file.read_text()) | {"bundles": {"bundle": str(inputs / "bundle")}, **(own or {})}
        file.write_text(json.dumps(content))
        command = [sys.executable, "-m", "nvflare.private.fed.app.simulator.simulator", str(job), "-w", str(workspace)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*command, "-c", "a,b,c", "-t", str(threads)], env=environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return tmp_path / "state" / "run"

    return run


def test_the_recipe_ends_in_the_bits_of_fedsr_federate(inputs, reference, tmp_path, table):
    """`recipe.execute(SimEnv(...))`, FLARE's current way to the simulator; the server's files are the job's result."""
    own = tmp_path / "sim" / "first" / "local" / "fedsr.json"
    own.parent.mkdir(parents=True)
    own.write_text(json.dumps({"bundles": {"bundle": str(inputs / "bundle")}}))
    recipe = FedSRRecipe("first", 3, SITES, run="run", bundle=inputs / "bundle", min_sites=3)
    extra = {"site": inputs / "data" / "{SITE_NAME}", "state": tmp_path / "state"}
    recipe.execute(SimEnv(clients=recipe.sites, workspace_root=str(tmp_path / "sim"), extra=extra))
    run = tmp_path / "state" / "run"
    assert [row["status"] for row in table(run / "participation.csv")] == ["ok"] * 9
    assert differing(run, reference, 3) == []
    (result,) = (tmp_path / "sim").rglob("simulate_job/fedsr/server")
    kept = {"round_0002.safetensors", "round_0003.safetensors", "state.json"}
    assert {path.name for path in result.iterdir()} == kept


def differing(run: Path, reference: Path, round: int) -> list[str]:
    """What is not the same to the last bit: the global tensors, and every site's network with its own heads."""
    ours, theirs = (read_tensors(folder / "server" / f"round_{round:04d}.safetensors") for folder in (run, reference))
    assert list(ours) == list(theirs) and {key.split(".")[0] for key in ours} == {"encoder", "sa"}
    found = [key for key in theirs if not torch.equal(ours[key], theirs[key])]
    for site in "abc":
        ours, theirs = (
            torch.load(folder / "sites" / site / "model.pt", weights_only=True) for folder in (run, reference)
        )
        found += [f"{site} {key}" for key in theirs if not torch.equal(ours[key], theirs[key])]
    return found


def test_a_killed_process_is_named_and_a_later_job_takes_the_site_up_again(simulate, federated, tmp_path, table):
    """b's process dies in the second round. The job ends without it; the next one finds its heads and states on the disk.

    That job has fewer threads than sites: a thread takes one site after the other, each time in a new process.
    """
    flags = [folder / "sites" / "b" / "fail" for folder in (tmp_path / "state" / "run", tmp_path / "twin")]
    for flag, what in zip(flags, ("die 2", "raise 2")):
        flag.parent.mkdir(parents=True)
        flag.write_text(what)
    run = simulate(2, threads=3, own={"overrides": FAIL}, min_sites=2, wait=5)
    rows = table(run / "participation.csv")
    assert [(row["site"], row["status"]) for row in rows[3:]] == [("a", "ok"), ("b", "timeout"), ("c", "ok")]
    assert rows[4]["reason"] == "no result before the round was closed"
    assert not (run / "sites" / "b" / "model.pt").exists()

    run = simulate(4, threads=2, own={"overrides": FAIL}, min_sites=3)
    rows = table(run / "participation.csv")
    assert [row["status"] for row in rows] == ["ok"] * 4 + ["timeout"] + ["ok"] * 7
    assert differing(run, federated(tmp_path / "twin", 4, overrides=FAIL), 4) == []
