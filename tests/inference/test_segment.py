from __future__ import annotations

import builtins
import csv
import functools
import gzip
import io
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from scipy.spatial.transform import Rotation

from fedsr_monai.atlas.standard import standard_atlas, standard_grid
from fedsr_monai.bundle_path import bundle_path
from fedsr_monai.errors import UserError, UserErrors
from fedsr_monai.inference.scans import list_folder
from fedsr_monai.inference.segment import segment as segment_and_judge
from fedsr_monai.networks import FedSRNet, Prediction
from fedsr_monai.spatial.grid import Grid
from fedsr_monai.spatial.resampling import resample_image, resample_labels, sample, voxel_map

GRID = standard_grid(6.0, (32, 32, 32))
segment = functools.partial(segment_and_judge, quality=False)  # these networks have learnt nothing
FOLDER = {"labels.ctbl", "labels_lut.txt", "volumes.csv", "fedsr-segment.json"}  # what a folder of results has once


def oblique(spacing=(4.0, 5.0, 3.5), shape=(50, 42, 56)) -> Grid:
    """A grid over the same brain with permuted, flipped and turned axes."""
    affine = np.eye(4)
    affine[:3, :3] = (
        Rotation.from_euler("xyz", (6, -9, 12), degrees=True).as_matrix()
        @ (np.eye(3)[:, [2, 0, 1]] * (-1, 1, -1))
        * spacing
    )
    affine[:3, 3] = (GRID.affine @ [15.5, 15.5, 15.5, 1])[:3] - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Grid(affine, shape)


OBLIQUE = oblique()


@pytest.fixture
def scan(tmp_path, phantom):
    """Write the phantom, resampled to a grid, as a scan."""

    def write(name: str = "scan.nii.gz", grid: Grid = OBLIQUE, change=lambda volume: volume, codes=(1, 1)) -> Path:
        volume = resample_image(phantom[0], voxel_map(GRID.affine, grid.affine), grid.shape)[0].numpy()
        volume[volume < 0.05] = 0
        image = nib.Nifti1Image(change((1000 * volume).astype(np.int16)), grid.affine)
        image.set_qform(grid.affine, codes[0])
        image.set_sform(grid.affine, codes[1])
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        nib.save(image, path)
        return path

    return write


@pytest.fixture
def knows_the_phantom(monkeypatch, phantom):
    """A network that answers with the labels of the phantom, whatever it is shown."""
    logits = 8 * torch.nn.functional.one_hot(phantom[1].long(), 14).movedim(-1, 1).float()
    monkeypatch.setattr(FedSRNet, "forward", lambda self, image: logits)
    # It does not look at the scan, and so cannot tell the grids of a fine scan apart.
    monkeypatch.setattr("fedsr_monai.transforms.resample_to_grid.FINE", 0)


def dice(a: np.ndarray, b: np.ndarray) -> list[float]:
    return [2 * ((a == k) & (b == k)).sum() / ((a == k).sum() + (b == k).sum()) for k in range(1, 14)]


