"""How far labels and volumes change when the same brain is scanned again: `python benchmarks/repeatability.py IMAGES --out repeatability.csv`.

A second scan is *simulated* from each image, because no real rescan is at hand. The head is moved (each angle and shift
is drawn from a normal distribution with a standard deviation of 3 degrees or 3 mm; linear resampling onto a grid with
12 more voxels on each side), and gets another bias field (third-order polynomial, 10 to 25 % across the brain) and
Rician noise of 2 % of the 99th percentile. Both images go through `fedsr segment --raw`. Other differences between
scans (sequence, contrast, hydration) are not simulated, so a real rescan will show at least these differences.

One row per image and structure: the Dice between the labels of the second scan and those of the first, moved by the
known motion; both volumes; and their difference in percent of the first. An image that cannot be labelled is an error
and ends the run.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from monai.transforms import RandBiasField
from real_scans import dice
from scipy import ndimage
from scipy.spatial.transform import Rotation

from fedsr_monai.files import write_csv
from fedsr_monai.inference.segment import segment
from fedsr_monai.labels import LABELS
from fedsr_monai.labels.volumes import structure_volumes
from fedsr_monai.simulation.scanner import rician
from fedsr_monai.spatial.nifti import read_volume, volume_stem, write_volume

ANGLE, SHIFT, NOISE, MARGIN = 3.0, 3.0, 0.02, 12  # degrees, mm, fraction of the 99th percentile, voxels
COLUMNS = ("image", "protocol", "structure", "dice", "volume_ml", "volume_again_ml", "difference_percent")


def rescan(voxels: np.ndarray, affine: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a second scan of an image [D, H, W], and the matrix [4, 4] from its voxels to those of the image."""
    rng = np.random.default_rng(seed)
    motion = np.eye(4)
    motion[:3, :3] = Rotation.from_euler("xyz", rng.normal(0, ANGLE, 3), degrees=True).as_matrix()
    centre = (affine @ [*(np.array(voxels.shape) / 2), 1])[:3]
    motion[:3, 3] = centre - motion[:3, :3] @ centre + rng.normal(0, SHIFT, 3)
    wider = np.eye(4)
    wider[:3, 3] = -MARGIN
    matrix = np.linalg.inv(affine) @ motion @ affine @ wider
    shape = tuple(size + 2 * MARGIN for size in voxels.shape)
    moved = ndimage.affine_transform(voxels.astype(np.float32), matrix, output_shape=shape, order=1)
    bias = RandBiasField(degree=3, coeff_range=(0.0, 0.06), prob=1.0).set_random_state(seed)
    biased = np.asarray(bias(moved[None]))[0]
    noisy = rician(rng, biased, NOISE * float(np.percentile(moved[moved > 0], 99)))
    return np.where(moved > 0, noisy, 0).astype(np.float32), matrix


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("--protocol", help="as of fedsr segment, by default that of its weights")
    parser.add_argument("--accurate", action="store_true", help="as of fedsr segment")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    rows = []
    for number, image in enumerate(options.images):
        first = read_volume(image)
        with tempfile.TemporaryDirectory() as folder:
            voxels, matrix = rescan(first.voxels, first.affine, seed=number)
            again = Path(folder) / "again.nii.gz"
            write_volume(again, voxels, first.affine)
            settings = {"raw": True, "progress": False, "protocol": options.protocol, "accurate": options.accurate}
            maps = [
                read_volume(segment([path], Path(folder) / f"labels-{path.name}", **settings)[0]).voxels
                for path in (image, again)
            ]
        # Dice on the voxels of the second scan, where the first one's labels are sampled once.
        moved = ndimage.affine_transform(maps[0], matrix, output_shape=maps[1].shape, order=0)
        volumes, again_volumes = (structure_volumes(labels, first.affine) for labels in maps)
        for label, overlap in enumerate(dice(maps[1], moved), start=1):
            rows.append(
                {
                    "image": volume_stem(image),
                    "protocol": options.protocol or "neuromorphometrics",
                    "structure": LABELS[label],
                    "dice": overlap,
                    "volume_ml": volumes[label],
                    "volume_again_ml": again_volumes[label],
                    "difference_percent": 100 * (again_volumes[label] - volumes[label]) / volumes[label],
                }
            )
        of_image = [row for row in rows if row["image"] == volume_stem(image)]
        means = [np.mean([abs(row[key]) for row in of_image]) for key in ("dice", "difference_percent")]
        print(f"{volume_stem(image)}: Dice {means[0]:.4f}, volumes differ by {means[1]:.1f} %", flush=True)
        write_csv(options.out, COLUMNS, rows)
    for name in list(LABELS.values())[1:]:
        found = [row for row in rows if row["structure"] == name]
        print(
            f"{name}: Dice {np.mean([r['dice'] for r in found]):.3f}, {np.mean([abs(r['difference_percent']) for r in found]):.1f} %"
        )


if __name__ == "__main__":
    main()
