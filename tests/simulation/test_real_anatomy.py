from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

from fedsr_monai.atlas.templates import ACCUMBENS
from fedsr_monai.errors import UserError
from fedsr_monai.simulation.protocols import PROTOCOLS
from fedsr_monai.simulation.real_anatomy import EXTENT, LANDMARKS, deal, list_anatomies, read_anatomy
from fedsr_monai.simulation.sites import simulate_sites
from fedsr_monai.sites.check import check_site
from fedsr_monai.spatial.nifti import read_volume

CENTRES = {pair: np.array(centre) for pair, centre in LANDMARKS.items()} | {
    (4, 43): np.array((14.0, -15.0, 14.0)),
    (26, 58): np.array((9.0, 12.0, -7.0)),
    (7, 46): np.array((21.0, -54.0, -38.0)),
}
RADII = {8: (24, 24, 20), 7: (8, 10, 10), 4: (8, 20, 9), 26: (6, 6, 6)}


def made_up_brain(stretch: float = 1.0, turn: float = 0.0) -> nib.Nifti1Image:
    """Ellipsoids with FreeSurfer's ids, in the orientation of FreeSurfer's files, 3 mm: a brain larger than the atlas' and turned about the x axis."""
    shape = (64, 64, 72)
    affine = np.array([[-3.0, 0, 0, 95], [0, 0, 3, -120], [0, -3, 0, 105], [0, 0, 0, 1]])
    points = np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
    cos, sin = np.cos(turn), np.sin(turn)
    points = points @ np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]).T / stretch
    ids = np.zeros(shape, np.uint8)

    def paint(value: int, centre: np.ndarray, radii: tuple[float, ...]) -> None:
        ids[(((points - centre) / radii) ** 2).sum(-1) < 1] = value

    brain = np.array((0.0, -16.5, 10.0))
    paint(24, brain, (74, 92, 72))
    paint(42, brain, (69, 86, 68))
    paint(41, brain, (62, 78, 60))
    left = points[..., 0] < 0
    ids[left & (ids == 42)], ids[left & (ids == 41)] = 3, 2
    ids[(np.abs(points[..., 0]) < 2) & (points[..., 2] > 50) & (ids > 0)] = 24  # the gap between the hemispheres
    for pair in sorted(CENTRES, key=lambda pair: pair not in ((8, 47), (4, 43))):  # large ones first
        if pair == (3, 42):
            continue
        for side, value in zip((-1, 1), pair):
            paint(value, CENTRES[pair] * (side, 1, 1), RADII.get(pair[0], (9, 9, 9)))
    paint(16, np.array((0.0, -30.0, -36.0)), (10, 9, 26))
    paint(14, np.array((0.0, -8.0, 2.0)), (4, 12, 8))
    ids[tuple(np.argwhere(ids == 10)[20])] = 0  # a hole without a label
    return nib.Nifti1Image(ids, affine)


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    folder = tmp_path_factory.mktemp("people")
    for number in range(6):
        nib.save(made_up_brain(1.0 + 0.02 * number, 0.05 * number), folder / f"person-{number + 1}_aseg.nii.gz")
    return folder


def centres(anatomy, region: int) -> np.ndarray:
    places = np.argwhere(anatomy.label == region) @ anatomy.affine[:3, :3].T + anatomy.affine[:3, 3]
    return places[places[:, 0] > 0].mean(0)


def test_people_of_other_size_and_pose_are_brought_to_the_atlas(people):
    for number in (1, 6):
        anatomy = read_anatomy(str(people / f"person-{number}_aseg.nii.gz"))
        points = np.argwhere(np.isin(anatomy.label, (2, 3, 5, 13))) @ anatomy.affine[:3, :3].T + anatomy.affine[:3, 3]
        assert np.allclose(np.percentile(points, (1, 99), axis=0).T, EXTENT, atol=2.5)
        for region, pair in ((6, (10, 49)), (13, (8, 47))):
            assert np.linalg.norm(centres(anatomy, region) - LANDMARKS[pair]) < 9
        assert np.linalg.det(anatomy.affine[:3, :3]) > 0  # left is left


def test_the_hole_is_filled_the_gap_is_fluid_and_the_accumbens_is_no_structure(people):
    path = people / "person-1_aseg.nii.gz"
    anatomy = read_anatomy(str(path))
    assert (anatomy.label == ACCUMBENS).any() and not anatomy.label[~anatomy.mask].any()
    assert (anatomy.label == 6).sum() == np.isin(read_volume(path).voxels, (10, 49)).sum() + 1
    assert ((anatomy.label == 0) & anatomy.mask).sum() > 50


