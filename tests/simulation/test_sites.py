from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import re

import numpy as np
import pytest

from fedsr_monai import files
from fedsr_monai.errors import UserError
from fedsr_monai.simulation import sites as module
from fedsr_monai.simulation.sites import simulate_sites
from fedsr_monai.sites.check import check_site
from fedsr_monai.sites.site import load_site
from fedsr_monai.spatial.nifti import read_volume
from tests.helpers.killing import killed_at_its_writes, killed_at_random

GRID = {"spacing": 6.0, "shape": (32, 32, 32)}
TINY = {"sites": 1, "training": 1, "validation": 1, "test": 1, "processes": 1, **GRID}


def digests(root) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two sites and the unseen one, made by two processes."""
    root = tmp_path_factory.mktemp("sites")
    paths = simulate_sites(root, sites=2, training=2, validation=1, test=1, unseen=True, seed=3, processes=2, **GRID)
    assert paths == [root / "adult-3t", root / "elderly-3t", root / "paediatric"]
    return root


def test_simulated_sites_pass_the_check(folder):
    assert [check_site(path) for path in sorted(folder.iterdir())] == [[], [], []]


def test_the_unseen_site_has_seven_training_scans(folder):
    assert [len(load_site(folder / name).training) for name in ("adult-3t", "paediatric")] == [2, 7]


def test_training_scans_carry_no_labels(folder):
    assert sorted(path.name for path in (folder / "adult-3t/labels").iterdir()) == [
        "test-001.nii.gz",
        "validation-001.nii.gz",
    ]


def test_same_seed_same_bytes_with_any_number_of_processes_and_other_counts(folder, tmp_path):
    simulate_sites(tmp_path, sites=1, training=1, validation=1, test=2, seed=3, processes=1, **GRID)
    ours, theirs = digests(tmp_path / "adult-3t"), digests(folder / "adult-3t")
    common = {name for name in set(ours) & set(theirs) if name != "site.json"}
    assert len(common) == 9 and all(ours[name] == theirs[name] for name in common)


def test_another_seed_gives_other_people(folder, tmp_path):
    simulate_sites(tmp_path, seed=4, **TINY)
    name = "adult-3t/images/test-001.nii.gz"
    assert digests(tmp_path)[name] != digests(folder)[name]


def test_an_interrupted_run_goes_on(tmp_path, monkeypatch):
    made = []
    simulate = module.simulate_subject

    def counted(*arguments):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(arguments)
        return simulate(*arguments)

    monkeypatch.setattr(module, "simulate_subject", counted)
    with pytest.raises(KeyboardInterrupt):
        simulate_sites(tmp_path / "cut", **TINY)
    assert not (tmp_path / "cut/adult-3t/site.json").exists()
    monkeypatch.setattr(module, "simulate_subject", simulate)
    (tmp_path / "cut/adult-3t/images/.test-001.nii.gz.1.part").write_bytes(b"half a volume of a killed process")
    kept = (tmp_path / "cut/adult-3t/images/training-001.nii.gz").stat().st_mtime_ns
    simulate_sites(tmp_path / "cut", **TINY)
    simulate_sites(tmp_path / "whole", **TINY)
    assert (tmp_path / "cut/adult-3t/images/training-001.nii.gz").stat().st_mtime_ns == kept
    (tmp_path / "cut/adult-3t/images/.test-001.nii.gz.1.part").unlink()
    assert digests(tmp_path / "cut") == digests(tmp_path / "whole")


def test_killed_at_any_write_or_moment_it_ends_in_the_same_bytes(tmp_path):
    """At the claim of the folder, too."""
    simulate_sites(tmp_path / "whole", **TINY)
    before = digests(tmp_path / "whole")
    assert killed_at_its_writes(lambda: simulate_sites(tmp_path / "writes", **TINY)) >= 3
    assert killed_at_random(lambda: simulate_sites(tmp_path / "moments", **TINY), kills=4, seconds=0.5, seed=1)
    assert digests(tmp_path / "writes") == before and digests(tmp_path / "moments") == before


def test_other_arguments_do_not_mix_into_a_folder(folder):
    with pytest.raises(UserError, match="adult-3t: found a simulation of other settings .*simulation.json.*; choose"):
        simulate_sites(folder, seed=5, **TINY)


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "adult-3t").mkdir()
    (tmp_path / "adult-3t/thesis.tex").write_text("")
    with pytest.raises(UserError, match="adult-3t: found files of something else"):
        simulate_sites(tmp_path, **TINY)
    assert [path.name for path in (tmp_path / "adult-3t").iterdir()] == ["thesis.tex"]


@pytest.mark.skipif(multiprocessing.get_start_method() != "fork", reason="only a forked worker inherits the patch")
def test_a_killed_worker_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "simulate_subject", lambda *arguments: os._exit(9))
    with pytest.raises(UserError, match="worker process was killed, .*processes=1"):
        simulate_sites(tmp_path, **{**TINY, "processes": 2})


@pytest.mark.parametrize("processes", [1, 2])
def test_a_full_disk_is_one_line(tmp_path, monkeypatch, processes):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    simulate_sites(tmp_path, **{**TINY, "test": 0})
    for file in (tmp_path / "adult-3t/images").iterdir():
        file.unlink()
    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(UserError, match="(training|validation)-001.nii.gz: .*No space left on device"):
        simulate_sites(tmp_path, **{**TINY, "test": 0, "processes": processes})


@pytest.mark.parametrize(
    "change, message",
    [
        ({"sites": 0}, "sites: found 0, expected a whole number of at least 1"),
        ({"training": 0}, "training: found 0, expected a whole number of at least 1"),
        ({"test": -1}, "test: found -1, expected a whole number of at least 0"),
        ({"seed": 1.5}, "seed: found 1.5, expected a whole number of at least 0"),
        ({"processes": True}, "processes: found True, expected a whole number of at least 1"),
        ({"profiles": ["adult-3t"] * 2}, "profiles: found 'adult-3t,adult-3t', expected each name once"),
        ({"profiles": "mars"}, "profiles: found 'mars', expected one of "),
        (
            {"shape": (20, 20, 20)},
            "grid: found (20, 20, 20) at 6 x 6 x 6 mm, which cuts the brain, expected at least (24, 30, 26) voxels",
        ),
    ],
)
def test_a_wrong_argument_is_named_and_nothing_written(tmp_path, change, message):
    with pytest.raises(UserError, match=f"^{re.escape(message)}"):
        simulate_sites(tmp_path / "out", **{**TINY, **change})
    assert not (tmp_path / "out").exists()


def test_sites_beyond_the_built_in_ones_are_drawn():
    members = module._hospitals(7, None, seed=1, unseen=False)
    assert [member.name for member in members[4:]] == ["other-vendor", "hospital-6", "hospital-7"]
    assert members[5].scanner != members[6].scanner
    assert members == module._hospitals(7, None, seed=1, unseen=False)


def test_the_record_is_what_the_scans_were_made_from(folder):
    record = json.loads((folder / "paediatric/simulation.json").read_text())
    assert record["seed"] == 3 and record["shape"] == [32, 32, 32] and record["profile"]["population"]["scale"] == 0.92


def test_a_site_may_draw_its_borders_by_another_protocol(folder, tmp_path):
    """Its images stay, its atlas and references change where the protocols differ: less cortex, more amygdala."""
    simulate_sites(
        tmp_path, training=2, validation=1, test=1, seed=3, processes=1, protocols=["freesurfer-like"], sites=1, **GRID
    )
    ours, theirs = tmp_path / "adult-3t", folder / "adult-3t"
    same, other = (digests(root) for root in (ours, theirs))
    changed = {name for name in same if same[name] != other[name]}
    assert changed == {
        "atlas/fine_label.nii.gz",
        "atlas/label.nii.gz",
        "labels/test-001.nii.gz",
        "labels/validation-001.nii.gz",
        "simulation.json",
    }
    assert check_site(ours) == []
    for file in ("atlas/label.nii.gz", "labels/test-001.nii.gz"):
        new, old = (np.asarray(read_volume(root / file).voxels) for root in (ours, theirs))
        assert (new == 3).sum() < 0.95 * (old == 3).sum()
        assert (new == 12).sum() > 1.1 * (old == 12).sum()