@pytest.mark.parametrize(
    ("grid", "least"),
    [
        (OBLIQUE, 0.97),
        (oblique((1.5, 1.5, 1.5), (120, 130, 110)), 0.97),
        (oblique((3.0, 3.0, 9.0), (64, 64, 24)), 0.97),
    ],
    ids=["oblique", "fine", "thick slices"],
)
def test_labels_on_the_scan_s_own_grid(scan, weights, site_folder, knows_the_phantom, phantom, tmp_path, grid, least):
    path = scan("sub-1_T1w.nii", grid, codes=(1, 3))
    (written,) = segment([path], tmp_path / "out", weights=weights, site=site_folder())
    assert written == tmp_path / "out" / "sub-1_T1w_dseg.nii.gz"
    result, source = nib.load(written), nib.load(path)
    assert result.shape == source.shape and result.get_data_dtype() == np.uint8
    assert np.array_equal(result.affine, source.affine)
    assert (int(result.header["qform_code"]), int(result.header["sform_code"])) == (1, 3)
    expected = sample(
        torch.nn.functional.one_hot(phantom[1][0].long(), 14).movedim(-1, 0).float(),
        voxel_map(GRID.affine, grid.affine),
        grid.shape,
    ).argmax(dim=0)
    assert min(dice(np.asarray(result.dataobj), expected.numpy())) > least
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "sub-1_T1w_dseg.nii.gz",
        "sub-1_T1w_dseg.tsv",
    } | FOLDER
    with open(tmp_path / "out" / "volumes.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    voxels = (np.asarray(result.dataobj) == 6).sum()
    assert float(row["thalamus (ml)"]) == pytest.approx(
        voxels * abs(np.linalg.det(grid.affine[:3, :3])) / 1000, abs=6e-4
    )


def test_it_is_the_bundle_s_inference(scan, weights, site_folder, tmp_path):
    path, site = scan(), site_folder()
    (written,) = segment([path], tmp_path / "out", weights=weights, site=site, progress=False)
    root = bundle_path("fedsr_site")
    workflow = ConfigWorkflow(
        config_file=str(root / "configs" / "inference.json"), logging_file=False, workflow_type="infer", run_id="inference",
        bundle_root=str(root), dataset_dir=str(site), ckpt_path=str(weights), output_dir=str(tmp_path / "bundle"),
        device="$torch.device('cpu')", **{"dataset#data": [{"image": str(path)}]},
    )  # fmt: skip
    workflow.initialize()
    workflow.run()
    assert written.read_bytes() == (tmp_path / "bundle" / written.name).read_bytes()
    assert len(np.unique(nib.load(written).dataobj)) > 3


def test_one_volume_in_four_dimensions_is_a_scan(scan, weights, site_folder, knows_the_phantom, tmp_path):
    plain, wrapped = scan("plain.nii.gz"), scan("wrapped.nii.gz", change=lambda volume: volume[..., None])
    site = site_folder()
    try:
        written = segment([plain, wrapped], tmp_path / "out", weights=weights, site=site)
    except UserError as error:
        pytest.fail(str(error))
    first, second = (nib.load(path) for path in written)
    assert second.shape == first.shape and np.array_equal(first.dataobj, second.dataobj)


def test_registration_carries_the_atlas_labels_over(scan, weights, site_folder, monkeypatch, phantom, tmp_path):
    shift = torch.zeros(1, 3, 32, 32, 32)
    shift[:, 1] = 2  # the scan's tissue lies two voxels (12 mm) further back than the atlas'
    prediction = Prediction(torch.zeros(1, 14, 32, 32, 32), shift)
    monkeypatch.setattr(FedSRNet, "predict", lambda self, image: prediction)
    path = scan()
    segment([path], tmp_path / "out", weights=weights, site=site_folder(), register=True, refine=0)
    labels = nib.load(tmp_path / "out" / "scan_atlas-dseg.nii.gz")
    moved = OBLIQUE.affine.copy()
    moved[1, 3] += 12
    expected = resample_labels(phantom[1].float(), voxel_map(GRID.affine, moved), OBLIQUE.shape)[0].numpy()
    assert np.array_equal(labels.affine, nib.load(path).affine) and labels.get_data_dtype() == np.uint8
    assert min(dice(np.asarray(labels.dataobj), expected)) > 0.97
    warp = nib.load(tmp_path / "out" / "scan_warp.nii.gz")
    assert warp.shape == (*OBLIQUE.shape, 1, 3)
    np.testing.assert_allclose(
        np.asarray(warp.dataobj).reshape(-1, 3), np.tile([0, -12, 0], (np.prod(OBLIQUE.shape), 1)), atol=1e-3
    )
    names = {"scan_dseg.nii.gz", "scan_dseg.tsv", "scan_atlas-dseg.nii.gz", "scan_atlas-dseg.tsv", "scan_warp.nii.gz"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names | FOLDER  # the atlas is the site's
    with open(tmp_path / "out" / "volumes.csv", newline="") as file:
        assert [row["labels"] for row in csv.DictReader(file)] == ["dseg", "atlas-dseg"]


def test_refined_steps_change_the_deformation(scan, weights, site_folder, tmp_path):
    path, site = scan(change=lambda volume: np.roll(volume, 3, axis=0)), site_folder()
    for name, steps in (("plain", 0), ("refined", 2)):
        segment([path], tmp_path / name, weights=weights, site=site, register=True, refine=steps)
    plain, refined = (
        np.abs(nib.load(tmp_path / name / "scan_warp.nii.gz").dataobj).max() for name in ("plain", "refined")
    )
    assert plain < 0.1 < refined  # millimetres; the network has learnt nothing


def test_registration_without_a_site_builds_the_atlas_and_keeps_it(scan, weights, tmp_path):
    segment([scan()], tmp_path / "out", weights=weights, register=True, refine=0)
    atlas = nib.load(tmp_path / "out" / "atlas" / "label.nii.gz")
    assert len(np.unique(atlas.dataobj)) == 14
    assert np.array_equal(np.abs(np.diag(atlas.affine)), [1, 1, 1, 1])  # its own resolution, finer than the network's
    # A network that has learnt nothing moves nothing: its labels are the atlas' where it lies.
    labels = np.asarray(nib.load(tmp_path / "out" / "scan_atlas-dseg.nii.gz").dataobj)
    fractions = torch.nn.functional.one_hot(torch.from_numpy(np.asarray(atlas.dataobj)).long(), 14).movedim(-1, 0)
    expected = sample(fractions.float(), voxel_map(atlas.affine, OBLIQUE.affine), OBLIQUE.shape).argmax(dim=0)
    assert np.mean(dice(labels, expected.numpy())) > 0.97
    # Weights that were trained with the project's atlas belong to this grid, and need no site.
    trained = FedSRNet().set_atlas(*standard_atlas(2.0, (80, 96, 80)))
    torch.save(trained.state_dict(), tmp_path / "trained.pt")
    assert segment([scan()], tmp_path / "again", weights=tmp_path / "trained.pt")[0].is_file()


def test_results_are_replaced_whole(scan, weights, site_folder, knows_the_phantom, tmp_path):
    path, site = scan(), site_folder()
    (first,) = segment([path], tmp_path / "out", weights=weights, site=site)
    before = first.stat().st_ino
    (written,) = segment([path], tmp_path / "out", weights=weights, site=site)
    assert nib.load(written).shape == OBLIQUE.shape and written.stat().st_ino != before
    assert not [path for path in (tmp_path / "out").iterdir() if "partial" in path.name]


def cut(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-2000])
    return path


def text(path: Path) -> Path:
    path.write_bytes(gzip.compress(b"hello"))
    return path


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda scan, tmp: tmp / "none.nii.gz", "no such file"),
        (lambda scan, tmp: scan().rename(tmp / "s.img"), "type .img.*nii.gz"),
        (lambda scan, tmp: text(tmp / "s.nii.gz"), "NIfTI.*convert it"),
        (lambda scan, tmp: cut(scan()), "broken gzip stream"),
        (lambda scan, tmp: cut(scan("s.nii")), "a file that ends after"),
        (lambda scan, tmp: scan(change=lambda v: np.stack([v, v], -1)), r"\(50, 42, 56, 2\).*3-D"),
        (lambda scan, tmp: scan(change=lambda v: np.where(v > 800, np.nan, v)), "NaN or infinite"),
        (lambda scan, tmp: scan(change=lambda v: v * 0), "constant"),
        (lambda scan, tmp: scan(change=lambda v: v + 10), "skull-stripped brain"),
    ],
    ids=["missing", "suffix", "text", "cut", "cut plain", "4-D", "nan", "constant", "background"],
)
def test_what_cannot_be_segmented_is_named_and_nothing_written(scan, weights, site_folder, tmp_path, make, words):
    path = make(scan, tmp_path)
    with pytest.raises(UserErrors, match=words) as caught:
        segment([path], tmp_path / "out", weights=weights, site=site_folder())
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    assert not list(tmp_path.glob("out/*.nii.gz"))


