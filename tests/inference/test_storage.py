"""One scan, stored in any way that NIfTI and FreeSurfer know, gives the same labels in space and the same field to ITK."""

from __future__ import annotations

from collections.abc import Callable

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from fedsr_monai.atlas.standard import standard_grid
from fedsr_monai.errors import UserError
from fedsr_monai.files import write_bytes
from fedsr_monai.inference.segment import segment
from fedsr_monai.networks import FedSRNet
from fedsr_monai.networks.fedsr_net import Prediction
from fedsr_monai.prepare.pipeline import Prepared
from fedsr_monai.prepare.quality import Quality
from fedsr_monai.prepare.site import prepare_site
from fedsr_monai.sites.site import load_site
from fedsr_monai.spatial.grid import Grid
from fedsr_monai.spatial.header import itk_affine
from fedsr_monai.spatial.nifti import read_volume
from fedsr_monai.spatial.resampling import resample_image, voxel_map
from tests.helpers.itk_warp import warped_by_itk

pytestmark = pytest.mark.slow

GRID = standard_grid(6.0, (32, 32, 32))
SHAPE = (50, 42, 56)


def oblique() -> Grid:
    affine = np.eye(4)
    turn = Rotation.from_euler("xyz", (6, -9, 12), degrees=True).as_matrix()
    affine[:3, :3] = turn @ (np.eye(3)[:, [2, 0, 1]] * (-1, 1, -1)) * (4.0, 5.0, 3.5)
    affine[:3, 3] = (GRID.affine @ [15.5, 15.5, 15.5, 1])[:3] - affine[:3, :3] @ ((np.array(SHAPE) - 1) / 2)
    return Grid(affine, SHAPE)


SCAN = oblique()
TURNED = SCAN.affine.copy()  # another form for the same voxels, centimetres off
TURNED[:3, :3] = Rotation.from_euler("x", 25, degrees=True).as_matrix() @ TURNED[:3, :3]
TURNED[:3, 3] += (12, -60, 15)


def image(voxels, sform=SCAN.affine, qform=SCAN.affine, codes=(1, 1), kind=nib.Nifti1Image, header=None):
    """Return an image with these forms; `codes` are those of qform and sform."""
    made = kind(voxels, None, header)
    made.header.set_qform(qform, 1)
    made.header.set_sform(sform, 1)
    made.header["qform_code"], made.header["sform_code"] = codes
    made.header.set_xyzt_units("mm")
    return kind(voxels, None, made.header)


def with_sizes(made, sizes):
    made.header["pixdim"][1:4] = sizes
    return made


def in_unit(voxels, unit: str, factor: float):
    small = np.diag([factor, factor, factor, 1.0]) @ SCAN.affine
    made = image(voxels, small, small)
    made.header.set_xyzt_units(unit)
    return made


def turned_axes(voxels, axes: str):
    made = nib.Nifti1Image(voxels, SCAN.affine)
    start = nib.orientations.io_orientation(SCAN.affine)
    made = made.as_reoriented(nib.orientations.ornt_transform(start, nib.orientations.axcodes2ornt(axes)))
    return image(np.asarray(made.dataobj), made.affine, made.affine)


def scaled(voxels):
    made = image((voxels + 40).astype(np.int16))
    made.header.set_slope_inter(0.25, -10)
    return made


WAYS: dict[str, Callable[[np.ndarray], nib.spatialimages.SpatialImage]] = {
    "plain.nii.gz": image,
    "ras.nii.gz": lambda voxels: turned_axes(voxels, "RAS"),
    "psl.nii.gz": lambda voxels: turned_axes(voxels, "PSL"),
    "sform_only.nii.gz": lambda voxels: image(voxels, qform=TURNED, codes=(0, 2)),
    "qform_only.nii.gz": lambda voxels: image(voxels, sform=TURNED, codes=(1, 0)),
    "two_forms.nii.gz": lambda voxels: image(voxels, qform=TURNED, codes=(1, 4)),
    "two_forms_scanner.nii.gz": lambda voxels: image(voxels, qform=TURNED, codes=(1, 1)),
    "rounded_sizes.nii.gz": lambda voxels: with_sizes(image(voxels, codes=(0, 2)), (4.001, 5.001, 3.501)),
    "rounded_sizes_two_forms.nii.gz": lambda voxels: with_sizes(
        image(voxels, qform=TURNED, codes=(1, 4)), (4.001, 5.001, 3.501)
    ),
    "nifti2.nii": lambda voxels: image(voxels, kind=nib.Nifti2Image),
    "big_endian.nii.gz": lambda voxels: image(voxels.astype(">i2"), header=nib.Nifti1Header(endianness=">")),
    "scaled.nii.gz": scaled,
    "float64.nii": lambda voxels: image(voxels.astype(np.float64)),
    "metre.nii.gz": lambda voxels: in_unit(voxels, "meter", 1e-3),
    "micrometre.nii.gz": lambda voxels: in_unit(voxels, "micron", 1e3),
    "four_axes.nii.gz": lambda voxels: image(voxels[..., None]),
    "five_axes.nii.gz": lambda voxels: image(voxels[..., None, None]),
    "freesurfer.mgz": lambda voxels: nib.MGHImage(voxels, SCAN.affine),
}


