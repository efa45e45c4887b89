"""Train the brain extraction that ships: `python benchmarks/train_brain_mask.py DIR --out FOLDER`.

This part is supervised. DIR holds label maps of whole heads at 2 mm, `head-NN_2mm.nii.gz` (GitHub BBillot/SynthSeg, data/training_label_maps,
Apache-2.0: FreeSurfer's ids inside the brain, SimNIBS' ids outside), of which 17 to 20 are kept for validation, and scans of whole heads with FreeSurfer's
segmentation, `NAME_T1w.nii.gz` beside `NAME_dseg.nii.gz` (GitHub hebbianloop/FreeSurfer-Training-Data). Images are drawn from the label maps with random
contrast; both kinds are deformed, cropped, defaced, stripped, and imaged by a random scanner.

The brain is the region labelled as tissue or ventricles, closed by 8 mm and filled: fluid in the sulci belongs to it,
fluid around the brain does not.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.losses import DiceLoss
from monai.utils import set_determinism
from scipy import ndimage
from torch.nn import functional as F

from fedsr_monai.device import bfloat16_pays, find_device
from fedsr_monai.handlers import save_checkpoint
from fedsr_monai.networks.brain_network import SPACING, brain_network, scaled
from fedsr_monai.networks.weights import read_weights
from fedsr_monai.synthesis.draws import chance, uniform
from fedsr_monai.synthesis.random_appearance import _blur, _filter
from fedsr_monai.synthesis.random_deformation import smooth_noise

CLOSING = 8.0  # mm
HELD_OUT = ("17", "18", "19", "20")
FLUID, NO_BRAIN = 24, 165
# Signal in a T1-weighted image and its standard deviation over scans; cerebral white matter is 1.
T1 = {
    (2, 41, 251, 252, 253, 254, 255): (1.0, 0.0),
    (3, 42, 17, 53, 18, 54, 26, 58): (0.68, 0.06),
    (8, 47): (0.68, 0.06),
    (7, 46): (0.97, 0.03),
    (16, 28, 60, 85): (0.92, 0.04),
    (10, 49): (0.85, 0.04),
    (11, 50, 12, 51): (0.74, 0.05),
    (13, 52): (0.88, 0.05),
    (4, 5, 14, 15, 24, 43, 44, 72): (0.2, 0.08),
    (512,): (0.9, 0.08),
    (511,): (0.75, 0.25),
    (515,): (0.1, 0.05),
    (516,): (0.7, 0.3),
    (506,): (0.25, 0.1),
    (514, 502, 30, 62): (0.7, 0.35),
    (507, 508, 509): (0.65, 0.15),
}
FAT, DURA, AIR = 2000, 2001, 2002  # parts of the labels of soft tissue, fluid and nothing
BACKGROUND = 0


class Head:
    """A label map or a scan, and where its brain is, along the axes of space.

    Attributes:
        volume: ids (an index into `ids`, uint8) or intensities (float32) of all voxels, with a border of 0; flat.
        brain: bool, of all voxels.
        shape: shape of the volume with its border.
        ids: the label ids; None for a scan.
        affine: [4, 4].
        points: some points of the brain, [N, 3] in mm.
    """

    def __init__(self, volume: np.ndarray, labels: np.ndarray, affine: np.ndarray, drawn: bool) -> None:
        step = np.linalg.norm(affine[:3, :3], axis=0)
        tissue = (labels > 0) & (labels < NO_BRAIN) & (labels != FLUID) if drawn else labels > 0
        brain = closed(tissue, step)
        self.ids = None
        if drawn:
            labels = labels.astype(np.int64)
            outside = (labels >= NO_BRAIN) & (labels != 512)
            labels[(labels == FLUID) & (ndimage.distance_transform_edt(~outside, sampling=step) < 2.5)] = DURA
            inside = ndimage.binary_fill_holes(labels > 0)
            labels[inside & (labels == 0)] = AIR
            self.ids = np.unique(np.append(labels, FAT))
            volume = np.searchsorted(self.ids, labels)
        self.shape = tuple(n + 2 for n in volume.shape)
        kind = np.uint8 if drawn else np.float32
        self.volume, self.brain = (torch.from_numpy(np.pad(v, 1).ravel()) for v in (volume.astype(kind), brain))
        self.affine = affine @ np.array([[1, 0, 0, -1], [0, 1, 0, -1], [0, 0, 1, -1], [0, 0, 0, 1.0]])
        self.points = np.argwhere(brain)[::50] @ affine[:3, :3].T + affine[:3, 3]


def closed(tissue: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Close a mask by 8 mm and fill its holes; `step` is the size of a voxel in mm."""
    room = np.ceil(CLOSING / step).astype(int) + 1
    voxels = np.argwhere(tissue)
    box = tuple(slice(low, high + 1) for low, high in zip(voxels.min(0), voxels.max(0)))
    padded = np.pad(tissue[box], [(n, n) for n in room])
    near = ndimage.distance_transform_edt(~padded, sampling=step) <= CLOSING
    brain = ndimage.binary_fill_holes(ndimage.distance_transform_edt(near, sampling=step) > CLOSING) | padded
    whole = np.zeros(tissue.shape, bool)
    whole[box] = brain[tuple(slice(n, -n) for n in room)]
    return whole


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    image = nib.as_closest_canonical(nib.load(path))
    return np.asarray(image.dataobj), image.affine


