"""Random anatomy: smooth random deformations of a labelled image."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from monai.networks.layers import GaussianFilter
from torch.nn import functional as F

from fedsr_monai.spatial.warping import compose, integrate, resample, resize_ddf
from fedsr_monai.synthesis.draws import chance, pick, uniform


def smooth_noise(shape: Sequence[int], step: float, channels: int, device: torch.device) -> torch.Tensor:
    """Draw unit-variance noise [1, channels, *shape] that varies over about `step` voxels.

    It is a coarse random grid, resampled trilinearly. The coarse grid has a random offset, so that its nodes leave no
    pattern over many draws.
    """
    coarse = [max(2, math.ceil(n / step) + 2) for n in shape]
    noise = torch.randn(channels, *coarse, device=device)
    positions = []
    for n, nodes in zip(shape, coarse):
        size = max(n, round(nodes * step))  # voxels over the whole coarse grid, of which n are kept
        start = pick(size - n + 1)
        positions.append((start + torch.arange(n, device=device)) * ((nodes - 1) / (size - 1)))
    noise = resample(noise, positions)
    return noise[None] / (noise.std() + 1e-6)


class RandomDeformation:
    """Draw diffeomorphic displacement fields: an affine part, velocity fields at several scales, and growth of one structure.

    All draws come from torch's global generator, so its seed reproduces the fields.

    Args:
        spacing: voxel size in millimetres.
        scales: (step, rms) of the random velocity fields in millimetres.
        strength: range of a factor that scales all of them.
        rotation: largest rotation about each axis in degrees.
        zoom: range of the isotropic scale (each axis varies by a further 4 %).
        shift: largest translation in millimetres.
        growth: largest displacement in millimetres at the boundary of the ventricles, which grow or shrink in half of the
            draws; in the other half, a structure drawn at random does, by up to 40 % of that.
        growing: label ids of the ventricles.
        dilation: largest displacement in millimetres at the walls of the lateral ventricles in draws with wide ventricles, as
            in old age; the walls of the other ventricles move by up to half as much. At 16, the lateral ventricles of the
            project's atlas (17 ml) fill up to 90 ml. `growth` is added to this.
        dilated: fraction of draws with wide ventricles.
        lateral: label id of the lateral ventricles, one of `growing`.
    """

    def __init__(
        self,
        spacing: float,
        scales: Sequence[tuple[float, float]] = ((32, 1.8), (16, 2.2), (8, 1.6), (5, 0.7)),
        strength: tuple[float, float] = (0.4, 1.25),
        rotation: float = 5.0,
        zoom: tuple[float, float] = (0.88, 1.06),
        shift: float = 3.0,
        growth: float = 4.0,
        growing: Sequence[int] = (1, 4),
        dilation: float = 0.0,
        dilated: float = 0.3,
        lateral: int = 4,
    ) -> None:
        self.spacing, self.scales, self.strength = spacing, scales, strength
        self.rotation, self.zoom, self.shift = rotation, zoom, shift
        self.growth, self.growing = growth, growing
        self.dilation, self.dilated, self.lateral = dilation, dilated, lateral

    def __call__(self, label: torch.Tensor, ddf: torch.Tensor | None = None) -> torch.Tensor:
        """Return a displacement [1, 3, D, H, W] in voxels.

        Args:
            label: label map [1, 1, D, H, W].
            ddf: a part of the current registration, [1, 3, D/2, H/2, W/2] in half-resolution voxels, so that random anatomy
                stays near real anatomy; applied first if given.
        """
        shape = tuple(n // 2 for n in label.shape[2:])
        device, millimetre = label.device, 1 / (2 * self.spacing)  # half-resolution voxels per millimetre
        strength = uniform(*self.strength)
        velocity = torch.zeros(1, 3, *shape, device=device)
        for step, rms in self.scales:
            velocity += smooth_noise(shape, step * millimetre, 3, device) * (rms * millimetre * strength)
        if self.dilation and chance(self.dilated):
            velocity += self._dilation(label, shape) * millimetre
        if self.growth:
            velocity += self._growth(label, shape) * millimetre
        field = compose(self._affine(shape, device), integrate(velocity))
        return resize_ddf(field if ddf is None else compose(field, ddf), label.shape[2:])

    def _affine(self, shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
        angles = torch.empty(3).uniform_(-1, 1) * math.radians(self.rotation)
        generator = torch.zeros(3, 3)
        generator[[2, 0, 1], [1, 2, 0]] = angles
        zoom = torch.empty(()).uniform_(*self.zoom) * (1 + 0.04 * torch.randn(3))
        matrix = torch.matrix_exp(generator - generator.T) @ torch.diag(1 / zoom) - torch.eye(3)
        shift = torch.empty(3).uniform_(-1, 1) * self.shift / (2 * self.spacing)
        axes = [torch.arange(n, dtype=torch.float32) - (n - 1) / 2 for n in shape]
        position = torch.stack(torch.meshgrid(*axes, indexing="ij"))
        return (torch.einsum("ij,jdhw->idhw", matrix, position) + shift[:, None, None, None])[None].to(device)

    def _growth(self, label: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        if chance(0.5):
            mask = torch.isin(label, torch.tensor(self.growing, device=label.device, dtype=label.dtype))
            largest = self.growth
        else:
            mask = label == 1 + pick(int(label.max()))
            largest = 0.4 * self.growth
        width = 8.0 * (0.5 + float(torch.rand(())))
        return self._outward(mask, shape, width) * (largest * uniform(-0.6, 1))

    def _dilation(self, label: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        velocity = torch.zeros(1, 3, *shape, device=label.device)
        for k in self.growing:
            largest = self.dilation if k == self.lateral else 0.5 * self.dilation
            width = uniform(4, 8)
            velocity += self._outward(label == k, shape, width) * (largest * float(torch.rand(())))
        return velocity

    def _outward(self, mask: torch.Tensor, shape: tuple[int, ...], width: float) -> torch.Tensor:
        """Return velocities of at most 1 that enlarge a structure; they fade over `width` mm.

        Sampling against the outward normal of a structure pulls its boundary outwards.
        """
        soft = F.adaptive_avg_pool3d(mask.float(), (shape[0], shape[1], shape[2]))
        soft = GaussianFilter(3, sigma=width / (2 * self.spacing)).to(mask.device)(soft)
        inward = torch.cat(torch.gradient(soft, dim=(2, 3, 4)), dim=1)
        return inward / (inward.square().sum(dim=1).sqrt().max() + 1e-6)