@pytest.fixture
def voxels(phantom) -> np.ndarray:
    volume = resample_image(phantom[0], voxel_map(GRID.affine, SCAN.affine), SHAPE)[0].numpy()
    return np.where(volume < 0.05, 0, 1000 * volume).astype(np.int16)


@pytest.fixture
def network(monkeypatch, phantom, tmp_path) -> list[np.ndarray]:
    """Make every network answer with the phantom, slightly moved; return the list of what networks were shown."""
    seen: list[np.ndarray] = []
    torch.save(FedSRNet().state_dict(), tmp_path / "model.pt")
    logits = 8 * torch.nn.functional.one_hot(phantom[1].long(), 14).movedim(-1, 1).float()
    wave = torch.sin(torch.linspace(0, 6, 32))
    ddf = 0.3 * torch.stack(torch.meshgrid(wave, wave, wave, indexing="ij"))[None]

    def predict(self, image, *arguments, **keywords):
        seen.append(image[0, 0].numpy())
        return Prediction(logits.clone(), ddf, self.atlas_image)  # a new one each time, as of a network

    monkeypatch.setattr(FedSRNet, "predict", predict)
    monkeypatch.setattr("fedsr_monai.transforms.resample_to_grid.FINE", 0)  # it answers the same to any image
    return seen


