from __future__ import annotations

import gzip
import logging
import os
import struct
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from fedsr_monai.errors import UserError
from fedsr_monai.spatial.nifti import make_image, read_geometry, read_volume, volume_stem, write_nifti, write_volume

AFFINE = np.array([[0.0, -2.0, 0.1, 30.0], [1.5, 0.0, 0.0, -40.0], [0.0, 0.1, 3.0, 10.0], [0.0, 0.0, 0.0, 1.0]])
VOXELS = np.arange(5 * 6 * 7, dtype=np.int16).reshape(5, 6, 7)


def image(affine=AFFINE, voxels=VOXELS, codes=(1, 1), kind=nib.Nifti1Image):
    made = kind(voxels, affine)
    made.set_qform(affine, codes[0])
    made.set_sform(affine, codes[1])
    return made


def edited(folder: Path, name: str = "scan.nii", change=lambda header: None, **arguments) -> Path:
    """Write a file whose header is changed behind nibabel's back."""
    made = image(**arguments)
    content = made.to_bytes()
    header = type(made.header)(content[: made.header.template_dtype.itemsize])
    change(header)
    content = header.binaryblock + content[len(header.binaryblock) :]
    path = folder / name
    path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    return path


def set_(field: str, value):
    return lambda header: header.__setitem__(field, value)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, ">i2", np.float32, np.float64, np.uint64])
def test_nifti_is_read_as_nibabel_reads_it(tmp_path, kind, name, dtype):
    made = kind(VOXELS.astype(dtype), AFFINE, dtype=dtype)
    nib.save(made, tmp_path / name)
    volume, theirs = read_volume(tmp_path / name), nib.load(tmp_path / name)
    assert np.array_equal(volume.voxels, np.asanyarray(theirs.dataobj)) and volume.voxels.dtype.isnative
    assert np.array_equal(volume.affine, theirs.affine)
    shape, affine = read_geometry(tmp_path / name)
    assert shape == (5, 6, 7) and np.array_equal(affine, theirs.affine)


def test_scaled_and_big_endian(tmp_path):
    header = nib.Nifti1Header(endianness=">")
    made = nib.Nifti1Image(VOXELS.astype(">i2"), AFFINE, header)
    made.header.set_slope_inter(0.5, -3)
    nib.save(made, tmp_path / "scan.nii.gz")
    assert nib.load(tmp_path / "scan.nii.gz").header.endianness == ">"
    volume = read_volume(tmp_path / "scan.nii.gz")
    np.testing.assert_allclose(volume.voxels, nib.load(tmp_path / "scan.nii.gz").get_fdata())
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-5)


@pytest.mark.parametrize("name", ["scan.mgz", "scan.mgh"])
def test_freesurfer(tmp_path, name):
    affine = np.array([[-1.0, 0, 0, 60], [0, 0, 1, -70], [0, -1, 0, 50], [0, 0, 0, 1]])
    nib.save(nib.MGHImage(VOXELS.astype(np.uint8), affine), tmp_path / name)
    volume = read_volume(tmp_path / name)
    assert np.array_equal(volume.voxels, VOXELS) and np.array_equal(volume.affine, affine)
    assert int(volume.header["sform_code"]) == int(volume.header["qform_code"]) == 1
    np.testing.assert_allclose(volume.header.get_qform(), affine, atol=1e-5)


@pytest.mark.parametrize("shape", [(5, 6, 7, 1), (5, 6, 7, 1, 1), (5, 6, 7, 1, 1, 1, 1)])
def test_trailing_axes_of_one_are_dropped(tmp_path, shape):
    nib.save(image(voxels=VOXELS.reshape(shape)), tmp_path / "scan.nii.gz")
    assert np.array_equal(read_volume(tmp_path / "scan.nii.gz").voxels, VOXELS)


@pytest.mark.parametrize(("unit", "factor"), [("meter", 1e-3), ("micron", 1e3), ("mm", 1), ("unknown", 1)])
def test_units_become_millimetres(tmp_path, unit, factor):
    small = np.diag([factor, factor, factor, 1.0]) @ AFFINE
    made = image(small)
    made.header.set_xyzt_units(unit)
    nib.save(made, tmp_path / "scan.nii")
    volume = read_volume(tmp_path / "scan.nii")
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-5)
    np.testing.assert_allclose(volume.header.get_sform(), AFFINE, atol=1e-5)
    np.testing.assert_allclose(volume.header.get_qform()[:3, 3], AFFINE[:3, 3], atol=1e-5)
    assert volume.header.get_xyzt_units()[0] == "mm" and int(volume.header["pixdim"][0]) in (-1, 1)


