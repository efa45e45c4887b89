from __future__ import annotations

import csv
import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from scipy.spatial.transform import Rotation

from fedsr_monai.atlas.standard import standard_grid
from fedsr_monai.bundle_path import bundle_path
from fedsr_monai.errors import UserError
from fedsr_monai.inference.segment import segment
from fedsr_monai.networks import FedSRNet
from fedsr_monai.spatial.grid import Grid
from fedsr_monai.spatial.resampling import resample_image, resample_labels, sample, voxel_map

GRID = standard_grid(6.0, (32, 32, 32))
FOLDER = {"labels.ctbl", "labels_lut.txt", "volumes.csv"}  # what a folder of results has once


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
def weights(tmp_path) -> Path:
    torch.manual_seed(0)
    torch.save(FedSRNet().state_dict(), tmp_path / "model.pt")
    return tmp_path / "model.pt"


@pytest.fixture
def knows_the_phantom(monkeypatch, phantom):
    """A network that answers with the labels of the phantom, whatever it is shown."""
    logits = 8 * torch.nn.functional.one_hot(phantom[1].long(), 14).movedim(-1, 1).float()
    monkeypatch.setattr(FedSRNet, "forward", lambda self, image: logits)


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
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"sub-1_T1w_dseg.nii.gz", "sub-1_T1w_dseg.tsv"} | FOLDER
    with open(tmp_path / "out" / "volumes.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    voxels = (np.asarray(result.dataobj) == 6).sum()
    assert float(row["thalamus (ml)"]) == pytest.approx(voxels * abs(np.linalg.det(grid.affine[:3, :3])) / 1000, abs=6e-4)


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
    monkeypatch.setattr(FedSRNet, "register", lambda self, image: (shift, None))
    path = scan()
    segment([path], tmp_path / "out", weights=weights, site=site_folder(), register=True)
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
    segment([scan()], tmp_path / "out", weights=weights, register=True)
    atlas = nib.load(tmp_path / "out" / "atlas" / "label.nii.gz")
    assert atlas.shape == (80, 96, 80) and len(np.unique(atlas.dataobj)) == 14
    assert np.array_equal(atlas.affine, standard_grid(2.0, (80, 96, 80)).affine)
    # A network that has learnt nothing moves nothing: its labels are the atlas' where it lies.
    labels = np.asarray(nib.load(tmp_path / "out" / "scan_atlas-dseg.nii.gz").dataobj)
    volume = torch.from_numpy(np.asarray(atlas.dataobj))[None].float()
    expected = resample_labels(volume, voxel_map(atlas.affine, OBLIQUE.affine), OBLIQUE.shape)[0].numpy()
    assert np.mean(dice(labels, expected)) > 0.85  # at 4 mm from 2 mm, with and without a low-pass
    # Weights that were trained with this atlas belong to this grid, and need no site.
    image = torch.from_numpy(nib.load(tmp_path / "out" / "atlas" / "image.nii.gz").get_fdata(dtype=np.float32))[None]
    torch.save(FedSRNet().set_atlas(image, volume.to(torch.uint8)).state_dict(), tmp_path / "trained.pt")
    assert segment([scan()], tmp_path / "again", weights=tmp_path / "trained.pt")[0].is_file()


def test_results_are_replaced_whole(scan, weights, site_folder, knows_the_phantom, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "scan_dseg.nii.gz").write_text("old")
    (written,) = segment([scan()], tmp_path / "out", weights=weights, site=site_folder())
    assert nib.load(written).shape == OBLIQUE.shape
    assert not [path for path in (tmp_path / "out").iterdir() if "partial" in path.name]


def cut(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-2000])
    return path


