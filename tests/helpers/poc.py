"""Run a federation over real processes: server, hospitals and a coordinator that speak gRPC with mutual TLS, on this machine alone.

    python tests/helpers/poc.py [--folder KEEP]

It provisions certificates with FLARE, starts a server and three sites as a hospital would, and submits jobs of `fedsr
export-job`. In the first, hospital-b's job process is killed in the second round: it is restarted, and the downloaded
model and all sites' networks are those of `fedsr federate` to the last bit. In the second, which the recipe submits
through FLARE's `ProdEnv`, hospital-c's process is killed and may not be restarted: the job completes with the other
two, and the table says who was missing. A third job is aborted in the second round, whose rows are in the table all
the same, and submitted again: it resumes, and ends in the same bits as the first. Everything runs in a network
namespace of its own (FLARE listens on all interfaces) and a process namespace of its own, whose end is the end of
every process in it, whatever happened. Linux with unprivileged user namespaces; takes five to eight minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # a script finds only what is beside it

SITES = {"hospital-a": 3, "hospital-b": 2, "hospital-c": 1}
ROUNDS = 3
COORDINATOR = "coordinator@example.org"
OVERRIDES = ["epoch_length=2", "val_interval=100"]
PROJECT = {
    "api_version": 3,
    "name": "fedsr",
    "description": "FedSR over mutual TLS",
    "participants": [
        {"name": "localhost", "type": "server", "org": "trial", "fed_learn_port": 8002, "admin_port": 8003},
        *({"name": name, "type": "client", "org": "trial"} for name in SITES),
        {"name": COORDINATOR, "type": "admin", "org": "trial", "role": "project_admin"},
    ],
    "builders": [
        {"path": "nvflare.lighter.impl.workspace.WorkspaceBuilder", "args": {"template_file": ["master_template.yml"]}},
        {
            "path": "nvflare.lighter.impl.static_file.StaticFileBuilder",
            "args": {"config_folder": "config", "scheme": "grpc"},
        },
        {"path": "nvflare.lighter.impl.cert.CertBuilder", "args": {}},
        {"path": "nvflare.lighter.impl.signature.SignatureBuilder", "args": {}},
    ],
}
BEGIN = time.perf_counter()


def say(text: str) -> None:
    print(f"{time.perf_counter() - BEGIN:6.1f} s  {text}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--folder", type=Path, help="keep everything here; by default a temporary folder that is removed"
    )
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    folder = Path(arguments.folder or tempfile.mkdtemp(prefix="fedsr-poc-")).absolute()
    if not arguments.inside:
        namespaces = ["unshare", "--map-root-user", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
        command = [sys.executable, __file__, "--inside", "--folder", str(folder)]
        try:
            return subprocess.run([*namespaces, *command], preexec_fn=die_with_parent).returncode
        finally:
            if arguments.folder is None:
                shutil.rmtree(folder, ignore_errors=True)
    raise_loopback()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ |= {
        "HOME": str(folder),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
    }
    os.chdir(folder)
    return run(folder)


def die_with_parent() -> None:
    """Let the kernel kill this process when its parent ends, however it ends; with it goes everything in the namespace."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def raise_loopback() -> None:
    """Set `lo` up, the only interface of a new network namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        fcntl.ioctl(handle, 0x8914, struct.pack("16sh", b"lo", 1))  # SIOCSIFFLAGS, IFF_UP
    assert os.listdir("/sys/class/net") == ["lo"] or socket.if_nameindex() == [(1, "lo")]


def fedsr(*words: str) -> None:
    """A command as a user gives it, in this process: importing torch and MONAI anew for each would take most of the time."""
    from fedsr_monai.cli import main as command

    with contextlib.redirect_stdout(None):
        if command(words) != 0:
            raise SystemExit(f"failed: fedsr {' '.join(words)}")


def run(folder: Path) -> int:
    from tests.helpers.miniature import write_sites

    write_sites(folder / "data", SITES, shape=(32, 32, 32))
    folders = [str(folder / "data" / name) for name in SITES]
    fedsr("federate", *folders, "--out", "reference", "--rounds", str(ROUNDS), "--override", *OVERRIDES)
    say("fedsr federate: the reference is complete")

    (folder / "project.yml").write_text(json.dumps(PROJECT))  # JSON is YAML
    log = open(folder / "flare.log", "w")
    subprocess.run(
        ["nvflare", "provision", "-p", "project.yml", "-w", "provisioned"], check=True, stdout=log, stderr=log
    )
    kits = folder / "provisioned" / "fedsr" / "prod_00"
    certificates = sorted(path.name for path in (kits / "hospital-a" / "startup").glob("*.crt"))
    fedsr("flare-site", str(kits / "localhost"))
    for name in SITES:
        fedsr("flare-site", str(kits / name), "--site", str(folder / "data" / name))
    sites = [f"{name}={images}" for name, images in SITES.items()]
    common = ["--rounds", str(ROUNDS), "--override", *OVERRIDES, "--sites", *sites]
    fedsr("export-job", "restarted", "--min_sites", "3", *common)
    fedsr("export-job", "aborted", "--min_sites", "3", *common)
    forbid_restarts(kits / "hospital-c" / "local" / "resources.json")
    say(f"provisioned: {', '.join(certificates)} at every site; jobs exported")

    for name in ("localhost", *SITES):
        subprocess.run(["bash", str(kits / name / "startup" / "start.sh")], check=True, stdout=log, stderr=log)
    session = connect(kits / COORDINATOR)
    say(f"started: {', '.join(sorted(SITES))} are connected over gRPC")

    states = kits / "localhost" / "fedsr"
    good = run_job(session, session.submit_job(str(folder / "restarted")), states / "restarted", "hospital-b")
    if good is not None:
        good = compare(folder, kits, good)
    lost = run_job(session, submit_recipe(kits / COORDINATOR), states / "lost", "hospital-c")
    resumed = abort_and_resubmit(session, folder, states)
    session.close()
    return 0 if good and resumed and lost is not None and check_lost(lost) else 1


def abort_and_resubmit(session, folder: Path, states: Path) -> bool:
    """Whether a job that is aborted in the second round leaves its rows, and ends in the reference's bits when submitted again."""
    import torch

    from fedsr_monai.federation.storage import read_tensors

    run_folder = states / "aborted"
    number = session.submit_job(str(folder / "aborted"))
    wait_for_round(run_folder / "server" / "state.json")
    session.abort_job(number)
    status = wait(session, number)
    rows = [row.split(",")[:4] for row in (run_folder / "participation.csv").read_text().splitlines()[1:]]
    opened = [row for row in rows if row[0] == "2"]
    say(f"aborted: {status}; rows of the open round: {opened}")
    again = wait(session, session.submit_job(str(folder / "aborted")))
    name = f"server/round_{ROUNDS:04d}.safetensors"
    expected, found = read_tensors(folder / "reference" / name), read_tensors(run_folder / name)
    differing = [key for key in expected if not torch.equal(expected[key], found[key])]
    say(f"submitted again: {again}, {len(differing)} tensors differ from fedsr federate")
    named = [row[1] for row in opened] == list(SITES) and any(row[2] == "timeout" for row in opened)
    return status == "FINISHED:ABORTED" and named and again == "FINISHED:COMPLETED" and not differing


