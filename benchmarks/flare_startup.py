"""Compare the start-up cost of our FLARE components with that of FLARE's own hello job: simulator, one site, one round, next to no work.

    python benchmarks/flare_startup.py [repeats]

`hello` is FLARE's numpy job (`ScatterAndGather`, `NPTrainer`, `NPModelPersistor`); `hello+torch` and `hello+monai` are
the same job with a trainer and a persistor that also import torch, or the parts of torch and MONAI that our components
import. `fedsr` is the job of `fedsr export-job` on a bundle and a scan of 16^3 voxels. CPU seconds are those of all
processes of the simulator; wall time depends on what else the machine does. `imports` measures the imports of
`hello+monai` alone, and `imports+fedsr` these imports followed by that of our executor.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from nvflare.app_common.np.np_model_persistor import NPModelPersistor
from nvflare.app_common.np.np_trainer import NPTrainer

ROOT = Path(__file__).parents[1]
MONAI = ["torch", "monai.bundle", "monai.engines", "monai.fl.client"]
IMPORTS = {"hello": [], "hello+torch": ["torch"], "hello+monai": MONAI}


class HelloTrainer(NPTrainer):
    """Import some modules, then act as FLARE's trainer."""

    def __init__(self, imports: list[str]) -> None:
        for name in imports:
            importlib.import_module(name)
        super().__init__(sleep_time=0)


class HelloPersistor(NPModelPersistor):
    """Import some modules, then act as FLARE's persistor."""

    def __init__(self, imports: list[str]) -> None:
        for name in imports:
            importlib.import_module(name)
        super().__init__()


def hello_job(folder: Path, imports: list[str]) -> Path:
    """Write FLARE's numpy hello job, with imports added, and return its folder."""
    app = folder / "hello" / "app" / "config"
    app.mkdir(parents=True)
    (folder / "hello" / "meta.json").write_text(
        json.dumps({"name": "hello", "min_clients": 1, "deploy_map": {"app": ["@ALL"]}})
    )
    trainer = {"path": "flare_startup.HelloTrainer", "args": {"imports": imports}}
    client = {"format_version": 2, "executors": [{"tasks": ["train"], "executor": trainer}]}
    (app / "config_fed_client.json").write_text(json.dumps(client))
    common = "nvflare.app_common."
    server = {
        "format_version": 2,
        "components": [
            {"id": "persistor", "path": "flare_startup.HelloPersistor", "args": {"imports": imports}},
            {
                "id": "shareable_generator",
                "path": common + "shareablegenerators.full_model_shareable_generator.FullModelShareableGenerator",
            },
            {
                "id": "aggregator",
                "path": common + "aggregators.intime_accumulate_model_aggregator.InTimeAccumulateWeightedAggregator",
                "args": {"expected_data_kind": "WEIGHTS"},
            },
        ],
        "workflows": [
            {
                "id": "rounds",
                "path": common + "workflows.scatter_and_gather.ScatterAndGather",
                "args": {"min_clients": 1, "num_rounds": 1, "persistor_id": "persistor"},
            }
        ],
    }
    (app / "config_fed_server.json").write_text(json.dumps(server))
    return folder / "hello"


def measure(kind: str) -> tuple[float, float]:
    """Return CPU and wall seconds of one job."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        workspace = folder / "workspace"
        (workspace / "local").mkdir(parents=True)
        if kind == "fedsr":
            from fedsr_monai.flare.job import export_job
            from fedsr_monai.flare.startup_kit import prepare_startup_kit
            from tests.helpers.miniature import write_bundle, write_sites

            bundle = write_bundle(folder / "bundle")
            (site,) = write_sites(folder / "data", {"a": 1})
            job = export_job(folder / "first", {"a": 1}, 1, bundle=bundle)
            prepare_startup_kit(workspace, site, folder / "state")
            file = workspace / "local" / "fedsr.json"
            file.write_text(json.dumps(json.loads(file.read_text()) | {"bundles": {"bundle": str(bundle)}}))
        else:
            job = hello_job(folder, IMPORTS[kind])
            (workspace / "local" / "resources.json").write_text('{"class_allow_list": ["nvflare.", "flare_startup."]}')
        paths = [str(ROOT), str(ROOT / "benchmarks")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
        command = [
            sys.executable,
            "-m",
            "nvflare.private.fed.app.simulator.simulator",
            str(job),
            "-w",
            str(workspace),
            "-c",
            "a",
            "-t",
            "1",
        ]
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
        finished = list(workspace.rglob("server.npy")) or list((folder / "state").rglob("round_0001.safetensors"))
        if done.returncode or not finished:
            raise SystemExit(f"{kind}: the job did not finish\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        return (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime), wall


def measure_imports(names: list[str]) -> tuple[float, float]:
    """Return CPU and wall seconds of a Python process that imports some modules and ends."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import {', '.join(names)}"], env=environment, check=True)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime), wall


def main(repeats: int) -> None:
    """Measure every kind of job `repeats` times and write flare.csv."""
    sys.path.insert(0, str(ROOT))
    import nvflare

    from fedsr_monai.files import write_csv

    alone = ["nvflare.apis.executor", *MONAI]
    imports = {"imports": alone, "imports+fedsr": [*alone, "fedsr_monai.flare.executor"]}
    seconds: dict[str, list[tuple[float, float]]] = {kind: [] for kind in (*IMPORTS, "fedsr", *imports)}
    for _ in range(repeats):
        for kind, found in seconds.items():  # one after the other, so that a busy minute affects all of them
            found.append(measure_imports(imports[kind]) if kind in imports else measure(kind))
            print(kind, *(f"{value:.1f}" for value in found[-1]), flush=True)
    rows = []
    for kind, found in seconds.items():
        row = {"job": kind, "nvflare": nvflare.__version__, "repeats": repeats}
        for name, values in zip(("cpu", "wall"), zip(*found)):
            row |= {
                f"{name}_seconds_min": f"{min(values):.1f}",
                f"{name}_seconds_median": f"{statistics.median(values):.1f}",
            }
        rows.append(row)
    write_csv(ROOT / "benchmarks" / "flare.csv", list(rows[0]), rows)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
