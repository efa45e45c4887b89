from __future__ import annotations

import csv
import subprocess
import sys

import numpy as np
import pytest

from fedsr_monai.errors import UserError
from fedsr_monai.labels import LABELS
from fedsr_monai.labels.label_map import write_label_map
from fedsr_monai.labels.volumes import COLUMNS, record_volumes, structure_volumes, structures_at_edge
from fedsr_monai.spatial.header import header_of

# Permuted, sheared and flipped: 2 x 1.5 x 3 mm, but for the shear.
AFFINE = np.array([[0.0, -2.0, 0.0, 30.0], [1.5, 0.0, 0.0, -40.0], [0.0, 0.3, 3.0, 10.0], [0.0, 0.0, 0.0, 1.0]])


def table(folder) -> list[dict[str, str]]:
    with open(folder / "volumes.csv", newline="") as file:
        return list(csv.DictReader(file))


def block() -> np.ndarray:
    """200 voxels of the thalamus (9 mm3 each) inside, 4 of the brain stem in the lowest slice, nothing else."""
    labels = np.zeros((12, 12, 12), dtype=np.uint8)
    labels[2:7, 2:10, 2:7] = 6
    labels[4:6, 4:6, 0] = 10
    return labels


def test_millilitres_of_an_oblique_grid():
    volumes = structure_volumes(block(), AFFINE)
    assert list(volumes) == list(range(1, 14))
    assert volumes[6] == pytest.approx(1.8) and volumes[10] == pytest.approx(0.036)
    assert sum(volumes.values()) == pytest.approx(1.836)
    assert structures_at_edge(block()) == [10]


def test_one_row_per_label_map_and_one_column_per_structure(tmp_path):
    write_label_map(tmp_path / "sub-1_T1w_dseg.nii.gz", block(), header_of(AFFINE))
    (row,) = table(tmp_path)
    assert list(row) == ["scan", "labels", *(f"{LABELS[i]} (ml)" for i in range(1, 14)), "missing", "at_edge"]
    assert (row["scan"], row["labels"], row["at_edge"]) == ("sub-1_T1w", "dseg", "brain stem")
    assert row["thalamus (ml)"] == "1.800" and row["brain stem (ml)"] == "0.036"
    # a structure that was not found is named: its 0 is no measurement
    assert row["caudate (ml)"] == "0.000" and "caudate" in row["missing"].split("; ")
    assert set(row["missing"].split("; ")) == set(LABELS.values()) - {"background", "thalamus", "brain stem"}


def test_a_row_is_replaced_and_the_others_stay(tmp_path):
    for name in ("a_dseg", "a_atlas-dseg", "b_dseg"):
        record_volumes(tmp_path / f"{name}.nii.gz", block(), AFFINE)
    record_volumes(tmp_path / "a_dseg.nii.gz", block(), 2 * AFFINE)
    rows = table(tmp_path)
    assert [(row["scan"], row["labels"], row["thalamus (ml)"]) for row in rows] == [
        ("a", "dseg", "14.400"),
        ("a", "atlas-dseg", "1.800"),
        ("b", "dseg", "1.800"),
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["volumes.csv"]


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("id,volume\n1,2\n", "id, volume"),
        ("", "none"),
        (",".join([*COLUMNS, "age"]) + "\n", ".*, at_edge, age"),  # it would be lost
    ],
    ids=["other columns", "empty", "a column more"],
)
def test_another_program_s_table_is_kept(tmp_path, text, columns):
    (tmp_path / "volumes.csv").write_text(text)
    with pytest.raises(UserError, match=rf"volumes.csv: found the columns {columns}, .*; move the file away$"):
        record_volumes(tmp_path / "a_dseg.nii.gz", block(), AFFINE)
    assert (tmp_path / "volumes.csv").read_text() == text


def test_two_processes_lose_no_row_of_each_other(tmp_path):
    program = (
        "import sys, numpy as np\nfrom fedsr_monai.labels.volumes import record_volumes\n"
        "for number in range(30):\n"
        "    record_volumes(f'{sys.argv[1]}/{sys.argv[2]}{number}_dseg.nii.gz', np.ones((2, 2, 2)), np.eye(4))\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path), name]) for name in "ab"]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert {row["scan"] for row in table(tmp_path)} == {f"{name}{number}" for name in "ab" for number in range(30)}
