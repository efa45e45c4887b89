"""Draw docs/pictures/result.png: a held-out simulated scan beside what the shipped weights make of it.

python docs/make_picture.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import fedsr_monai as fm
from fedsr_monai.evaluation.run import load_network, models_of_sites
from fedsr_monai.labels import COLOURS

OUT = Path(__file__).parent / "pictures" / "result.png"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        (site,) = fm.simulate_sites(folder, sites=1, training=1, validation=0, test=1, processes=1)
        model = models_of_sites([site])[0]
        network = load_network(model).eval()
        image = np.asarray(nib.load(model.site.test[0]["image"]).dataobj, dtype=np.float32)
    scan = torch.from_numpy(image)[None, None]
    with torch.no_grad():
        segmentation = network(scan).argmax(dim=1)[0].numpy()
        _, warped = network.register(scan)
    atlas = network.atlas_label[0, 0].numpy()
    panels = {
        "scan": (image, None),
        "unregistered atlas labels": (image, atlas),
        "atlas warped to the scan": (warped[0, 0].numpy(), None),
        "segmentation": (image, segmentation),
    }
    figure = Figure(figsize=(3 * len(panels), 6.6), facecolor="black")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(panels))
    figure.subplots_adjust(left=0, right=1, bottom=0, top=0.94, wspace=0, hspace=0)
    middle = np.round(np.argwhere(image > 0.05).mean(0)).astype(int)
    for column, (title, (volume, labels)) in zip(axes.T, panels.items(), strict=True):
        column[0].set_title(title, color="white", fontsize=12)
        for panel, axis in zip(column, (2, 1), strict=True):
            plane = np.take(volume, middle[axis], axis).T
            panel.imshow(plane, cmap="gray", origin="lower", vmin=0, vmax=1, interpolation="bicubic")
            if labels is not None:
                panel.imshow(_coloured(np.take(labels, middle[axis], axis).T), origin="lower", interpolation="nearest")
            panel.set_axis_off()
    OUT.parent.mkdir(exist_ok=True)
    figure.savefig(OUT, dpi=80)
    print(OUT)


def _coloured(labels: np.ndarray) -> np.ndarray:
    """Return label ids [H, W] as RGBA [H, W, 4], half transparent where there is a structure."""
    table = np.zeros((len(COLOURS), 4))
    for label, colour in COLOURS.items():
        table[label] = (*(np.array(colour) / 255), 0.55 if label else 0)
    return table[labels]


if __name__ == "__main__":
    main()