def read_heads(folder: Path, scans: list[str], held_out: bool) -> list[Head]:
    """Read the label maps in a folder that are held out (or those that are not), and the named scans."""
    heads = []
    for path in sorted(folder.rglob("head-*_2mm.nii.gz")):
        if (path.name[5:7] in HELD_OUT) == held_out:
            labels, affine = read(path)
            heads.append(Head(labels, labels, affine, drawn=True))
    for name in scans:
        path = folder / f"{name}_T1w.nii.gz"
        image, affine = read(path)
        heads.append(Head(image / 110.0, read(folder / f"{name}_dseg.nii.gz")[0], affine, drawn=False))
    return heads


class RandomHead:
    """Draw images of heads with their brains; all draws come from torch's global generator."""

    def __init__(self, heads: list[Head], scans: float, any_contrast: float, stripped: float) -> None:
        self.drawn = [head for head in heads if head.ids is not None]
        self.scans = [head for head in heads if head.ids is None]
        self.share, self.any_contrast, self.stripped = scans if self.scans else 0.0, any_contrast, stripped

    @torch.no_grad()
    def __call__(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return an image [1, 1, D, H, W] as `scaled` gives it, and the fraction of brain in each voxel."""
        pool = self.scans if chance(self.share) else self.drawn
        head = pool[int(torch.randint(0, len(pool), ()))]
        shape = tuple(8 * int(torch.randint(7, 11, ())) for _ in range(3))
        points, places = pose(head, shape)
        look = appearance(shape, head.ids, self.any_contrast) if head.ids is not None else None
        image, brain = torch.zeros(shape), torch.zeros(shape)
        for index in places:
            found = head.volume[index]
            image += found if look is None else look(found)
            brain += head.brain[index]
        image, brain = (volume[None, None] / len(places) for volume in (image, brain))
        image = image * (
            1 + uniform(0, 0.1) * smooth_noise(shape, 4, 1, image.device) + uniform(0, 0.06) * torch.randn_like(image)
        )
        image, brain = scanner(image, brain, points, chance(self.stripped))
        if chance(0.5):
            image, brain = image.flip(2), brain.flip(2)
        return scaled(image), brain


def pose(head: Head, shape: tuple[int, ...]) -> tuple[np.ndarray, list[torch.Tensor]]:
    """Draw a pose and a deformation of the head in a box of 3 mm voxels.

    Returns:
        Some points of the brain in voxels of the box; and, for eight points in each voxel of the box, the index [D, H,
        W] of the nearest voxel of the head.
    """
    wide = chance(0.1)  # a head on its side
    angles = torch.empty(3).uniform_(-1, 1) * math.radians(60 if wide else 20)
    generator = torch.zeros(3, 3)
    generator[[2, 0, 1], [1, 2, 0]] = angles
    turn = torch.matrix_exp(generator - generator.T)
    turn = turn @ torch.diag(uniform(0.8, 1.15) * (1 + 0.05 * torch.randn(3)).clamp(0.85, 1.15))
    matrix = turn.double().numpy()  # from the head to the box, mm
    centre, size = head.points.mean(0), SPACING * np.array(shape)
    spread = (head.points - centre) @ matrix.T
    slack = np.maximum(size / 2 - np.abs(spread).max(0), 0)
    shift = np.array([uniform(-1, 1) for _ in range(3)]) * (slack + (12.0 if chance(0.3) else 0.0))
    if chance(0.5):  # scans are wide enough for the top of the head and reach down the neck
        shift[2] = abs(shift[2])
    middle = size / 2 + shift
    inverse = np.linalg.inv(head.affine[:3, :3]) @ np.linalg.inv(matrix)
    offset = np.linalg.inv(head.affine) @ [*centre, 1]
    bend = uniform(0, 3) * smooth_noise(shape, uniform(20, 50) / SPACING, 3, torch.device("cpu"))[0]
    lines = [(torch.arange(n) + 0.5) * SPACING - m for n, m in zip(shape, middle)]
    position = [line.view([-1 if a == axis else 1 for a in range(3)]) + bend[axis] for axis, line in enumerate(lines)]
    m = torch.from_numpy(inverse).float()
    voxel = [m[a, 0] * position[0] + m[a, 1] * position[1] + m[a, 2] * position[2] + float(offset[a]) for a in range(3)]
    places = []
    for corner in product((-SPACING / 4, SPACING / 4), repeat=3):
        step, index = inverse @ corner, torch.zeros(shape, dtype=torch.int32)
        for a, n in enumerate(head.shape):  # what is outside the head's volume falls on its border, which is empty
            index = index * n + (voxel[a] + float(step[a])).round_().clamp_(0, n - 1).int()
        places.append(index)
    return (spread + middle) / SPACING - 0.5, places


def appearance(shape: tuple[int, ...], ids: np.ndarray, any_contrast: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """Draw a contrast: a function from labels [D, H, W] of 3 mm voxels (indices into `ids`) to intensities."""
    index = {int(value): i for i, value in enumerate(ids)}
    random = chance(any_contrast)
    means = torch.empty(len(ids)).uniform_(0, 1.2)
    for group, (mean, spread) in T1.items():
        common = uniform(0.02, 1.2) if random else mean + spread * float(torch.randn(()))
        for value in group:
            if value in index:
                means[index[value]] = common + 0.03 * float(torch.randn(()))
    if random:
        means[[index[k] for k in (0, AIR)]] = 0.0
        means[index[515]] = uniform(0, 0.3) if chance(0.7) else uniform(0, 1)
        means[index[FAT]] = uniform(0, 1.3)
    else:
        means[[index[k] for k in (0, AIR)]] = uniform(0, 0.05)
        means[index[FAT]] = uniform(0.7, 1.6)
    dark = means[index[FLUID]]
    means[index[DURA]] = dark if chance(0.4) else uniform(0.1, 1.0)
    means = means.clamp(0.0, 1.6)
    noise = smooth_noise(shape, uniform(1.2, 3), 1, means.device)[0, 0]
    slow, fat = 1 + uniform(0.0, 0.08) * noise, noise > uniform(-1.0, 1.0)
    dark = noise > uniform(-1, 3)  # the meninges do not shine everywhere

    def look(labels: torch.Tensor) -> torch.Tensor:
        labels = labels.masked_fill((labels == index[507]) & fat, index[FAT])
        return means[labels.masked_fill((labels == index[DURA]) & dark, index[FLUID]).int()] * slow

    return look


def scanner(
    image: torch.Tensor, brain: torch.Tensor, points: np.ndarray, stripped: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Simulate defacing, skull-stripping, cropping and imaging of a head [1, 1, D, H, W] of 3 mm voxels; `points` of the brain are in voxels."""
    shape, device = image.shape[2:], image.device
    x, y, z = torch.meshgrid(*[torch.arange(n, dtype=torch.float32) for n in shape], indexing="ij")

    def noise(millimetres: float) -> torch.Tensor:
        return smooth_noise(shape, millimetres / SPACING, 1, device)

    image = image.clamp_min(0) ** uniform(0.7, 1.4)
    image = image * torch.exp(uniform(0.0, 0.5 if chance(0.3) else 0.25) * noise(uniform(60, 140)))
    if chance(0.3):  # a coil near a part of the head
        centre = [uniform(-0.2, 1.2) * n for n in shape]
        distance = ((x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2).sqrt() * SPACING
        image = image * (0.4 + uniform(0, 2) * torch.exp(-((distance / uniform(60, 150)) ** 2)))
    seen = torch.ones(shape, dtype=torch.bool)
    kept = torch.ones(shape, dtype=torch.bool)
    if stripped:
        wide = _filter(brain, 3 * [torch.exp(-0.5 * (torch.arange(-4, 5) * SPACING / 4.0) ** 2)])
        slope = 1 / (math.sqrt(2 * math.pi) * 4.0)
        border = uniform(-0.3, 5.0) + uniform(0.3, 2.5) * noise(15)
        mask = wide > (0.5 - slope * border).clamp(0.03, 0.65)
        if chance(0.7):  # what an extraction leaves: eyes, dura, neck
            reach = uniform(0.5, 1.5)
            far = _filter(wide, 3 * [torch.ones(11)]) > 0.001
            mask = mask | (far & (noise(uniform(12, 40)) > reach))
        if chance(0.3):
            image = image * (image > uniform(0.05, 0.35))
        kept = mask[0, 0]
        seen = seen & kept
    else:
        if chance(0.35):  # the face is taken away along a plane in front of and below the brain
            angle = math.radians(uniform(15, 75))
            normal = np.array([0, math.cos(angle), -math.sin(angle)])
            edge = (points @ normal).max() + uniform(-1.0, 10.0)
            face = y * normal[1] + z * normal[2] > edge
            if chance(0.5):
                face = face & (z < points[:, 2].mean() + uniform(-10, 12))
            seen = seen & ~face
        if chance(0.35):
            seen = seen & (z > points[:, 2].min() - uniform(-4, 20))
        if chance(0.1):
            seen = seen & (z < points[:, 2].max() + uniform(-3, 3))
        if chance(0.1):
            seen = seen & (abs(x - float(points[:, 0].mean())) < np.ptp(points[:, 0]) / 2 + uniform(-2, 2))
    sigma = torch.empty(3).uniform_(0.0, 0.6)
    image = _blur(image, sigma.tolist())
    if chance(0.2):  # thick slices
        axis, step = int(torch.randint(0, 3, ())), int(torch.randint(2, 4, ()))
        size = [n if a != axis else max(1, n // step) for a, n in enumerate(shape)]
        image = F.interpolate(F.adaptive_avg_pool3d(image, size), shape, mode="trilinear")
    level = uniform(0.0, 0.03 if chance(0.6) else 0.12)
    image = torch.hypot(image + level * torch.randn_like(image), level * torch.randn_like(image))
    if not stripped and chance(0.4):  # the background is erased
        image = image * (_blur(image, 3 * [1.0]) > uniform(0.02, 0.1) + level)
    image = image * seen
    return image.clamp_min(0), brain * (seen | (stripped & (brain > 0.99)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scans", nargs="*", default=[f"heads3t/sub-{n}" for n in ("01", "02", "09")])
    parser.add_argument(
        "--steps", type=int, default=4000, help="the learning rate falls to a hundredth along half a cosine"
    )
    parser.add_argument(
        "--scan-share", type=float, default=0.5, help="share of draws that are of a scan, not of a label map"
    )
    parser.add_argument(
        "--any-contrast", type=float, default=0.15, help="share of drawn contrasts that are not T1-like"
    )
    parser.add_argument("--stripped", type=float, default=0.0, help="share of draws without skull")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--weights", type=Path, help="begin with these instead of random ones")
    parser.add_argument("--device")
    options = parser.parse_args()
    set_determinism(options.seed)
    device = find_device(options.device)
    shares = options.scan_share, options.any_contrast, options.stripped
    draw = RandomHead(read_heads(options.folder, options.scans, held_out=False), *shares)
    validation = fixed_draws(read_heads(options.folder, [], held_out=True), shares, 24)
    network = brain_network().to(device)
    if options.weights:
        network.load_state_dict(read_weights(options.weights))
    optimizer = torch.optim.Adam(network.parameters(), options.rate)
    dice, mean = DiceLoss(sigmoid=True), copy.deepcopy(network)
    state, first = options.out / "state.pt", 0
    if state.is_file():
        saved = torch.load(state, weights_only=True)
        for part, name in ((network, "network"), (mean, "mean"), (optimizer, "optimizer")):
            part.load_state_dict(saved[name])
        first = saved["step"]
        torch.manual_seed(options.seed + first)
    options.out.mkdir(parents=True, exist_ok=True)
    total, started = 0.0, time.time()
    for step in range(first + 1, options.steps + 1):
        done = step / options.steps
        for group in optimizer.param_groups:
            group["lr"] = options.rate * (0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2) * min(1, step / 50)
        image, brain = (volume.to(device) for volume in draw())
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16_pays(device)):
            logits = network(image)
        loss = F.binary_cross_entropy_with_logits(logits.float(), brain) + dice(logits.float(), brain)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        decay = min(0.995, step / (step + 10))
        for own, new in zip(mean.parameters(), network.parameters()):
            own.data.lerp_(new.data, 1 - decay)
        total += float(loss.detach())
        if step % 200 == 0 or step == options.steps:
            found = validate(mean, validation, device)
            print(
                f"{step} {time.time() - started:.0f} s loss {total / 200:.4f} Dice {found.mean():.4f} least {found.min():.4f}",
                flush=True,
            )
            total = 0.0
            parts = {"network": network, "mean": mean, "optimizer": optimizer}
            save_checkpoint({name: part.state_dict() for name, part in parts.items()} | {"step": step}, state)
            write(mean, options.out / "brain_mask.safetensors")


def fixed_draws(
    heads: list[Head], shares: tuple[float, float, float], number: int
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draw = RandomHead(heads, *shares)
        return [draw() for _ in range(number)]


@torch.no_grad()
def validate(network: torch.nn.Module, draws: list, device: torch.device) -> np.ndarray:
    """Return the Dice of the brain mask in each drawn image."""
    scores = []
    for image, brain in draws:
        own, other = network(image.to(device)).cpu() > 0, brain > 0.5
        scores.append(2 * float((own & other).sum()) / float(own.sum() + other.sum() + 1e-6))
    return np.array(scores)


def write(network: torch.nn.Module, path: Path) -> None:
    save_checkpoint({key: value.cpu().half() for key, value in network.state_dict().items()}, path)


if __name__ == "__main__":
    main()