def text(path: Path) -> Path:
    path.write_bytes(gzip.compress(b"hello"))
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda scan, tmp: tmp / "none.nii.gz", "none.nii.gz: no such file, expected a NIfTI scan; check the path"),
        (
            lambda scan, tmp: scan().rename(tmp / "s.mgz"),
            "s.mgz: is no .nii or .nii.gz, expected a NIfTI scan; convert it, for example",
        ),
        (
            lambda scan, tmp: text(tmp / "s.nii.gz"),
            "s.nii.gz: is not NIfTI, expected a NIfTI-1 or -2 volume: convert it, for example",
        ),
        (lambda scan, tmp: cut(scan()), "scan.nii.gz: broken gzip stream (Compressed file ended before"),
        (lambda scan, tmp: cut(scan("s.nii")), "s.nii: damaged NIfTI ("),
        (
            lambda scan, tmp: scan(change=lambda v: np.stack([v, v], -1)),
            "scan.nii.gz: has the shape (50, 42, 56, 2), expected one 3-D volume",
        ),
        (
            lambda scan, tmp: scan(change=lambda v: np.where(v > 800, np.nan, v)),
            "voxels are NaN or infinite, expected numbers; mend",
        ),
        (
            lambda scan, tmp: scan(change=lambda v: v * 0),
            "scan.nii.gz: is constant (all 0), expected a scan; export it again",
        ),
        (
            lambda scan, tmp: scan(change=lambda v: v + 10),
            "litres are not 0, expected a skull-stripped brain (0.4 to 2.6 litres)",
        ),
    ],
    ids=["missing", "suffix", "text", "cut", "cut plain", "4-D", "nan", "constant", "background"],
)
def test_what_cannot_be_segmented_is_named_and_nothing_written(scan, weights, site_folder, tmp_path, make, message):
    path = make(scan, tmp_path)
    with pytest.raises(UserError) as caught:
        segment([path], tmp_path / "out", weights=weights, site=site_folder())
    assert message in str(caught.value) and str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    assert not list(tmp_path.glob("out/*.nii.gz"))


def test_a_scan_elsewhere_is_told_so(scan, weights, site_folder, tmp_path):
    path = scan()
    image = nib.load(path)
    far = image.affine + np.array([[0, 0, 0, 150.0], *3 * [[0, 0, 0, 0]]])
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), far), tmp_path / "far.nii.gz")
    with pytest.raises(
        UserError, match=r"far.nii.gz: \d+ % of the brain lies in the atlas' box, expected 80 % or more; align the scan"
    ):
        segment([tmp_path / "far.nii.gz"], tmp_path / "out", weights=weights, site=site_folder())


def test_a_refused_scan_does_not_stop_the_others(scan, weights, site_folder, knows_the_phantom, tmp_path):
    paths = [scan("a.nii.gz", change=lambda v: v * 0), scan("b.nii.gz"), cut(scan("c.nii.gz"))]
    with pytest.raises(UserError) as caught:
        segment(paths, tmp_path / "out", weights=weights, site=site_folder())
    assert [line.split(": ")[0] for line in str(caught.value).splitlines()] == [str(paths[0]), str(paths[2])]
    assert [path.name for path in sorted((tmp_path / "out").glob("*.nii.gz"))] == ["b_dseg.nii.gz"]


def test_mistakes_that_are_found_before_any_work(scan, weights, site_folder, phantom, tmp_path):
    path, site = scan(), site_folder()
    with pytest.raises(UserError, match=r"^scans: found none, expected at least one NIfTI file; name them$"):
        segment([], tmp_path / "out", weights=weights, site=site)
    twin = scan("other/scan.nii")
    with pytest.raises(
        UserError,
        match=rf"^{twin}: would overwrite the result of {path}, expected scans of different names; rename one",
    ):
        segment([path, twin], tmp_path / "out", weights=weights, site=site)
    with pytest.raises(UserError, match=r"^/nowhere/model.pt: not found, expected the weights of a network"):
        segment([path], tmp_path / "out", weights="/nowhere/model.pt", site=site)
    with pytest.raises(UserError, match=r"^/nowhere: no such folder, expected a site folder"):
        segment([path], tmp_path / "out", weights=weights, site="/nowhere")
    with pytest.raises(
        UserError, match=r"^device: found 'gpu' and .*, expected cpu, cuda or cuda:N; correct it or leave it out$"
    ):
        segment([path], tmp_path / "out", weights=weights, site=site, device="gpu")
    for steps, register in ((-1, True), (1.5, True), (5, False)):
        with pytest.raises(
            UserError,
            match=rf"^refine: found {steps}, expected a whole number of steps, and register with it; correct it$",
        ):
            segment([path], tmp_path / "out", weights=weights, site=site, refine=steps, register=register)
    torch.save(FedSRNet().set_atlas(*phantom).state_dict(), tmp_path / "own.pt")
    with pytest.raises(
        UserError,
        match=r"own.pt: found the weights of one site, with its atlas, expected its grid .*; name its folder with --site$",
    ):
        segment([path], tmp_path / "out", weights=tmp_path / "own.pt")
    with pytest.raises(
        UserError, match=rf"^{path}: cannot be made \(File exists\), expected a folder; choose another one for --out$"
    ):
        segment([path], path, weights=weights, site=site)
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "volumes.csv").write_text("mine\n")
    with pytest.raises(UserError, match=r"out/volumes.csv: found the columns mine, expected scan, labels, .* move the file away$"):
        segment([path], tmp_path / "out", weights=weights, site=site)
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["volumes.csv"]
