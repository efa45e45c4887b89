"""The recipe in FLARE's own hands: exported, in a plain `FedJob`, in a provisioned project."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from nvflare.job_config.api import FedJob
from nvflare.job_config.defs import FilterType
from nvflare.recipe import PocEnv, SimEnv

from fedsr_monai.errors import UserError
from fedsr_monai.flare.aggregator import FedSRAggregator
from fedsr_monai.flare.controller import FedSRController
from fedsr_monai.flare.executor import FedSRExecutor
from fedsr_monai.flare.filters import SAPrivacy
from fedsr_monai.flare.job import export_job
from fedsr_monai.flare.persistor import FedSRPersistor
from fedsr_monai.flare.recipe import FedSRRecipe

SITES = {"a": 3, "b": None}


def files(job: Path) -> dict[str, str]:
    return {str(path.relative_to(job)): path.read_text() for path in sorted(job.rglob("*")) if path.is_file()}


def test_the_recipe_exports_what_the_command_writes(tmp_path):
    FedSRRecipe("first", 20, SITES, local_epochs=2).export(str(tmp_path / "recipe"))
    command = export_job(tmp_path / "command" / "first", SITES, 20, local_epochs=2)
    assert files(tmp_path / "recipe" / "first") == files(command)


def test_our_components_bring_no_source_into_a_plain_job(tmp_path):
    settings = FedSRRecipe("first", 1, SITES).settings
    job = FedJob("plain", min_clients=1)
    job.set_app_packages(["another_package"])
    job.to_server(FedSRPersistor({"rounds": settings.rounds}), id="persistor")
    job.to_server(FedSRAggregator(), id="aggregator")
    job.to_server(FedSRController(1))
    job.to_clients(FedSRExecutor({"rounds": settings.rounds}))
    job.to_clients(SAPrivacy(clip=3.0), filter_type=FilterType.TASK_RESULT, tasks=["train"])
    job.export_job(str(tmp_path))
    found = files(tmp_path / "plain")
    assert sorted(found) == ["app/config/config_fed_client.json", "app/config/config_fed_server.json", "meta.json"]
    client = json.loads(found["app/config/config_fed_client.json"])
    assert client["executors"][0]["executor"]["path"] == "fedsr_monai.flare.executor.FedSRExecutor"
    assert client["task_result_filters"][0]["filters"][0]["args"] == {"clip": 3.0}
    assert job.job.app_packages == ["another_package", "fedsr_monai"]


def test_the_simulators_workspace_is_prepared(tmp_path, inputs):
    recipe = FedSRRecipe("first", 1, SITES)
    recipe.process_env(
        SimEnv(clients=recipe.sites, workspace_root=str(tmp_path), extra={"site": inputs / "data" / "a"})
    )
    content = json.loads((tmp_path / "first" / "local" / "fedsr.json").read_text())
    assert content == {"site": str(inputs / "data" / "a")}


def test_a_privacy_policy_that_the_simulator_would_ignore_is_refused(tmp_path):
    policy = tmp_path / "first" / "local" / "privacy.json"
    policy.parent.mkdir(parents=True)
    policy.write_text("{}")
    recipe = FedSRRecipe("first", 1, SITES)
    with pytest.raises(UserError, match="privacy.json: found a privacy policy, which FLARE's simulator ignores"):
        recipe.process_env(SimEnv(clients=recipe.sites, workspace_root=str(tmp_path)))


def project(tmp_path: Path, *builders: dict) -> Path:
    common = "nvflare.lighter.impl."
    content = {
        "api_version": 3,
        "name": "fedsr",
        "participants": [
            {"name": "localhost", "type": "server", "org": "trial", "fed_learn_port": 8002, "admin_port": 8003},
            {"name": "a", "type": "client", "org": "trial"},
            {"name": "admin@example.org", "type": "admin", "org": "trial", "role": "project_admin"},
        ],
        "builders": [
            {"path": common + "workspace.WorkspaceBuilder", "args": {"template_file": ["master_template.yml"]}},
            {"path": common + "static_file.StaticFileBuilder", "args": {"config_folder": "config", "scheme": "grpc"}},
            *builders,
            {"path": common + "cert.CertBuilder", "args": {}},
            {"path": common + "signature.SignatureBuilder", "args": {}},
        ],
    }
    (tmp_path / "project.yml").write_text(json.dumps(content))  # JSON is YAML
    return tmp_path / "project.yml"


def test_poc_env_needs_the_builder(tmp_path, monkeypatch):
    monkeypatch.setenv("NVFLARE_POC_WORKSPACE", str(tmp_path / "poc"))
    recipe = FedSRRecipe("first", 1, SITES)
    with pytest.raises(UserError, match="project_conf_path.*FedSRBuilder"):
        recipe.process_env(PocEnv(clients=["a", "b"]))
    file = project(tmp_path, {"path": "fedsr_monai.flare.provision.FedSRBuilder"})
    recipe.process_env(PocEnv(project_conf_path=str(file)))


def test_provisioned_kits_are_ready(tmp_path):
    args = {"site": "/data/{SITE_NAME}"}
    file = project(tmp_path, {"path": "fedsr_monai.flare.provision.FedSRBuilder", "args": args})
    command = [sys.executable, "-m", "nvflare.lighter.provision", "-p", str(file), "-w", "provisioned"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    kits = tmp_path / "provisioned" / "fedsr" / "prod_00"
    assert (kits / "a" / "local").is_dir(), done.stdout + done.stderr
    assert json.loads((kits / "a" / "local" / "fedsr.json").read_text()) == {"site": "/data/{SITE_NAME}"}
    assert json.loads((kits / "localhost" / "local" / "fedsr.json").read_text()) == {}
    resources = json.loads((kits / "a" / "local" / "resources.json").read_text())
    launchers = [item for item in resources["components"] if item["id"] == "process_launcher"]
    assert [item["path"] for item in launchers] == ["fedsr_monai.flare.launcher.RestartingJobLauncher"]
