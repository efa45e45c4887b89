"""A contact sheet of a site: slices in three planes, with and without the contours of the labels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fedsr_monai.data.site import load_site, volume_stem
from fedsr_monai.labels import ABBREVIATIONS, COLOURS

PLANES = ("sagittal", "coronal", "axial")
# Where the slices lie in the brain's bounding box: beside the midline, through the amygdala-hippocampus border, the
# basal ganglia.
_DEPTH = (0.46, 0.52, 0.48)


def render_sheet(sites: str | os.PathLike | Sequence, out_png: str | os.PathLike, scans: int = 5) -> Path:
    """Draw the atlas and up to `scans` scans of each site folder, one row each, and return the path of the PNG.

    Labelled scans come first. The grey scale is fixed to [0, 1], so that rows compare as the network sees them.

    Raises:
        UserError: a folder breaks the contract of a site.
    """
    folders = [sites] if isinstance(sites, (str, os.PathLike)) else list(sites)
    rows = []
    for folder in folders:
        site = load_site(folder)
        entries = [*site.test, *site.validation, *site.training][:scans]
        if not rows:
            rows.append(("atlas", site.atlas))
        rows += [(f"{site.name}\n{volume_stem(entry['image'])}", entry) for entry in entries]

    height = 2.6 * len(rows) + 0.6  # inches
    figure = Figure(figsize=(14.5, height), facecolor="black")
    FigureCanvasAgg(figure)
    extent = [size * step for size, step in zip(site.shape, site.spacing)]
    widths = [extent[1], extent[0], extent[0]] * 2  # the same millimetres per inch in every panel
    axes = figure.subplots(len(rows), 6, squeeze=False, width_ratios=widths)
    figure.subplots_adjust(left=0.05, right=1, top=1 - 0.3 / height, bottom=0.3 / height, wspace=0.02, hspace=0.02)
    for panels, (title, entry) in zip(axes, rows):
        _draw_row(panels, title, entry)
    for panel, plane in zip(axes[0], PLANES + PLANES):
        panel.set_title(plane, color="white", fontsize=10, pad=3)
    handles = [Line2D([], [], color=_colour(k), label=ABBREVIATIONS[k]) for k in COLOURS if k]
    figure.legend(handles=handles, loc="lower center", ncol=len(handles), frameon=False, labelcolor="white", fontsize=9)
    figure.savefig(out_png, dpi=100)
    return Path(out_png)


def _draw_row(panels, title: str, entry: dict[str, str]) -> None:
    loaded = nib.load(entry["image"])
    image, spacing = np.asarray(loaded.dataobj), nib.affines.voxel_sizes(loaded.affine)
    label = np.asarray(nib.load(entry["label"]).dataobj) if "label" in entry else None
    inside = np.argwhere(image > 0)
    lower, upper = inside.min(0), inside.max(0)
    for i, panel in enumerate(panels):
        axis = i % 3
        depth = int(round(lower[axis] + _DEPTH[axis] * (upper[axis] - lower[axis])))
        across, up = (a for a in range(3) if a != axis)
        extent = (0, image.shape[across] * spacing[across], 0, image.shape[up] * spacing[up])
        panel.imshow(np.take(image, depth, axis).T, cmap="gray", vmin=0, vmax=1, origin="lower", extent=extent,
                     interpolation="bilinear")  # fmt: skip
        panel.set_axis_off()
        if i >= 3 and label is not None:
            _draw_contours(panel, np.take(label, depth, axis).T, spacing[across], spacing[up])
    panels[0].text(
        -0.02, 0.5, title, color="white", rotation=90, ha="right", va="center", transform=panels[0].transAxes
    )


def _draw_contours(panel, label: np.ndarray, across: float, up: float) -> None:
    x, y = (np.arange(label.shape[1]) + 0.5) * across, (np.arange(label.shape[0]) + 0.5) * up
    for k in np.unique(label[label > 0]):
        panel.contour(x, y, label == k, levels=[0.5], colors=[_colour(int(k))], linewidths=0.8)


def _colour(k: int) -> tuple[float, ...]:
    return tuple(value / 255 for value in COLOURS[k])