def test_a_scan_elsewhere_is_told_so(scan, weights, site_folder, tmp_path):
    path = scan()
    image = nib.load(path)
    far = image.affine + np.array([[0, 0, 0, 150.0], *3 * [[0, 0, 0, 0]]])
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), far), tmp_path / "far.nii.gz")
    with pytest.raises(
        UserErrors, match=r"far.nii.gz: .*\d+ % of the brain .*80 % or more; align the scan to the atlas"
    ):
        segment([tmp_path / "far.nii.gz"], tmp_path / "out", weights=weights, site=site_folder())


def test_a_refused_scan_does_not_stop_the_others(scan, weights, site_folder, knows_the_phantom, tmp_path, capsys):
    dangling = tmp_path / "dangling.nii.gz"
    dangling.symlink_to(tmp_path / "never downloaded")
    paths = [scan("a.nii.gz", change=lambda v: v * 0), dangling, scan("b.nii.gz"), cut(scan("c.nii.gz"))]
    paths += [scan("d.nii.gz", change=lambda v: np.stack([v, v], -1)), scan("e.nii.gz")]
    with pytest.raises(UserErrors) as caught:
        segment(paths, tmp_path / "out", weights=weights, site=site_folder())
    refused = {str(paths[n]) for n in (0, 1, 3, 4)}
    assert {str(error).split(": ")[0] for error in caught.value.errors} == refused
    assert {line.split(": ")[1] for line in capsys.readouterr().err.splitlines()} >= refused  # while it ran
    assert [path.name for path in sorted((tmp_path / "out").glob("*.nii.gz"))] == ["b_dseg.nii.gz", "e_dseg.nii.gz"]