def test_the_sform_if_it_is_set_and_else_the_qform(tmp_path):
    rigid = np.diag([2.0, 2.0, 2.0, 1.0])
    for codes, expected in (((1, 2), AFFINE), ((1, 0), rigid), ((0, 3), AFFINE)):
        path = edited(tmp_path, affine=rigid, codes=codes, change=lambda h, code=codes[1]: h.set_sform(AFFINE, code))
        np.testing.assert_allclose(read_volume(path).affine, expected, atol=1e-5)
        assert np.array_equal(read_volume(path).affine, nib.load(path).affine)


def test_forms_that_differ_are_told_once_per_file(tmp_path, caplog):
    path = edited(tmp_path, codes=(1, 4), change=set_("qoffset_x", 90))
    with caplog.at_level(logging.WARNING):
        read_volume(path)
        read_volume(path)
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{path}: read by its sform, which is up to 6")


def unlimited(header) -> None:
    header["dim"][1:4] = 2000
    header["pixdim"][1:4] = 0.1
    header["srow_x"], header["srow_y"], header["srow_z"] = np.eye(4)[:3] * 0.1
    header["qform_code"] = 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: (h.set_sform(AFFINE, 0), h.set_qform(None, 0)), "an unknown orientation.*set_sform"),
        (set_("srow_y", [0, 0, 0, 0]), "a singular affine in its sform"),
        (set_("srow_y", [np.nan, 0, 0, 0]), "numbers that are not finite in its sform"),
        (set_("qoffset_x", np.inf), "numbers that are not finite in its qform"),
        (set_("quatern_b", 2.0), "a damaged header"),
        (set_("quatern_b", np.nan), "numbers that are not finite in its qform"),
        (lambda h: h["pixdim"].__setitem__(2, 0), r"spacing \(1.5, 0, "),
        (set_("xyzt_units", 1), r"voxels of \(1500, .*xyzt_units"),
        (set_("xyzt_units", 3), r"voxels of \(0.0015, .*xyzt_units"),
        (lambda h: h["dim"].__setitem__(0, 2), r"the shape \(5, 6\)"),
        (lambda h: h["dim"].__setitem__(3, 0), r"the shape \(5, 6, 0\)"),
        (lambda h: h["dim"].__setitem__(3, 1), r"the shape \(5, 6, 1\)"),
        (lambda h: h["dim"].__setitem__(slice(0, 5), [4, 5, 6, 3, 2]), r"the shape \(5, 6, 3, 2\)"),
        (lambda h: h["dim"].__setitem__(3, 8), "a file that ends after 77[0-9] of 83[0-9] bytes"),
        (lambda h: h["dim"].__setitem__(1, 1000), r"a volume of \(1500, "),
        (unlimited, "a volume of 15258 MiB"),
        (set_("vox_offset", 1e9), "a volume of 953 MiB"),
        (set_("datatype", 128), ".* voxels, expected whole numbers or floats"),
        (set_("datatype", 32), "complex64 voxels"),
        (set_("datatype", 9999), "a damaged header"),
        (set_("vox_offset", np.inf), "a damaged header"),
        (set_("vox_offset", -400), "a damaged header"),
        (lambda h: (set_("scl_slope", 2)(h), set_("scl_inter", np.nan)(h)), "a damaged header"),
    ],
)
@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
def test_a_header_that_cannot_be_that_of_a_head_is_named(tmp_path, name, change, message):
    path = edited(tmp_path, name, change)
    with pytest.raises(UserError, match=f"^{path}: found {message}"):
        read_volume(path)


def test_no_more_is_decompressed_than_the_header_promises(tmp_path):
    content = image().to_bytes()
    with gzip.open(tmp_path / "bomb.nii.gz", "wb") as file:
        file.write(content)
        for _ in range(400):
            file.write(bytes(1 << 20))
    tracemalloc.start()
    with pytest.raises(UserError, match="bytes after the voxels.*the size that the header promises"):
        read_volume(tmp_path / "bomb.nii.gz")
    assert tracemalloc.get_traced_memory()[1] < 150 << 20
    tracemalloc.stop()
    with gzip.open(tmp_path / "padded.nii.gz", "wb") as file:  # some programs write whole blocks
        file.write(content + bytes(4096))
    assert np.array_equal(read_volume(tmp_path / "padded.nii.gz").voxels, VOXELS)


