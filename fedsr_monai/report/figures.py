"""The pictures of the report: from the volumes of one case to WebP bytes.

All arrays are RAS+. Planes are drawn as a radiologist sees them: the patient's right on the left of axial and coronal
slices, the front on the left of sagittal ones.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from PIL import Image
from scipy import ndimage

from fedsr_monai.labels import COLOURS
from fedsr_monai.spatial.grid import PLANES
from fedsr_monai.spatial.warping import jacobian_determinant

FILM = "#0b0e12"  # behind every slice, in the light and the dark page
INK = "#d7dde4"
ROWS = {plane: PLANES[plane] for plane in ("axial", "coronal", "sagittal")}
MARKS = {"axial": ("R", "L"), "coronal": ("R", "L"), "sagittal": ("A", "P")}

Volumes = Mapping[str, np.ndarray]


def richest_slice(label: np.ndarray, axis: int) -> int:
    """Return the slice across `axis` with the most structures, and among these the one that shows the largest parts of them."""
    others = tuple(a for a in range(3) if a != axis)
    if not label.any():
        return label.shape[axis] // 2
    areas = np.stack([(label == k).sum(axis=others) for k in np.unique(label[label > 0])], axis=-1)
    fractions = areas / areas.sum(axis=0)
    return int(np.argmax((areas > 0).sum(axis=-1) + 0.99 * fractions.mean(axis=-1) / fractions.mean(axis=-1).max()))


def slice_of(volume: np.ndarray, axis: int, index: int) -> np.ndarray:
    """Return one plane [rows, columns] of a volume [D, H, W], to be drawn with its origin at the bottom."""
    return np.flip(np.take(volume, index, axis=axis).T, axis=1)


def encode(figure: Figure) -> bytes:
    """Encode a figure as WebP, which every browser shows: a quarter of the size of PNG, and thin lines keep colour.

    PNG with a palette of 256 colours would be small too, but confuses the colours of the structures.
    """
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    stream = io.BytesIO()
    Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]).save(stream, "WEBP", quality=90, use_sharp_yuv=True)
    return stream.getvalue()


def panels(
    volumes: Volumes, columns: Sequence[str], bars: int = 0, width: float = 12.0
) -> tuple[Figure, np.ndarray, list[Axes], dict[str, int]]:
    """Make a sheet with one row per plane and one column per title, each panel in the true proportions of the voxels.

    Returns:
        The figure, its panels [3, columns], the axes of the colour bars, and the slice of each plane.
    """
    spacing = [float(s) for s in volumes["spacing"]]
    index = {plane: richest_slice(volumes["label"], axis) for plane, axis in ROWS.items()}
    size = np.array(volumes["label"].shape) * spacing
    heights = [np.delete(size, axis)[1] / np.delete(size, axis)[0] for axis in ROWS.values()]
    ratios = [1.0] * len(columns) + [0.045 * len(columns) + 0.08] * bool(bars)
    cell = width / sum(ratios)
    figure = Figure(figsize=(width, cell * sum(heights) + 0.35), dpi=100, facecolor=FILM)
    grid = figure.add_gridspec(
        3, len(ratios), width_ratios=ratios, height_ratios=heights, wspace=0.02, hspace=0.02,
        left=0.004, right=0.996, bottom=0.004, top=1 - 0.34 / figure.get_figheight(),
    )  # fmt: skip
    axes = np.empty((3, len(columns)), dtype=object)
    for row, plane in enumerate(ROWS):
        for column, title in enumerate(columns):
            axes[row, column] = axis = figure.add_subplot(grid[row, column], facecolor=FILM)
            axis.set_axis_off()
            if row == 0:
                axis.set_title(title, color=INK, fontsize=11, pad=6)
            if column == 0:
                for mark, x in zip(MARKS[plane], (0.02, 0.98), strict=True):
                    axis.text(
                        x, 0.5, mark, color=INK, fontsize=9, transform=axis.transAxes, va="center", zorder=5,
                        ha="left" if x < 0.5 else "right",
                    )  # fmt: skip
    extra = []
    for number in range(bars):
        inner = grid[:, -1].subgridspec(bars, 3, width_ratios=[0.3, 0.35, 1.6], hspace=0.25)
        extra.append(bar := figure.add_subplot(inner[number, 1]))
        box = bar.get_position()
        bar.set_position((box.x0, box.y0 + 0.015, box.width, box.height - 0.03))  # room for the outer ticks
    return figure, axes, extra, index


def show(axis: Axes, plane: np.ndarray, ratio: float, **options: Any) -> AxesImage:
    """Draw a slice in its true proportions; images are interpolated, as their voxels are larger than pixels."""
    drawn: dict[str, Any] = {"cmap": "gray", "vmin": 0, "vmax": 1, "interpolation": "bicubic"} | options
    height, width = plane.shape
    axis.set(xlim=(-0.5, width - 0.5), ylim=(-0.5, height - 0.5), autoscale_on=False)
    return axis.imshow(plane.astype(np.float32), origin="lower", aspect=ratio, **drawn)


def voxel_ratio(volumes: Volumes, axis: int) -> float:
    """Return height over width of a voxel in the plane across `axis`."""
    across, up = np.delete(np.asarray(volumes["spacing"], dtype=float), axis)
    return float(up / across)


def outline(axis: Axes, plane: np.ndarray, width: float = 1.2) -> None:
    """Draw the border of each structure in its colour, smoothed over the corners of the voxels."""
    for label in np.unique(plane[plane > 0]):
        mask = ndimage.zoom((plane == label).astype(np.float32), 3, order=1, grid_mode=True, mode="grid-constant")
        height, wide = plane.shape
        axis.contour(
            ndimage.gaussian_filter(mask, 1.2), levels=[0.5], linewidths=width, origin="lower",
            colors=[np.array(COLOURS[int(label)]) / 255], extent=(-0.5, wide - 0.5, -0.5, height - 0.5),
        )  # fmt: skip


def overlay_figure(volumes: Volumes) -> bytes:
    """Draw the scan with the outlines of the reference, the segmentation and the warped atlas labels."""
    titles = {"Scan": None, "Reference": "label", "Segmentation": "segmentation", "Registration": "warped_label"}
    figure, axes, _, index = panels(volumes, list(titles))
    inside = volumes["image"][volumes["image"] > 0].astype(np.float32)  # in half precision percentiles overflow
    top = float(np.percentile(inside, 99.5)) if inside.size else 1.0
    for row, (plane, axis) in enumerate(ROWS.items()):
        for column, key in enumerate(titles.values()):
            scan = slice_of(volumes["image"], axis, index[plane])
            show(axes[row, column], scan, voxel_ratio(volumes, axis), vmax=top)
            if key is not None:
                outline(axes[row, column], slice_of(volumes[key], axis, index[plane]))
    return encode(figure)


def error_figure(volumes: Volumes) -> bytes:
    """Draw the atlas before and after registration, and its differences from the scan on one scale of brightness."""
    titles = ["Scan", "Unregistered atlas", "Difference before", "Warped atlas", "Difference after"]
    figure, axes, (bar,), index = panels(volumes, titles, bars=1)
    scan, before, after = (volumes[key].astype(np.float32) for key in ("image", "atlas_image", "warped_image"))
    errors = tuple(np.abs(as_bright(atlas, scan, volumes["spacing"]) - scan) for atlas in (before, after))
    brain = errors[0][(scan > 0) | (before > 0)]
    limit = max(float(np.percentile(brain, 99)), 1e-3) if brain.size else 1.0
    for row, (plane, axis) in enumerate(ROWS.items()):
        drawn = zip(axes[row], (scan, before, errors[0], after, errors[1]), (0, 0, 1, 0, 1), strict=True)
        for panel, volume, is_error in drawn:
            options = {"cmap": "inferno", "vmax": limit} if is_error else {}
            last = show(panel, slice_of(volume, axis, index[plane]), voxel_ratio(volumes, axis), **options)
    style_bar(figure.colorbar(last, cax=bar), "absolute difference of the intensities")
    return encode(figure)


def as_bright(
    atlas: np.ndarray, scan: np.ndarray, spacing: Sequence[float] | np.ndarray, reach: float = 15.0
) -> np.ndarray:
    """Return the atlas [D, H, W] times a smooth gain that gives it the scan's mean brightness around each voxel.

    Without this gain, an error map would mainly show the coil profiles of the two scanners.

    Args:
        atlas: intensities [D, H, W].
        scan: intensities [D, H, W].
        spacing: size of a voxel in mm along each axis.
        reach: sigma of the Gaussian neighbourhood in mm.
    """
    both = (atlas > 0) & (scan > 0)
    sigma = [reach / step for step in spacing]
    of_scan, of_atlas = (ndimage.gaussian_filter(np.where(both, volume, 0), sigma) for volume in (scan, atlas))
    return atlas * ((of_scan + 1e-3) / (of_atlas + 1e-3)).clip(0.25, 4)


def deformation_figure(volumes: Volumes, step: int = 4) -> bytes:
    """Draw the deformation as a bent grid, its length in millimetres, and its Jacobian determinant, folds marked."""
    figure, axes, (length_bar, jacobian_bar), index = panels(
        volumes, ["Deformation grid", "Displacement", "Jacobian determinant"], bars=2
    )
    ddf = volumes["ddf"].astype(np.float32)
    length = np.linalg.norm(ddf * np.reshape(volumes["spacing"], (3, 1, 1, 1)), axis=0)
    jacobian = jacobian_determinant(torch.from_numpy(ddf)).numpy()
    brain = volumes["image"] > 0
    limit = float(np.percentile(length[brain], 99.5)) if brain.any() else 1.0
    norm = TwoSlopeNorm(1.0, 0.0, 2.5)
    for row, (plane, axis) in enumerate(ROWS.items()):
        ratio = voxel_ratio(volumes, axis)
        cut = [slice_of(volume, axis, index[plane]) for volume in (volumes["image"], length, jacobian, brain)]
        for panel in axes[row]:
            show(panel, cut[0] * 0.75, ratio)
        axes[row, 0].add_collection(bent_grid(ddf, axis, index[plane], step))
        alpha = np.where(cut[3], 0.85, 0.0)
        lengths = show(axes[row, 1], cut[1], ratio, cmap="viridis", vmax=max(limit, 1e-3), alpha=alpha)
        volume_change = show(axes[row, 2], cut[2], ratio, cmap="RdBu_r", norm=norm, vmin=None, vmax=None, alpha=alpha)
        folds = np.where((cut[2] <= 0) & cut[3], 1.0, np.nan)
        show(axes[row, 2], folds, ratio, cmap=ListedColormap(["#ffe600"]), interpolation="nearest")
    style_bar(figure.colorbar(lengths, cax=length_bar), "displacement (mm)")
    style_bar(figure.colorbar(volume_change, cax=jacobian_bar), "Jacobian determinant (yellow: folded)")
    return encode(figure)


def bent_grid(ddf: np.ndarray, axis: int, index: int, step: int) -> LineCollection:
    """Return the lines of a regular grid on the scan, bent as the deformation moves them in this plane."""
    across, up = (a for a in range(3) if a != axis)
    # slice_of flips the columns, and with them the sign of the displacement across.
    x, y = -slice_of(ddf[across], axis, index), slice_of(ddf[up], axis, index)
    rows, columns = np.indices(x.shape)
    points = np.stack([columns + x, rows + y], axis=-1)
    lines = [points[r] for r in range(0, len(points), step)] + [points[:, c] for c in range(0, points.shape[1], step)]
    return LineCollection(lines, colors="#7fd4ff", linewidths=0.7, alpha=0.9)


def style_bar(bar, text: str) -> None:
    """Label a colour bar and give it the colours of the sheet."""
    bar.set_label(text, color=INK, fontsize=10)
    bar.ax.tick_params(colors=INK, labelsize=9, length=2)
    bar.outline.set_edgecolor(INK)
    bar.outline.set_linewidth(0.5)
