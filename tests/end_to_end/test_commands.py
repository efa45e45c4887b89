"""The commands one after the other, as the README's tour gives them, at the smallest size."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from fedsr_monai.cli import main


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("tour")


SIMULATE = (
    "simulate @sites --sites 1 --training 2 --validation 0 --test 1 --spacing 6 --shape 32 32 32 --unseen --processes 1"
)
FEDERATE = "federate --sites @sites/adult* --out @run --rounds 1 --override epoch_length=1 learning_rate=0.0005"


def fedsr(place: Path, line: str) -> int:
    return main([word.replace("@", f"{place}/") for word in line.split()])


@pytest.mark.slow
def test_the_tour(place, capsys):
    assert fedsr(place, SIMULATE) == 0
    assert capsys.readouterr().out.split() == [f"{place}/sites/adult-3t", f"{place}/sites/paediatric"]

    assert fedsr(place, "check @sites") == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{place}/sites/{name}: fit for use" for name in ("adult-3t", "paediatric")
    ]

    assert fedsr(place, FEDERATE) == 0
    assert (
        capsys.readouterr().out
        == f"{place}/run: done; next: fedsr evaluate {place}/run, then fedsr report {place}/run\n"
    )
    record = json.loads((place / "run/run.json").read_text())
    assert (record["seed"], record["overrides"]) == (0, {"epoch_length": 1, "learning_rate": 0.0005})

    assert fedsr(place, "personalise @sites/paediatric --weights @run --epochs 1 --epoch_length 1 --search") == 0
    assert capsys.readouterr().out == f"{place}/run/personalised/paediatric/model.pt\n"

    assert fedsr(place, "evaluate @run") == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        "adult-3t",
        "paediatric",
        f"{place}/run/evaluation",
    ]
    with open(place / "run/evaluation/metrics.csv", newline="") as file:
        assert {row["site"] for row in csv.DictReader(file)} == {"adult-3t", "paediatric"}

    scan = place / "sites/paediatric/images/test-001.nii.gz"
    weights = place / "run/personalised/paediatric/model.pt"
    assert (
        fedsr(
            place, f"segment {scan} --out @labels --register --no_quality --site @sites/paediatric --weights {weights}"
        )
        == 0
    )
    written = ("dseg.nii.gz", "dseg.tsv", "atlas-dseg.nii.gz", "atlas-dseg.tsv", "warp.nii.gz")
    assert capsys.readouterr().out.splitlines() == [f"{place}/labels/test-001_{name}" for name in written]
    label, image = nib.load(place / "labels/test-001_dseg.nii.gz"), nib.load(scan)
    assert label.shape == image.shape and np.array_equal(label.affine, image.affine)
    assert set(np.unique(np.asarray(label.dataobj))) <= set(range(14))
    assert all((place / f"labels/test-001_{name}").is_file() for name in written)

    assert fedsr(place, "report @run") == 0
    assert capsys.readouterr().out == f"{place}/run/report.html\n"
    page = (place / "run/report.html").read_text()
    assert "adult-3t" in page and "paediatric" in page and "http://" not in page.replace("http://www.w3.org", "")


@pytest.mark.slow  # the run that they need is the tour's, or made for them
@pytest.mark.parametrize(
    ("line", "pattern"),
    [
        ("federate @nowhere --out @x", "@nowhere: .*no such folder.*site folder"),
        ("federate @sites --out @x --policy fedprox", "policy: found 'fedprox', expected one of fedsr, fedrep, "),
        ("federate @sites --out @x --override learning_rat=1", "overrides: learning_rat: .*learning_rate"),
        ("federate @sites --out @x --from_weights @none.pt", "@none.pt: .*, expected "),
        ("federate @sites/adult-3t --out @run --rounds 1 --seed 5", "@run/run.json: .*found 0, expected 5"),
        ("personalise @sites/adult-3t --weights @nothing", ".*--out.*a folder for the results"),
        ("personalise @sites/adult-3t --weights @nothing --out @y", "@nothing: .*, expected a run folder"),
        ("simulate @sites --spacing 3", "spacing.* 3 mm .*1.5, 2.0, 2.5.*shape"),
        ("simulate @new --profiles martian", "profile.*'martian'.*, expected one of adult-3t, "),
        ("segment @none.nii.gz --out @z", "@none.nii.gz: .*no such file, expected a scan"),
    ],
)
def test_mistakes_after_the_tour(place, capsys, line, pattern):
    if not (place / "run").exists():  # the tour was run by nobody, or by another worker
        assert [fedsr(place, step) for step in (SIMULATE, FEDERATE)] == [0, 0]
        capsys.readouterr()
    assert fedsr(place, line) == 2
    error = capsys.readouterr().err
    assert re.match("fedsr: " + pattern.replace("@", f"{place}/"), error), error
    assert error.count("\n") == 1
    assert not any((place / name).exists() for name in "xyz")
