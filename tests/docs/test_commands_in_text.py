"""What the README and the documentation tell people to type: every line is parsed, and the README's blocks are run in order."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import pytest

from fedsr_monai.cli import main
from fedsr_monai.commands import COMMANDS
from fedsr_monai.commands.arguments import read

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += sorted((ROOT / "bundles").glob("*/docs/README.md")) + [ROOT / "benchmarks" / "README.md"]

# The same commands at a size that a test can afford: (pattern, what is appended to the line).
TOY = {
    r"fedsr simulate sites": "--training 2 --validation 0 --test 1 --spacing 6 --shape 32 32 32 --processes 1",
    r"fedsr federate .*--override": "epoch_length=1",  # one more value of --override
    r"fedsr federate (?!.*--override)": "--override epoch_length=1",
    r"fedsr personalise": "--epochs 1 --epoch_length 1",
    r"fedsr prepare": "--spacing 4 --shape 40 48 40 --processes 1 --test 1 --validation 0",
}
REPLACED = {
    r"--sites 4": "--sites 2",
    r"--rounds \d+": "--rounds 1",
    r"--methods n4_syn": "--methods none",
    r"--epoch_length 3": "--epoch_length 1",
}
# Not run here: installs, Makefile targets (they run these tests), and what follows FLARE's simulator, which tests/flare runs.
LEFT_OUT = ("pip ", "make ", "cat flare/state", "fedsr evaluate flare/")


def blocks(page: Path) -> list[list[str]]:
    """Return the lines of each fenced block of a page without a language, comments removed."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    found = [block for language, block in fenced if not language]
    return [[re.sub(r"\s+#.*$", "", line).strip() for line in block.splitlines() if line.strip()] for block in found]


def fedsr_lines(page: Path) -> list[str]:
    return [line for block in blocks(page) for line in block if line.startswith("fedsr ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_in_the_text_exists_with_these_options(page):
    for line in fedsr_lines(page):
        name, *words = shlex.split(line)[1:]
        if name.startswith("-"):
            continue
        assert name in COMMANDS, line
        read(name, COMMANDS[name], words)


def small(line: str) -> str:
    for pattern, replacement in REPLACED.items():
        line = re.sub(pattern, replacement, line)
    return " ".join([line, *(more for pattern, more in TOY.items() if re.match(pattern, line))])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with the bundles, a stripped scan, raw scans and a labelled atlas, as the README's reader has them."""
    pytest.importorskip("SimpleITK")
    from tests.helpers.raw_scans import atlas, raw_scan, save

    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(ROOT / "bundles", folder / "bundles", ignore=shutil.ignore_patterns("eval", "__pycache__"))
    source = atlas(3.0, (64, 72, 64))
    for seed, name in enumerate(("ann", "bob", "eve")):
        volume, label, grid, _ = raw_scan(seed, source=source)
        save(folder / "scans" / f"{name}.nii.gz", volume, grid.affine)
        if name != "eve":
            save(folder / "scans" / f"{name}_dseg.nii.gz", label, grid.affine)
    volume, label, grid, _ = raw_scan(7, source=source)
    save(folder / "atlas.nii.gz", volume, grid.affine)
    save(folder / "atlas_dseg.nii.gz", label, grid.affine)
    image, _, grid = source
    nib.save(nib.Nifti1Image(image, grid.affine), folder / "scan.nii.gz")
    return folder


@pytest.mark.slow
def test_the_blocks_of_the_readme_run_in_order(folder, monkeypatch, capfd):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for block in blocks(ROOT / "README.md"):
        if block[0].startswith("site.json"):
            continue  # a picture of a folder
        for line in block:
            if line.startswith(LEFT_OUT):
                continue
            if line.startswith("cd "):
                monkeypatch.chdir(line.split()[1])
            elif line.startswith("fedsr "):
                words = [word.replace("$PWD", str(folder)) for word in shlex.split(small(line))[1:]]
                assert main(words) == 0, (line, capfd.readouterr().err)
            elif line.startswith("mkdir "):
                Path(line.split()[1]).mkdir()
            else:
                assert line.startswith("python "), line
                words = [sys.executable, *shlex.split(small(line))[1:]]
                done = subprocess.run(words, capture_output=True, text=True, timeout=300)
                assert done.returncode == 0, (line, done.stderr[-2000:])
    for made in ("labels/scan_dseg.nii.gz", "mysite/site.json", "runs/first/report.html"):
        assert (folder / made).is_file(), made


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_the_python_example_of_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    block = python_blocks(ROOT / "README.md")[0]
    toy = block.replace("test=1)", "test=1, spacing=6, shape=(32, 32, 32), processes=1)")
    toy = toy.replace('"epoch_length": 5', '"epoch_length": 1')
    assert toy != block
    exec(compile(toy, "README.md", "exec"), {})
    assert (tmp_path / "run" / "run.json").is_file()


def test_the_recipe_of_the_readme_names_what_exists():
    """Make the recipe; tests/flare runs such a one in FLARE's simulator, which takes a minute."""
    pytest.importorskip("nvflare")
    block = python_blocks(ROOT / "README.md")[1]
    lines = [line for line in block.splitlines() if "recipe.execute(" not in line]
    assert len(lines) == len(block.splitlines()) - 1
    made: dict = {}
    exec(compile("\n".join(lines), "README.md", "exec"), made)
    assert made["recipe"].sites == ["adult-3t", "elderly-3t", "thick-slice"] and set(made["where"]) == {"site", "state"}
