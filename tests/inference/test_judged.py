"""Results of the shipped weights, judged, and the folder that they are written to."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from fedsr_monai.cli import main
from fedsr_monai.errors import UserErrors
from fedsr_monai.inference.run import Result
from fedsr_monai.inference.segment import segment

pytestmark = pytest.mark.slow


def changed(brain: Path, path: Path, change) -> Path:
    image = nib.load(brain)
    path.parent.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(change(np.asarray(image.dataobj)), image.affine), path)
    return path


def quality(folder: Path) -> dict[str, dict[str, str]]:
    with open(folder / "quality.csv", newline="") as file:
        return {row["scan"]: row for row in csv.DictReader(file)}


def rows(folder: Path) -> set[tuple[str, str]]:
    with open(folder / "volumes.csv", newline="") as file:
        return {(row["scan"], row["labels"]) for row in csv.DictReader(file)}


def test_good_results_pass_and_broken_scans_are_rejected(brain, tmp_path):
    turned = changed(brain, tmp_path / "turned.nii.gz", lambda v: np.rot90(v, axes=(1, 2))[:, :80, :].copy())
    upside = changed(brain, tmp_path / "upside.nii.gz", lambda v: v[:, :, ::-1].copy())
    inverted = changed(brain, tmp_path / "inverted.nii.gz", lambda v: np.where(v > 0, 1010 - v, 0).astype(np.int16))
    results: list[Result] = []
    scans = [turned, brain, upside, inverted]
    with pytest.raises(UserErrors) as caught:
        segment(scans, tmp_path / "out", register=True, on_result=results.append, progress=False)
    assert [str(error).split(": ")[0] for error in caught.value.errors] == [str(turned), str(upside), str(inverted)]
    assert all("implausible result" in str(error) for error in caught.value.errors)
    (good,) = results
    assert good.labels.name == "brain_dseg.nii.gz" and good.quality.agreement > 0.8 and good.quality.verdict == "good"
    assert good.atlas == tmp_path / "out" / "atlas" / "label.nii.gz" and good.atlas.is_file()
    written = {file.name for file in good.files}
    expected = {
        "brain_dseg.nii.gz",
        "brain_dseg.tsv",
        "brain_atlas-dseg.nii.gz",
        "brain_atlas-dseg.tsv",
        "brain_warp.nii.gz",
    }
    assert written == expected
    verdicts = {name: row["verdict"] for name, row in quality(tmp_path / "out").items()}
    assert verdicts == {"turned": "rejected", "brain": "good", "upside": "rejected", "inverted": "rejected"}
    assert {scan for scan, _ in rows(tmp_path / "out")} == {"brain"}
    assert {file.name for file in (tmp_path / "out").glob("*.nii.gz")} == {
        file for file in expected if file.endswith("gz")
    }

    # The same scan again, rejected but kept; and then right, which takes the note away.
    with pytest.raises(UserErrors, match="implausible"):
        segment([upside], tmp_path / "out", keep_rejected=True, progress=False)
    note = tmp_path / "out" / "upside_dseg.rejected"
    assert "agree at a Dice of" in note.read_text() and (tmp_path / "out" / "upside_dseg.nii.gz").is_file()
    shutil.copy(brain, upside)
    segment([upside], tmp_path / "out", progress=False)
    assert not note.exists() and quality(tmp_path / "out")["upside"]["verdict"] == "good"


def test_the_command_prints_every_file_and_how_to_warp(brain, tmp_path, capsys):
    missing = tmp_path / "missing.nii.gz"
    assert main(["segment", str(missing), str(brain), "--out", str(tmp_path / "out"), "--register"]) == 2
    printed = capsys.readouterr()
    files = [Path(line) for line in printed.out.splitlines()]
    assert all(file.is_file() for file in files) and {file.name for file in files} >= {
        "brain_dseg.nii.gz",
        "brain_warp.nii.gz",
    }
    assert printed.err.count(f"{missing}: found no such file") == 2  # when it happened, and at the end
    (line,) = [line for line in printed.err.splitlines() if "antsApplyTransforms" in line]
    words = line.split()
    assert words[words.index("-n") + 1] == "GenericLabel"
    assert all(Path(words[words.index(option) + 1]).is_file() for option in ("-i", "-r", "-t"))


@pytest.mark.usefixtures("knows_both")
class TestFolder:
    """With a network that knows the answer, on a small grid."""

    @pytest.fixture
    def run(self, site_folder, tmp_path):
        site = site_folder()
        torch.manual_seed(0)
        from fedsr_monai.networks import FedSRNet

        torch.save(FedSRNet().state_dict(), tmp_path / "model.pt")

        def call(scans, out="out", **options):
            options = {"weights": tmp_path / "model.pt", "site": site, "progress": False} | options
            return segment(scans, tmp_path / out, **options)

        return call

    @pytest.fixture
    def scans(self, site_folder, tmp_path) -> Path:
        """A folder with two scans, a label map and a mask."""
        site = site_folder("source")
        (tmp_path / "scans").mkdir()
        for name, file in (
            ("a", "images/training0.nii.gz"),
            ("b", "images/training1.nii.gz"),
            ("b_dseg", "labels/test3.nii.gz"),
        ):
            shutil.copy(site / file, tmp_path / "scans" / f"{name}.nii.gz")
        return tmp_path / "scans"

    def test_a_folder_is_listed_and_its_own_results_are_not_scans(self, run, scans):
        first = run([scans])
        assert [path.name for path in first] == ["a_dseg.nii.gz", "b_dseg.nii.gz"]
        own = run([scans], out=scans.name.replace("scans", "other"))
        assert len(own) == 2
        shutil.move(scans / "b_dseg.nii.gz", scans.parent / "by_hand.nii.gz")
        inside = [path.name for path in run([scans], out="scans", register=True)]
        assert inside == ["a_dseg.nii.gz", "b_dseg.nii.gz"]
        assert [path.name for path in run([scans], out="scans", register=True)] == inside

    def test_label_maps_are_not_scans(self, run, scans):
        with pytest.raises(UserErrors, match=r"b_dseg.nii.gz: found a label map.*leave label maps"):
            run([scans / "b_dseg.nii.gz"])

    def test_files_of_others_are_kept(self, run, scans, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "a_dseg.nii.gz").write_text("by hand")
        with pytest.raises(UserErrors, match="a_dseg.nii.gz: found a file of another origin.*--overwrite$"):
            run([scans / "a.nii.gz", scans / "b.nii.gz"])
        assert (tmp_path / "out" / "a_dseg.nii.gz").read_text() == "by hand"
        assert {scan for scan, _ in rows(tmp_path / "out")} == {"b"}
        run([scans / "a.nii.gz"], overwrite=True)
        assert nib.load(tmp_path / "out" / "a_dseg.nii.gz").shape == (32, 32, 32)

    def test_a_name_from_another_folder_replaces_nothing_in_a_later_call(self, run, scans, tmp_path):
        run([scans / "a.nii.gz"])
        (tmp_path / "more").mkdir()
        shutil.copy(scans / "b.nii.gz", tmp_path / "more" / "a.nii.gz")
        with pytest.raises(UserErrors, match=r"more/a.nii.gz: found a result .* of .*scans/a.nii.gz"):
            run([tmp_path / "more" / "a.nii.gz"])

    def test_a_name_that_is_not_utf_8_costs_that_scan(self, run, scans, tmp_path):
        odd = Path(str(scans) + "/caf\udce9.nii.gz")
        shutil.copy(scans / "a.nii.gz", odd)
        with pytest.raises(UserErrors, match=r"caf\\xe9.nii.gz: found a name that is not UTF-8") as caught:
            run([odd, scans / "b.nii.gz"])
        str(caught.value).encode()
        assert (tmp_path / "out" / "b_dseg.nii.gz").is_file()

    def test_without_quality_nothing_is_judged(self, run, scans, tmp_path):
        run([scans / "a.nii.gz"], quality=False)
        assert not (tmp_path / "out" / "quality.csv").exists()

    def test_two_processes_share_a_folder(self, run, scans, tmp_path):
        names = [f"{letter}{number}" for letter in "ab" for number in range(4)]
        for name in names:
            shutil.copy(scans / f"{name[0]}.nii.gz", tmp_path / f"{name}.nii.gz")
        line = [
            sys.executable,
            "-m",
            "fedsr_monai",
            "segment",
            "--out",
            str(tmp_path / "out"),
            "--site",
            str(tmp_path / "clinic"),
        ]
        line += ["--weights", str(tmp_path / "model.pt"), "--no_quality", "--register", "--scans"]
        parts = [[str(tmp_path / f"{name}.nii.gz") for name in names if name[0] == letter] for letter in "ab"]
        processes = [subprocess.Popen([*line, *part], stdout=subprocess.DEVNULL) for part in parts]
        assert [process.wait(150) for process in processes] == [0, 0]
        assert rows(tmp_path / "out") == {(name, kind) for name in names for kind in ("dseg", "atlas-dseg")}
        record = json.loads((tmp_path / "out" / "fedsr-segment.json").read_text())["results"]
        assert set(names) < set(record) and not [
            file for file in (tmp_path / "out").iterdir() if "partial" in file.name
        ]