def test_mgh_without_an_orientation_is_refused(tmp_path):
    nib.save(nib.MGHImage(VOXELS.astype(np.uint8), np.diag([1.0, 2.0, 2.0, 1.0])), tmp_path / "scan.mgh")
    content = bytearray((tmp_path / "scan.mgh").read_bytes())
    content[28:30] = struct.pack(">h", 0)
    (tmp_path / "scan.mgh").write_bytes(content)
    with pytest.raises(UserError, match=r"scan.mgh: found an unknown orientation \(goodRASFlag 0\)"):
        read_volume(tmp_path / "scan.mgh")


def plain(folder: Path, name: str) -> Path:
    nib.save(image(), folder / "made.nii")
    return (folder / "made.nii").rename(folder / name)


def link(folder: Path) -> Path:
    (folder / "scan.nii").symlink_to("annex/objects/scan")
    return folder / "scan.nii"


def cut(path: Path, end: int) -> Path:
    path.write_bytes(path.read_bytes()[:end])
    return path


def folder_called(path: Path) -> Path:
    path.mkdir()
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "none.nii", "no such file"),
        (link, "a link to annex/objects/scan, which does not exist, .*datalad get"),
        (lambda folder: folder_called(folder / "scan.nii"), "a folder"),
        (lambda folder: plain(folder, "scan.nrrd"), "a file that is not .nii, "),
        (lambda folder: plain(folder, "scan.nii.gz"), "no gzip stream"),
        (lambda folder: edited(folder, "made.nii.gz").rename(folder / "scan.nii"), "a gzip stream"),
        (lambda folder: cut(plain(folder, "scan.nii"), 0), "an empty file"),
        (lambda folder: cut(plain(folder, "scan.nii"), 200), "something else than NIfTI"),
        (lambda folder: cut(plain(folder, "scan.nii"), -3), "a file that ends after 769 of 772 bytes"),
        (lambda folder: cut(edited(folder, "scan.nii.gz"), -20), "a broken gzip stream"),
        (lambda folder: cut(edited(folder, "scan.nii.gz"), -4), "a broken gzip stream"),
        (lambda folder: cut(edited(folder, "scan.nii.gz"), 30), "a broken gzip stream"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, make, message):
    path = make(tmp_path)
    with pytest.raises(UserError, match=f"^{path}: found {message}"):
        read_volume(path)


def test_a_file_without_permission_is_named(tmp_path):
    path = plain(tmp_path, "scan.nii")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(UserError, match=f"^{path}: found that it cannot be read .*permissions"):
        read_volume(path)


def test_what_is_written_is_read_again(tmp_path):
    write_volume(tmp_path / "a.nii.gz", VOXELS, AFFINE)
    volume = read_volume(tmp_path / "a.nii.gz")
    assert np.array_equal(volume.voxels, VOXELS) and volume.voxels.dtype == np.int16
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-5)
    write_nifti(tmp_path / "b.nii.gz", make_image(VOXELS, volume.header))
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_stem_of_a_volume():
    for name in ("a/sub-1.T1w.nii.gz", "sub-1.T1w.nii", "b/sub-1.T1w.mgz", "sub-1.T1w.mgh"):
        assert volume_stem(name) == "sub-1.T1w"


@pytest.mark.parametrize("name", ["scan.nii", "scan2.nii", "scan.mgh"])
def test_a_header_changed_at_random_is_read_or_refused(tmp_path, name):
    kind = {"scan.nii": nib.Nifti1Image, "scan2.nii": nib.Nifti2Image, "scan.mgh": nib.MGHImage}[name]
    nib.save(kind(VOXELS, np.diag([-2.0, 2.0, 3.0, 1.0])), tmp_path / name)
    content, random = (tmp_path / name).read_bytes(), np.random.default_rng(7)
    refused = 0
    for _ in range(200):
        changed = bytearray(content)
        for start in random.integers(0, 280, random.integers(1, 6)):
            values = (np.nan, np.inf, -1, 0, 1e30, 1e-30)
            bits = random.bytes(2) if random.random() < 0.5 else np.float32(random.choice(values)).tobytes()
            changed[start : start + len(bits)] = bits
        (tmp_path / name).write_bytes(changed)
        try:
            volume = read_volume(tmp_path / name)
            assert np.isfinite(volume.affine).all() and np.isfinite(volume.voxels).all() and volume.voxels.ndim == 3
        except UserError as error:
            assert error.where == str(tmp_path / name) and "\n" not in str(error)
            refused += 1
    assert 0 < refused < 200
