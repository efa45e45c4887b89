from __future__ import annotations

import configparser
import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from setuptools import find_packages

import fedsr_monai
from fedsr_monai.bundle_path import bundle_path

ROOT = Path(__file__).parents[1]
BUNDLES = sorted(path.parents[1] for path in (ROOT / "bundles").glob("*/configs/metadata.json"))
CONFIGS = sorted((ROOT / "bundles").glob("*/configs/*.json"))


@pytest.fixture(scope="module")
def setup_cfg() -> configparser.ConfigParser:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    return config


def test_every_folder_with_code_is_a_package_of_the_wheel():
    folders = {path.parent for path in (ROOT / "fedsr_monai").rglob("*.py")}
    assert set(find_packages(str(ROOT), include=["fedsr_monai*"])) == {
        ".".join(folder.relative_to(ROOT).parts) for folder in folders
    }


def test_what_is_installed_without_extras_is_pinned(setup_cfg):
    pinned = {line.split("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    extras = " ".join(value for name, value in setup_cfg["options.extras_require"].items() if name != "label")
    needed = {
        re.split(r"[\[>]", word)[0]
        for word in (setup_cfg["options"]["install_requires"] + extras).split()
        if ">" in word
    }
    assert needed == pinned


def test_the_environment_of_monai_label_is_pinned(setup_cfg):
    text = (ROOT / "constraints-label.txt").read_text()
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in text.splitlines() if "==" in line}
    asked = (setup_cfg["options"]["install_requires"] + setup_cfg["options.extras_require"]["label"]).split()
    needed = {re.split("[<>=]", word)[0].lower() for word in asked if not word.startswith("fedsr-monai")}
    assert needed <= pinned and {"monailabel", "pydicom-seg", "torchvision"} <= pinned


def test_wheel_holds_the_bundles_and_the_command(tmp_path):
    source = tmp_path / "source"
    keep_out = shutil.ignore_patterns("__pycache__", "eval", "models")
    for folder in ("fedsr_monai", "bundles"):
        shutil.copytree(ROOT / folder, source / folder, ignore=keep_out)
    for file in ("setup.py", "setup.cfg", "pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / file, source)
    for bundle in BUNDLES:
        models = source / "bundles" / bundle.name / "models"
        models.mkdir()
        for file in bundle.joinpath("models").iterdir():
            (models / file.name).write_bytes(b"weights")
        (models / "freesurfer.safetensors").write_bytes(b"a head")
        (models / "left_by_a_training.pt").write_bytes(b"not for the wheel")
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
        entry_points = next(name for name in names if name.endswith("entry_points.txt"))
        assert "fedsr = fedsr_monai.__main__:program" in wheel.read(entry_points).decode()
    assert next(tmp_path.glob("*.whl")).name == f"fedsr_monai-{fedsr_monai.__version__}-py3-none-any.whl"
    for bundle in BUNDLES:
        for file in (p for p in bundle.rglob("*") if p.is_file() and p.parts[-2] in ("configs", "docs", bundle.name)):
            assert f"fedsr_monai/bundles/{file.relative_to(ROOT / 'bundles')}" in names
        assert f"fedsr_monai/bundles/{bundle.name}/models/model.pt" in names
    for file in ("brain_mask.safetensors", "freesurfer.safetensors"):
        assert f"fedsr_monai/bundles/fedsr_site/models/{file}" in names
    assert not any("left_by_a_training" in name or "tests" in name for name in names)


def test_both_bundles_are_found_in_the_checkout():
    assert [bundle.name for bundle in BUNDLES] == ["fedsr_encoder", "fedsr_site"]
    assert [bundle_path(bundle.name) for bundle in BUNDLES] == BUNDLES


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: str(path.relative_to(ROOT / "bundles")))
def test_every_config_is_json_that_names_each_key_once(config):
    def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        keys = [key for key, _ in pairs]
        assert sorted(set(keys)) == sorted(keys)
        return dict(pairs)

    assert json.loads(config.read_text(encoding="utf-8"), object_pairs_hook=once)