def forbid_restarts(file: Path) -> None:
    """Set the number of restarts in a site's resources to 0."""
    resources = json.loads(file.read_text())
    for component in resources["components"]:
        if component["path"].startswith("fedsr_monai."):
            component["args"] = {"restarts": 0}
    file.write_text(json.dumps(resources))


def submit_recipe(kit: Path) -> str:
    """Submit the job "lost" by `recipe.execute(ProdEnv(...))`, and return its number."""
    from nvflare.recipe import ProdEnv

    from fedsr_monai.flare.recipe import FedSRRecipe

    overrides = {key: int(value) for key, value in (word.split("=") for word in OVERRIDES)}
    recipe = FedSRRecipe("lost", ROUNDS, SITES, min_sites=2, wait=20, overrides=overrides)
    number = recipe.execute(ProdEnv(str(kit), login_timeout=60, username=COORDINATOR)).get_job_id()
    say("lost: submitted by recipe.execute(ProdEnv(...))")
    return number


def run_job(session, number: str, run_folder: Path, victim: str) -> Path | None:
    """Kill the victim's job process in the second round, and return the run folder in the downloaded result."""
    kill(victim, run_folder / "server" / "state.json")
    say(f"{run_folder.name}: the job process of {victim} is killed in round 2")
    status = wait(session, number)
    say(f"{run_folder.name}: {status}")
    if status != "FINISHED:COMPLETED":
        return None
    result = Path(session.download_job_result(number))  # somewhere below the coordinator's kit
    for archive in result.rglob("*.zip"):
        zipfile.ZipFile(archive).extractall(archive.parent)
    return next(result.rglob("workspace/fedsr"))