def as_plain(array: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Return an array on the scan's voxels with its axes in the order of the plain file."""
    start, end = (nib.orientations.io_orientation(matrix) for matrix in (affine, SCAN.affine))
    return nib.orientations.apply_orientation(array, nib.orientations.ornt_transform(start, end))


def test_a_scan_stored_in_many_ways_gives_the_same_labels_and_the_same_field(voxels, network, site_folder, tmp_path):
    paths = []
    for name, make in WAYS.items():
        nib.save(make(voxels), tmp_path / name)
        paths.append(tmp_path / name)
    site, out = site_folder(), tmp_path / "out"
    written = segment(paths, out, weights=tmp_path / "model.pt", site=site, register=True, progress=False)
    found = {}
    for path, labels in zip(paths, written, strict=True):
        scan, result = read_volume(path), read_volume(labels)
        stem = labels.name.removesuffix("_dseg.nii.gz")
        np.testing.assert_allclose(result.affine, scan.affine, atol=1e-4, err_msg=path.name)
        reference = labels if path.name in ("nifti2.nii", "freesurfer.mgz") else path  # ITK reads neither
        warped = warped_by_itk(site / "atlas" / "image.nii.gz", out / f"{stem}_warp.nii.gz", reference)
        carried = read_volume(out / f"{stem}_atlas-dseg.nii.gz")
        found[path.name] = [as_plain(array, scan.affine) for array in (result.voxels, carried.voxels, warped)]
    for name, shown, (labels, carried, warped) in zip(found, network, found.values(), strict=True):
        np.testing.assert_allclose(shown, network[0], atol=1e-3, err_msg=name)
        assert (labels != found["plain.nii.gz"][0]).mean() < 1e-4, name
        assert (carried != found["plain.nii.gz"][1]).mean() < 1e-4, name
        np.testing.assert_allclose(warped, found["plain.nii.gz"][2], atol=2e-3, err_msg=name)
    assert len(np.unique(found["plain.nii.gz"][0])) == 14 and found["plain.nii.gz"][2].max() > 0.5


@pytest.fixture
def aligned(monkeypatch) -> None:
    """A registration that finds the scan where it is, in no time, and draws no picture of it."""

    def prepare_scan(scan, mask, atlas, grid, name):
        fit = Quality(0.9, 0.8, (1.0, 1.0, 1.0), 0.0)
        return Prepared(scan.voxels, scan.voxels > 0, "given", Grid(scan.affine, scan.voxels.shape), np.eye(4), fit)

    for module in ("raw_scan", "site"):
        monkeypatch.setattr(f"fedsr_monai.prepare.{module}.prepare_scan", prepare_scan)
        monkeypatch.setattr(f"fedsr_monai.prepare.{module}.write_qc", lambda path, *_: write_bytes(path, b"picture"))


@pytest.mark.usefixtures("aligned")
def test_the_same_holds_for_raw_scans_in_segment_and_in_prepare(voxels, network, site_folder, tmp_path):
    (tmp_path / "raw").mkdir()
    paths = [tmp_path / "raw" / name for name in WAYS]
    for path, make in zip(paths, WAYS.values(), strict=True):
        nib.save(make(voxels), path)
    options = {"weights": tmp_path / "model.pt", "site": site_folder(), "progress": False}
    written = segment(paths, tmp_path / "out", raw=True, **options)
    root = prepare_site(tmp_path / "raw", tmp_path / "prepared", spacing=6.0, shape=(32, 32, 32), processes=1)
    found = [as_plain(read_volume(path).voxels, read_volume(path).affine) for path in written]
    for path, shown, labels in zip(paths, network, found, strict=True):
        np.testing.assert_allclose(shown, network[0], atol=1e-3, err_msg=path.name)
        assert (labels != found[0]).mean() < 1e-4, path.name
    assert len(np.unique(found[0])) == 14
    images = {entry["image"].rsplit("/")[-1]: read_volume(entry["image"]).voxels for entry in load_site(root).training}
    assert len(images) == len(WAYS)
    for name, image_on_grid in images.items():
        np.testing.assert_allclose(image_on_grid, images["plain.nii.gz"], atol=1e-3, err_msg=name)


def test_outputs_carry_both_forms_of_the_scan(voxels, network, site_folder, tmp_path):
    made = with_sizes(image(voxels, qform=TURNED, codes=(2, 4)), (4.001, 5.001, 3.501))
    nib.save(made, tmp_path / "scan.nii.gz")
    segment(
        [tmp_path / "scan.nii.gz"], tmp_path / "out", weights=tmp_path / "model.pt", site=site_folder(), register=True
    )
    theirs = nib.load(tmp_path / "scan.nii.gz").header
    for kind in ("dseg", "atlas-dseg", "warp"):
        ours = nib.load(tmp_path / "out" / f"scan_{kind}.nii.gz").header
        assert np.array_equal(ours.get_sform(), theirs.get_sform()) and np.array_equal(
            ours.get_qform(), theirs.get_qform()
        )
        assert (int(ours["qform_code"]), int(ours["sform_code"])) == (2, 4)
        np.testing.assert_array_equal(itk_affine(ours), itk_affine(theirs))


def test_scales_in_the_sform_are_those_of_the_head(voxels, network, site_folder, tmp_path):
    """As in a template's space: the labels are those of a scan that has these voxel sizes."""
    larger = np.diag([1.05, 1.03, 1.06, 1.0]) @ SCAN.affine
    plain = image(voxels, larger, larger, codes=(0, 4))
    scales = with_sizes(image(voxels, larger, SCAN.affine, codes=(1, 4)), (4, 5, 3.5))
    for name, made in (("plain", plain), ("scales", scales)):
        nib.save(made, tmp_path / f"{name}.nii.gz")
    paths = [tmp_path / "plain.nii.gz", tmp_path / "scales.nii.gz"]
    written = segment(paths, tmp_path / "out", weights=tmp_path / "model.pt", site=site_folder())
    first, second = (nib.load(path) for path in written)
    np.testing.assert_allclose(second.affine, larger, atol=1e-4)
    assert np.array_equal(first.dataobj, second.dataobj)


def test_an_unknown_orientation_is_refused_and_the_others_are_done(voxels, network, site_folder, tmp_path):
    nib.save(image(voxels, codes=(0, 0)), tmp_path / "unknown.nii.gz")
    nib.save(in_unit(voxels, "meter", 1e-3), tmp_path / "metre.nii.gz")
    paths = [tmp_path / "unknown.nii.gz", tmp_path / "metre.nii.gz"]
    with pytest.raises(UserError, match=f"^{paths[0]}: found an unknown orientation.*set_sform"):
        segment(paths, tmp_path / "out", weights=tmp_path / "model.pt", site=site_folder())
    result = nib.load(tmp_path / "out" / "metre_dseg.nii.gz")
    np.testing.assert_allclose(result.affine, SCAN.affine, atol=1e-4)
    assert result.header.get_xyzt_units()[0] == "mm"
