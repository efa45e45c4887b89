"""A picture of each prepared scan: the scan registered to the atlas, and the brain mask on the raw scan."""

from __future__ import annotations

import os

import nibabel as nib
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fedsr_monai.files import atomic_path
from fedsr_monai.labels import COLOURS
from fedsr_monai.prepare.pipeline import Prepared
from fedsr_monai.spatial.grid import PLANES, Grid
from fedsr_monai.spatial.resampling import sample, voxel_map

DRAWN = (3, 2, 4, 13, 10)  # contours that show an alignment without hiding the scan
STEP = 0.75  # mm between pixels of the slices
_DEPTH = (0.46, 0.52, 0.48)  # of slices in the brain's box: beside the midline, through the basal ganglia


def write_qc(
    path: str | os.PathLike, title: str, raw: np.ndarray, prepared: Prepared, label: np.ndarray, grid: Grid
) -> None:
    """Draw three planes to a PNG.

    The top row shows the scan registered to the atlas with the contours of the atlas' labels, the bottom row the raw scan
    along its own axes with the outline of the brain mask.

    Args:
        path: path of the PNG.
        title: title of the picture.
        raw: voxels [D, H, W] of the scan.
        prepared: the scan after preparation.
        label: label map [D, H, W] of the atlas.
        grid: grid of the atlas.
    """
    figure = Figure(figsize=(12, 8.6), facecolor="black")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 3)
    figure.subplots_adjust(left=0.03, right=0.995, top=0.89, bottom=0.01, wspace=0.02, hspace=0.05)
    _draw_on_atlas(axes[0], prepared, label, grid)
    _draw_raw(axes[1], raw, prepared)
    for plane, axis in PLANES.items():
        axes[0, axis].set_title(plane, color="white", fontsize=10, pad=3)
    for panels, text in zip(axes, ("on the atlas, its contours", "as scanned, brain mask")):
        panels[0].text(
            -0.02, 0.5, text, color="white", rotation=90, ha="right", va="center", transform=panels[0].transAxes
        )
    found = prepared.quality
    scales = " x ".join(f"{s:.2f}" for s in found.scales)
    score = (
        f"overlap {found.overlap:.3f}   correlation ratio {found.correlation:.2f}   growth {scales}   turn {found.turn:.0f}°   "
        f"mask {prepared.mask_from}"
    )
    figure.text(0.5, 0.96, title, color="white", ha="center", fontsize=13)
    figure.text(0.5, 0.93, score, color="white", ha="center", fontsize=10)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=90, format="png")


def _draw_on_atlas(panels, prepared: Prepared, label: np.ndarray, grid: Grid) -> None:
    inside = np.argwhere(label > 0)
    lower, upper = inside.min(0), inside.max(0)
    spacing = nib.affines.voxel_sizes(grid.affine)
    brain = torch.from_numpy(prepared.brain)[None]
    top = np.percentile(prepared.brain[prepared.mask], 99.5)
    for axis, panel in enumerate(panels):
        steps = np.where(np.arange(3) == axis, 1.0, STEP / spacing)
        start = np.where(np.arange(3) == axis, np.round(lower + _DEPTH[axis] * (upper - lower)), 0)
        shape = tuple(1 if a == axis else int(grid.shape[a] * spacing[a] / STEP) for a in range(3))
        plane = np.diag([*steps, 1.0])
        plane[:3, 3] = start
        matrix = voxel_map(prepared.affine, grid.affine) @ plane
        panel.imshow(_slice(sample(brain, matrix, shape)[0], axis), cmap="gray", vmin=0, vmax=top, origin="lower")
        for k in DRAWN:
            fraction = _slice(sample(torch.from_numpy((label == k).astype(np.float32))[None], plane, shape)[0], axis)
            if (fraction > 0.5).any():
                panel.contour(fraction, levels=[0.5], colors=[tuple(c / 255 for c in COLOURS[k])], linewidths=0.8)
        panel.set_axis_off()


def _draw_raw(panels, raw: np.ndarray, prepared: Prepared) -> None:
    image, mask = (
        nib.as_closest_canonical(nib.Nifti1Image(volume, prepared.scan.affine))
        for volume in (raw.astype(np.float32), prepared.mask.astype(np.uint8))
    )
    volume, outline = np.asarray(image.dataobj), np.asarray(mask.dataobj)
    spacing = nib.affines.voxel_sizes(image.affine)
    middle = np.round(np.argwhere(outline).mean(0)).astype(int)
    top = np.percentile(volume[volume > 0], 99)
    for axis, panel in enumerate(panels):
        across, up = (a for a in range(3) if a != axis)
        extent = (0, volume.shape[across] * spacing[across], 0, volume.shape[up] * spacing[up])
        panel.imshow(
            np.take(volume, middle[axis], axis).T,
            cmap="gray",
            vmin=0,
            vmax=top,
            origin="lower",
            extent=extent,
            interpolation="bilinear",
        )
        edge = np.take(outline, middle[axis], axis).T
        x, y = (np.arange(edge.shape[1]) + 0.5) * spacing[across], (np.arange(edge.shape[0]) + 0.5) * spacing[up]
        panel.contour(x, y, edge, levels=[0.5], colors=["#ffcc00"], linewidths=1.0)
        panel.set_axis_off()


def _slice(volume: torch.Tensor, axis: int) -> np.ndarray:
    return volume.select(axis, 0).numpy().T