def kill(site: str, state: Path, seconds: float = 400) -> None:
    """Kill the job process of a site as soon as one round is complete."""
    wait_for_round(state, seconds)
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            if b"nvflare.private.fed.app.client.worker_process" in words and site.encode() in words:
                os.kill(int(process.name), signal.SIGKILL)
                return
    raise RuntimeError(f"{site}: no job process")


def connect(kit: Path, seconds: float = 120):
    """A session of the coordinator, as soon as all sites are there."""
    from nvflare.fuel.flare_api.flare_api import new_secure_session

    deadline = time.time() + seconds
    while True:
        try:
            session = new_secure_session(COORDINATOR, str(kit), timeout=10)
            while len(session.get_system_info().client_info) < len(SITES):
                if time.time() > deadline:
                    raise TimeoutError(f"only {session.get_system_info().client_info} came")
                time.sleep(1)
            return session
        except Exception:
            if time.time() > deadline:
                raise
            time.sleep(1)


def wait(session, job: str, seconds: float = 600) -> str:
    deadline = time.time() + seconds
    while time.time() < deadline:
        status = session.get_job_meta(job)["status"]
        if status.startswith("FINISHED"):
            return status
        time.sleep(1)
    return "not finished in time"


def wait_for_round(state: Path, seconds: float = 400) -> None:
    """Wait until the first round is complete."""
    deadline = time.time() + seconds
    while not (state.exists() and json.loads(state.read_text())["round"] >= 1):
        if time.time() > deadline:
            raise TimeoutError(f"{state}: no complete round")
        time.sleep(0.2)


def check_lost(run_folder: Path) -> bool:
    """Whether the table names hospital-c as missing in the rounds after the first, and the others as complete."""
    rows = [row.split(",")[:4] for row in (run_folder / "participation.csv").read_text().splitlines()[1:]]
    missing = [row for row in rows if row[2] != "ok"]
    say(f"lost: {len(rows) - len(missing)} of {len(rows)} results ok; missing: {missing}")
    return len(rows) == 3 * ROUNDS and [row[:2] for row in missing] == [["2", "hospital-c"], ["3", "hospital-c"]]


def compare(folder: Path, kits: Path, run_folder: Path) -> bool:
    """The downloaded model and the sites' own networks beside those of the reference, bit by bit."""
    import torch

    from fedsr_monai.federation.storage import read_tensors

    name = f"server/round_{ROUNDS:04d}.safetensors"
    expected, found = read_tensors(folder / "reference" / name), read_tensors(run_folder / name)
    assert {key.split(".")[0] for key in found} == {"encoder", "sa"} and list(found) == list(expected)
    differing = [key for key in expected if not torch.equal(expected[key], found[key])]
    say(
        f"model: {len(found)} tensors, {sum(map(torch.Tensor.numel, found.values()))} values, {len(differing)} differ from fedsr federate"
    )
    for site in SITES:
        ours, theirs = (
            torch.load(root / "sites" / site / "model.pt", weights_only=True)
            for root in (kits / site / "fedsr" / "restarted", folder / "reference")
        )
        differing += [f"{site} {key}" for key in theirs if not torch.equal(ours[key], theirs[key])]
    say(f"sites: {len(SITES)} networks with their own heads, {len(differing)} tensors differ")
    rows = (run_folder / "participation.csv").read_text().splitlines()
    say(f"participation: {sum(',ok,' in row for row in rows)} of {len(SITES) * ROUNDS} results ok")
    return not differing


if __name__ == "__main__":
    code = 1
    try:
        code = main()
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    os._exit(code)  # FLARE's session has threads that would outlive a failure
