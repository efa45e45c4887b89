from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest

from fedsr_monai.federation import federate
from tests.helpers.miniature import write_bundle, write_sites
from tests.helpers.stage import Stage

ROOT = Path(__file__).parents[2]
SITES = {"a": 3, "b": 2, "c": 1}


@pytest.fixture(scope="session")
def inputs(tmp_path_factory) -> Path:
    """`bundle` and the site folders `data/a`, `data/b` and `data/c`."""
    root = tmp_path_factory.mktemp("flare")
    write_bundle(root / "bundle")
    write_sites(root / "data", SITES)
    return root


@pytest.fixture(scope="session")
def federated(inputs):
    """Rounds of `fedsr federate` over the sites of `inputs`, to compare with."""
    folders = [str(inputs / "data" / name) for name in SITES]

    def run(out: Path, rounds: int, **options) -> Path:
        return federate(folders, out, rounds, bundle=str(inputs / "bundle"), **options)

    return run


@pytest.fixture(scope="session")
def reference(inputs, federated) -> Path:
    return federated(inputs / "reference", 3)


@pytest.fixture
def stage(inputs, tmp_path):
    def make(name: str = "stage", **options) -> Stage:
        options = {"sites": SITES, "rounds": 3, "min_sites": 1, **options}
        made = Stage(tmp_path / name, inputs / "data", bundle=inputs / "bundle", **options)
        made.begin()
        return made

    return make


@pytest.fixture(scope="session")
def table():
    def read(path: Path) -> list[dict[str, str]]:
        with open(path, newline="") as file:
            return list(csv.DictReader(file))

    return read


@pytest.fixture(scope="session")
def documented_policy() -> dict:
    """The `privacy.json` that docs/nvflare.md shows."""
    blocks = re.findall(
        r"^```json\n(.*?)^```", (ROOT / "docs" / "nvflare.md").read_text(), flags=re.DOTALL | re.MULTILINE
    )
    return next(json.loads(block) for block in blocks if "scopes" in block)