def test_an_error_of_a_library_costs_one_scan(scan, weights, site_folder, monkeypatch, tmp_path):
    paths, seen = [scan("a.nii.gz"), scan("b.nii.gz")], []

    def forward(self, image):
        seen.append(image)
        if len(seen) == 1:
            raise RuntimeError("itk::ERROR: singular\nmatrix")
        return torch.zeros(1, 14, 32, 32, 32)

    monkeypatch.setattr(FedSRNet, "forward", forward)
    with pytest.raises(UserErrors, match=r"a.nii.gz: found RuntimeError: itk::ERROR: singular matrix, expected .*"):
        segment(paths, tmp_path / "out", weights=weights, site=site_folder())
    assert (tmp_path / "out" / "b_dseg.nii.gz").is_file()


def test_freesurfer_volumes_are_scans(scan, weights, site_folder, tmp_path):
    path, site = scan(), site_folder()
    image = nib.load(path)
    nib.save(nib.MGHImage(np.asarray(image.dataobj, np.float32), image.affine), tmp_path / "brain.mgz")
    first, second = segment([path, tmp_path / "brain.mgz"], tmp_path / "out", weights=weights, site=site)
    assert second == tmp_path / "out" / "brain_dseg.nii.gz"
    same = np.asarray(nib.load(first).dataobj) == np.asarray(nib.load(second).dataobj)
    assert same.mean() > 0.98  # .mgz keeps its affine in float32, and this network knows no label from another


def test_weights_and_scan_are_read_once(scan, weights, site_folder, monkeypatch, tmp_path):
    path, site, opened = scan(), site_folder(), []
    original = open

    def spy(file, *arguments, **options):
        opened.append(str(file))
        return original(file, *arguments, **options)

    monkeypatch.setattr(builtins, "open", spy)  # nibabel, gzip and torch
    monkeypatch.setattr(io, "open", spy)  # pathlib
    segment([path], tmp_path / "out", weights=weights, site=site)
    assert (
        opened.count(str(path)) <= 3 and opened.count(str(weights)) == 2
    )  # once each is for the checksum in the record


def test_mistakes_that_are_found_before_any_work(scan, weights, site_folder, phantom, tmp_path):
    path, site = scan(), site_folder()
    own = tmp_path / "own.pt"
    torch.save(FedSRNet().set_atlas(*phantom).state_dict(), own)
    good = {"scans": [path], "out": tmp_path / "out", "weights": weights, "site": site}
    for wrong, words in (
        ({"scans": []}, "^scans: found none"),
        ({"scans": [tmp_path / "no.nii"]}, "^.*no.nii: found no such file"),
        ({"weights": "/nowhere/model.pt"}, "^/nowhere/model.pt: .*weights of a network"),
        ({"site": "/nowhere"}, "^/nowhere: .*no such folder"),
        ({"device": "gpu"}, "^device: found 'gpu'"),
        ({"refine": -1, "register": True}, "^refine: found -1, expected a whole number"),
        ({"refine": 1.5, "register": True}, "^refine: found 1.5, expected a whole number"),
        ({"refine": 5}, "^refine: found 5 without register"),
        ({"masks": [path]}, "^--masks: found masks without --raw"),
        ({"masks": [path, path], "raw": True}, "^--masks: found 2 masks for 1 scans"),
        ({"weights": own, "site": None}, "own.pt: found the weights of one site.*--site$"),
        ({"out": path}, rf"^{path}: found that it cannot be made \(File exists\)"),
    ):
        with pytest.raises(UserError, match=words):
            segment(**good | wrong)
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "volumes.csv").write_text("mine\n")
    with pytest.raises(UserError, match="out/volumes.csv: .*columns mine"):
        segment(**good)
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["volumes.csv"]


def test_scans_of_one_name_do_not_replace_each_other(scan, weights, site_folder, tmp_path):
    path, twin = scan(), scan("other/scan.nii")
    with pytest.raises(UserErrors, match=rf"^{twin}: found the name of {path}"):
        segment([path, twin], tmp_path / "out", weights=weights, site=site_folder())
    assert (tmp_path / "out" / "scan_dseg.nii.gz").is_file()


@pytest.mark.parametrize("suffix", [".nii.gz", ".mgz"])
def test_a_label_map_without_its_scan_is_not_labelled(tmp_path, capsys, suffix):
    (tmp_path / f"anna_aseg{suffix}").touch()
    with pytest.raises(UserError, match="found no scan"):
        list_folder(tmp_path)
    assert f"{tmp_path / 'anna_aseg'}{suffix}: left out (a mask or label map by its name" in capsys.readouterr().err
    for name in ("anna", "ben", "ben_mask"):
        (tmp_path / f"{name}{suffix}").touch()
    scans, refused = list_folder(tmp_path)
    assert [(path.name, mask and mask.name) for path, _, mask in scans] == [
        (f"anna{suffix}", None),
        (f"ben{suffix}", f"ben_mask{suffix}"),
    ]
    assert refused == [] and capsys.readouterr().err == ""
