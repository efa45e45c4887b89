"""Exactly labelled images drawn on the fly from the project's 1 mm anatomy, to train the weights that ship with the bundles."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F

from fedsr_monai.atlas.build import LOW_PASS, grid_affine, label_of, soft_labels
from fedsr_monai.atlas.templates import (
    ACCUMBENS,
    BASAL_FOREBRAIN,
    NUM_REGIONS,
    VENTRAL_DIENCEPHALON,
    VESSEL,
    high_resolution_templates,
)
from fedsr_monai.simulation.profiles import TISSUE
from fedsr_monai.spatial.warping import filter_axes
from fedsr_monai.synthesis.draws import chance, pick, uniform
from fedsr_monai.synthesis.random_appearance import _blur
from fedsr_monai.synthesis.random_deformation import RandomDeformation, smooth_noise
from fedsr_monai.transforms.scale_brain_intensity import scale_brain_intensity

FLUID = (0, 1, 4)


class RandomAnatomy:
    """Draw exactly labelled images from the 1 mm anatomy; used in place of `RandomAtlas`, whose labels come from the coarse grid.

    The low-passed label fractions of the regions are kept at 1 mm. Each draw mixes them to an image at 1 mm, so that partial
    volume comes for free, and samples image and label at the same deformed positions. It then adds the effects of a scanner
    and a brain extraction: fluid and bright remnants around the brain, a mask that is too narrow or too wide, with soft edges
    as if the brain had been cut out on finer voxels, blur, thick slices, bias field and noise.

    All draws come from torch's global generator.

    Args:
        spacing, shape: the grid of `grid_affine`.
        any_contrast: fraction of draws whose tissue means are drawn from the full range, not around those of a T1-weighted scan.
        any_pose: fraction of draws rotated by up to 15 degrees, shifted by up to 10 mm and scaled by 0.8 to 1.15.
        remnants: fraction of draws with patches of bright tissue around the brain.
        dilation, dilated: size and fraction of wide ventricles, see `RandomDeformation`.
    """

    def __init__(
        self,
        spacing: float = 2.0,
        shape: Sequence[int] = (80, 96, 80),
        any_contrast: float = 0.2,
        any_pose: float = 0.25,
        remnants: float = 0.3,
        dilation: float = 24.0,
        dilated: float = 0.4,
    ) -> None:
        self.spacing, self.shape = spacing, tuple(shape)
        self.any_contrast, self.any_pose, self.remnants = any_contrast, any_pose, remnants
        self.usual = RandomDeformation(spacing, zoom=(0.9, 1.08), dilation=dilation, dilated=dilated)
        self.unusual = RandomDeformation(
            spacing, rotation=15.0, zoom=(0.8, 1.15), shift=10.0, dilation=dilation, dilated=dilated
        )
        templates = high_resolution_templates()
        affine = grid_affine(spacing, shape)
        soft, near = soft_labels(tuple(LOW_PASS * np.diag(affine)[:3]))
        self.size, inside = near.shape, near.ravel()
        self.inside = torch.from_numpy(np.flatnonzero(inside))
        self.label = torch.from_numpy(label_of(soft).ravel())
        self.soft = torch.from_numpy(soft.reshape(NUM_REGIONS, -1)[:, inside])
        brain = self.soft.float().sum(dim=0) / 255
        self.brain = self._volume(brain)
        self.tissue = ((brain - self.soft[0].float() / 255).clamp(0, 1) * 255).to(torch.uint8)
        csf = torch.from_numpy(templates.csf.ravel()[inside])
        self.fluid = {
            k: (csf * self.soft[k]).to(torch.uint8) for k in (3, 13)
        }  # fluid in the fine sulci of both cortices
        self.texture = [
            torch.from_numpy(t.ravel()[inside]) for t in (templates.texture_2009c, templates.texture_mni152)
        ]
        beside = torch.from_numpy(
            np.exp(-np.maximum(templates.ventricle_distance.ravel()[inside], 0) / 4).astype(np.float32)
        )
        self.periventricular = (beside * self.soft[2]).to(torch.uint8)
        # from voxels of the grid to voxels of the anatomy; both grids run along the same axes
        step = np.linalg.inv(templates.affine) @ affine
        self.step, self.offset = np.diag(step)[:3].tolist(), step[:3, 3].tolist()

    @torch.no_grad()
    def __call__(
        self, image: torch.Tensor, label: torch.Tensor, ddf: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw a labelled image, [1, 1, D, H, W] float32 in [0, 1] and [1, 1, D, H, W] ids; arguments as for `RandomAtlas`."""
        deformation = self.unusual if chance(self.any_pose) else self.usual
        field = deformation(label.cpu(), None if ddf is None else ddf.cpu() * uniform(0, 1))
        places = []
        for axis in range(3):
            line = torch.arange(self.shape[axis]).view([-1 if a == axis else 1 for a in range(3)])
            places.append((field[0, axis] + line) * self.step[axis] + self.offset[axis])
        means = self.means()
        signal = self.mix(means)
        grid = torch.stack([places[a] * (2 / (self.size[a] - 1)) - 1 for a in (2, 1, 0)], dim=-1)[None]
        brain, signal = (F.grid_sample(v, grid, align_corners=True) for v in (self.brain, self._volume(signal)))
        found = self.scan(signal, brain, float(means[0]))
        ids = self._nearest(places)
        if chance(0.5):
            found, ids = found.flip(2), ids.flip(2)
        return found.to(image.device), ids.to(label)

    def means(self) -> torch.Tensor:
        """Draw the signal of each region, [NUM_REGIONS]; cerebral white matter is about 1."""
        if chance(self.any_contrast):
            means = torch.empty(NUM_REGIONS).uniform_(0.05, 1.1)
            means[[1, 4]] = means[0] + 0.03 * torch.randn(2)
            for region, like in (
                (ACCUMBENS, [7]),
                (VENTRAL_DIENCEPHALON, [2, 10]),
                (VESSEL, [8]),
                (BASAL_FOREBRAIN, [3]),
            ):
                means[region] = means[like].mean() + 0.04 * torch.randn(())
            return means.clamp(0.03, 1.2)
        base = torch.tensor([TISSUE[k] for k in range(NUM_REGIONS)])
        base[[3, 11, 12]] -= (
            0.02  # as in real scans of 1.5 and 3 T, where grey and white matter are also further apart than in the profiles
        )
        means = 1 + uniform(0.85, 1.25) * (base - 1) + 0.045 * torch.randn(NUM_REGIONS)
        means[[6, 7, 8, 9, ACCUMBENS]] += 0.03 * torch.randn(())  # deep grey matter rises and falls together
        means[[3, 11, 12, 13, BASAL_FOREBRAIN]] += 0.03 * torch.randn(())
        fluid = 0.24 + 0.07 * torch.randn(())
        means[list(FLUID)] = fluid + 0.03 * torch.randn(len(FLUID))
        return means.clamp(0.03, 1.3)

    def mix(self, means: torch.Tensor) -> torch.Tensor:
        """Return the noiseless signal of the voxels `inside`, at 1 mm."""
        signal = torch.zeros(len(self.inside))
        for mean, fraction in zip(means.tolist(), self.soft):
            signal.add_(fraction, alpha=mean / 255)
        sulci = uniform(0.6, 1.6)
        for k in (3, 13):
            signal.add_(self.fluid[k], alpha=sulci * float(means[0] - means[k]) / 255)
        spread = float(means[2] - means[3])  # the textures come from T1-weighted images: scale them to this contrast
        strength = uniform(0.3, 1.1) * max(min(spread / 0.34, 1.2), -1.2)
        weight = uniform(0, 1)
        signal += (weight * self.texture[0] + (1 - weight) * self.texture[1]) * (self.tissue.float() * (strength / 255))
        if chance(0.25):
            signal.add_(self.periventricular, alpha=-uniform(0, 0.3) / 255)
        return signal.clamp_(min=0.01)

    def scan(self, signal: torch.Tensor, brain: torch.Tensor, fluid: float) -> torch.Tensor:
        """Image a signal with a random scanner and cut out the brain as a brain extraction does; in [0, 1], 0 outside the mask."""
        shape, device = signal.shape[2:], signal.device

        def noise(millimetres: float) -> torch.Tensor:
            return smooth_noise(shape, millimetres / self.spacing, 1, device)

        signal = signal * (1 + 0.03 * noise(12) + 0.02 * torch.randn_like(signal))
        around = fluid * uniform(0.4, 1.4) * (1 + 0.3 * noise(4))
        if chance(0.5):  # vessels and dura
            around = torch.where(noise(4) > uniform(1.0, 2.0), uniform(0.3, 1.0), around)
        image = signal + (1 - brain) * around.clamp(0.02, 1)
        wide = filter_axes(brain, 3 * [torch.exp(-0.5 * (torch.arange(-5, 6) * self.spacing / 3.0) ** 2)])
        slope = 1 / (np.sqrt(2 * np.pi) * 3.0)  # slope of an edge that was blurred by 3 mm, per mm
        border = uniform(-0.3, 2.5) + uniform(0.3, 1.5) * noise(9)
        mask = wide > (0.5 - slope * border).clamp(0.04, 0.75)
        if chance(self.remnants):
            far = filter_axes(wide, 3 * [torch.ones(9)]) > 0.01
            patch = far & ~mask & (noise(uniform(8, 20)) > uniform(0.7, 1.7))
            image = torch.where(patch, uniform(0.3, 1.1) * (1 + 0.2 * noise(5)), image)
            mask = mask | patch
        image = image + uniform(0, 0.6) * (
            image - _blur(image, 3 * [0.7])
        )  # finer voxels than the anatomy's have sharper edges
        sigma = torch.empty(3).uniform_(0.0, 0.6)
        if chance(0.25):
            sigma[pick(3)] = uniform(0.8, 1.3)  # thick slices
        image = _blur(image, sigma.tolist()).clamp_min(0) ** uniform(0.75, 1.25)
        image = image * torch.exp(uniform(0.0, 0.1 if chance(0.5) else 0.3) * noise(uniform(40, 70)))
        level = uniform(0.003, 0.045)
        image = torch.hypot(image + level * torch.randn_like(image), level * torch.randn_like(image))
        cut = mask.float()
        if chance(0.7):  # cut out on finer voxels: the border is averaged with zeros
            cut = filter_axes(cut, 3 * [torch.tensor([0.2, 0.6, 0.2])])
            cut = torch.where(cut > 0.02, cut, 0)
        return scale_brain_intensity(image * cut, uniform(99.5, 99.9))

    def _volume(self, values: torch.Tensor) -> torch.Tensor:
        volume = torch.zeros(int(np.prod(self.size)))
        volume[self.inside] = values
        return volume.view(1, 1, *self.size)

    def _nearest(self, places: Sequence[torch.Tensor]) -> torch.Tensor:
        number, outside = torch.zeros(self.shape, dtype=torch.long), torch.zeros(self.shape, dtype=torch.bool)
        for place, size in zip(places, self.size):
            index = place.round().long()
            outside |= (index < 0) | (index >= size)
            number = number * size + index.clamp(0, size - 1)
        return torch.where(outside, 0, self.label[number])[None, None]