def test_the_other_protocol_differs_where_it_says(people):
    anatomy = read_anatomy(str(people / "person-1_aseg.nii.gz"))
    assert anatomy.structures is anatomy.label
    other = PROTOCOLS["neuromorphometrics-like"](anatomy.label, anatomy.mask, (1, 1, 1))  # as if its voxels were 1 mm
    changed = anatomy.label != other
    assert set(anatomy.label[changed]) == {0, 8, 12} and set(other[changed & (anatomy.label == 0)]) == {3}
    kept = {k: (other == k).sum() / (anatomy.label == k).sum() for k in (8, 12)}
    assert kept[8] == pytest.approx(0.8, abs=0.06) and kept[12] == pytest.approx(0.58, abs=0.06)


def test_a_map_of_something_else_is_named(people, tmp_path):
    volume = made_up_brain()
    ids = np.asarray(volume.dataobj).copy()
    ids[ids == 49] = 0
    nib.save(nib.Nifti1Image(ids, volume.affine), tmp_path / "x_aseg.nii.gz")
    with pytest.raises(UserError, match="x_aseg.nii.gz: found no voxel of 49, expected the ids of FreeSurfer's aseg"):
        read_anatomy(str(tmp_path / "x_aseg.nii.gz"))
    for odd in (1.5, 1e30):
        voxels = np.asarray(volume.dataobj).astype(np.float32)
        voxels[0, 0, 0] = odd
        nib.save(nib.Nifti1Image(voxels, volume.affine), tmp_path / "odd_aseg.nii.gz")
        with pytest.raises(UserError, match="odd_aseg.nii.gz: found the label .*, expected whole numbers from 0 to"):
            read_anatomy(str(tmp_path / "odd_aseg.nii.gz"))


def test_semi_real_sites_are_sound_the_same_again_and_of_different_people(people, tmp_path):
    settings = {
        "sites": 2, "training": 1, "validation": 0, "test": 1, "spacing": 6.0, "shape": (32, 32, 32), "seed": 3, "anatomies": people,
        "test_anatomies": "5-6", "protocols": ["freesurfer", "neuromorphometrics-like"],
    }  # fmt: skip
    folders = simulate_sites(tmp_path / "a", processes=1, **settings)
    assert [check_site(folder) for folder in folders] == [[], []]
    file = folders[1] / "images/training-001.nii.gz"
    content = file.read_bytes()
    file.unlink()
    simulate_sites(tmp_path / "a", processes=1, **settings)  # a file that is missing is made again
    assert file.read_bytes() == content
    records = [json.loads((folder / "simulation.json").read_text()) for folder in folders]
    used = [file for record in records for members in record["anatomies"].values() for file in members]
    assert len(set(used)) == 6 and [record["protocol"] for record in records] == settings["protocols"]
    assert {record["anatomies"]["test"][0][7] for record in records} == {"5", "6"}
    amygdala = [(read_volume(folder / "atlas/label.nii.gz").voxels == 12).sum() for folder in folders]
    assert amygdala[1] < 0.8 * amygdala[0]


def test_nobody_is_in_two_sections_and_people_return_only_when_they_are_too_few():
    files, tests = [f"p{i}" for i in range(10)], ["t0", "t1", "t2"]
    counts = {site: {"training": 2, "validation": 1, "test": 2} for site in ("a", "b")}
    dealt = deal(files, tests, counts, seed=0)
    by_section = {
        s: [f for site in dealt.values() for f in site[s]] for s in ("atlas", "training", "validation", "test")
    }
    assert all(len(set(by_section[s])) == len(by_section[s]) for s in ("atlas", "training", "validation"))
    assert not set(by_section["training"]) & set(by_section["validation"] + by_section["atlas"] + by_section["test"])
    assert set(by_section["test"]) == set(tests)
    assert all(len(set(site["test"])) == 2 for site in dealt.values())  # who returns is at the other site
    with pytest.raises(UserError, match="3 label maps for training and 3 for testing, expected at least 4 and 1"):
        deal(files[:3], tests, counts, seed=0)


@pytest.mark.parametrize("test, expected", [("5-6", ["5", "6"]), ("1,3-4", ["1", "3", "4"]), (None, ["5", "6"])])
def test_the_people_for_testing_are_chosen_by_number(people, test, expected):
    training, testing = list_anatomies(people, test)
    assert [file[-13] for file in testing] == expected and len(training) + len(testing) == 6


@pytest.mark.parametrize("test", ["0", "5-9", "x", "4-", ""])
def test_a_wrong_choice_of_people_is_named(people, test):
    with pytest.raises(UserError, match="test_anatomies: found '"):
        list_anatomies(people, test)


def test_options_of_real_anatomies_need_them(tmp_path):
    with pytest.raises(
        UserError, match="protocols: found 'freesurfer', expected one of neuromorphometrics, freesurfer-like"
    ):
        simulate_sites(tmp_path, protocols=["freesurfer"], processes=1)
    with pytest.raises(UserError, match=r"found no \*_aseg.nii.gz"):
        simulate_sites(tmp_path, anatomies=tmp_path, processes=1)
