"""Displacement fields: conversion from voxels of the network's grid to the millimetres that ITK, ANTs and 3D Slicer read."""

from __future__ import annotations

import os

import nibabel as nib
import numpy as np
import torch

from fedsr_monai.spatial.grid import Grid
from fedsr_monai.spatial.header import header_of, itk_affine, largest_distance
from fedsr_monai.spatial.nifti import make_image, write_nifti
from fedsr_monai.spatial.resampling import sample, sample_labels, voxel_map

LPS = (-1.0, -1.0, 1.0)  # ITK's x and y axes point the opposite way to those of NIfTI
ROUNDING = 1e-3  # mm; headers keep float32
STEP = 2**-12  # mm: vectors are rounded to it (0.2 micrometres), which makes their files a quarter smaller


def field_on_scan(ddf: torch.Tensor, grid: Grid, scan: Grid) -> torch.Tensor:
    """Sample a displacement [3, D, H, W] in voxels of `grid` at the voxels of a scan: [3, *scan.shape].

    The unit remains a voxel of `grid`. Outside the grid's box, the field continues with its values at the border, which is
    also how `warp` treats the atlas.
    """
    return sample(ddf, voxel_map(grid.affine, scan.affine), scan.shape, padding_mode="border")


def field_for(field: torch.Tensor, grid: Grid, atlas: Grid) -> torch.Tensor:
    """Convert the vectors of a field [3, D, H, W] from voxels of `grid` to voxels of another grid in the same space."""
    turn = np.linalg.inv(atlas.affine[:3, :3]) @ grid.affine[:3, :3]
    return torch.einsum("ij,jxyz->ixyz", torch.as_tensor(turn, dtype=field.dtype, device=field.device), field)


def labels_under_field(label: torch.Tensor, field: torch.Tensor, grid: Grid, scan: Grid) -> torch.Tensor:
    """Warp the atlas labels directly onto the voxels of a scan: uint8 [1, *scan.shape].

    The one-hot map is interpolated and the largest fraction wins; outside the atlas everything is background.

    Args:
        label: ids [1, D, H, W] on `grid`.
        field: from `field_on_scan`, in voxels of `grid`.
        grid: grid of the atlas labels.
        scan: grid at which the field was sampled.
    """
    matrix = voxel_map(grid.affine, scan.affine)
    return sample_labels(None, matrix, scan.shape, shift=field, labels=label[0].to(torch.uint8))


def write_displacement(
    path: str | os.PathLike,
    field: torch.Tensor,
    grid: Grid,
    scan: Grid,
    header: nib.Nifti1Header | None = None,
) -> None:
    """Write the field as an ITK displacement field (.nii.gz), from points of the scan to those of the atlas.

    Vectors are in millimetres along left, posterior and superior, in a 5-D NIfTI of shape (*scan.shape, 1, 3) with vector
    intent, float32, rounded to 1/4096 mm. With this field, `itk.DisplacementFieldTransform` and
    `antsApplyTransforms -i atlas -r scan -t FIELD` pull the atlas onto the scan.

    The vectors begin where ITK sees the voxels of the scan's file. This can differ from `scan.affine` in two cases: if the
    header's two forms differ (see `itk_affine`), and for a raw scan, whose `scan.affine` includes the affine map that
    registers it to the atlas. The field then combines both steps.

    Args:
        path: the file.
        field: from `field_on_scan`.
        grid: grid whose voxels are the unit of the field.
        scan: grid at which the field was sampled.
        header: header of the scan's file, whose forms the field gets; by default made from `scan.affine`.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    header = header_of(scan.affine) if header is None else header
    seen = itk_affine(header)
    seen = header.get_best_affine() if seen is None else seen
    turn = torch.as_tensor(grid.affine[:3, :3], dtype=torch.float32)
    # In the order in which NIfTI stores voxels, component by component and in place: a field at 1 mm takes 100 MB and more.
    vectors, field = torch.empty(3, *reversed(scan.shape)), field.cpu()
    for vector, row in zip(vectors, turn):
        vector.copy_(torch.tensordot(row, field, dims=1).permute(2, 1, 0))
    if largest_distance(scan.affine, seen, scan.shape) > ROUNDING:
        lines = [torch.arange(size, dtype=torch.float64) for size in scan.shape]
        for vector, (x, y, z, shift) in zip(vectors, scan.affine[:3] - seen[:3]):
            vector += (z * lines[2][:, None] + y * lines[1] + shift).float()[..., None]
            vector += (x * lines[0]).float()
    vectors.mul_(torch.tensor(LPS)[:, None, None, None]).div_(STEP).round_().mul_(STEP)
    image = make_image(vectors.numpy().transpose(3, 2, 1, 0)[:, :, :, None, :], header)
    image.header.set_intent("vector")
    write_nifti(path, image, repeats=False)
