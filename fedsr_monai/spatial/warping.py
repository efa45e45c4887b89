"""The spatial transformer: warping, integration of velocity fields, composition and resizing of displacement fields.

Displacements (``ddf``) are in voxels of their own grid; ``warp(image, ddf)(x) = image(x + ddf(x))``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn import functional as F


def warp(image: torch.Tensor, ddf: torch.Tensor, mode: str = "bilinear") -> torch.Tensor:
    """Sample ``image`` at x + ddf(x), repeating the border; the identity where the displacement is zero.

    This is a faster version of ``monai.networks.blocks.Warp``, against which it is tested. That block rebuilds its grid at
    each call, and on a CPU ``grid_sample`` runs only one thread per batch item. Here, a single volume is sampled as slabs
    along the first axis, which takes two thirds of the time on two cores. Nearest sampling looks voxels up by their index,
    in a quarter of the time and in the image's own type.

    Args:
        image: [B, C, D, H, W]; a finer grid with the same corner voxels is sampled at the same positions.
        ddf: [B, 3, D, H, W], voxels; sampled in float32 (a displacement in bfloat16 errs by whole percents of an
            image's range).
        mode: "bilinear" (trilinear, float32) or "nearest" (no gradient to the displacement).
    """
    shape = ddf.shape[2:]
    ddf = ddf.float()
    if mode == "nearest":
        return _look_up(image, ddf)
    # grid_sample's axes run last to first, and its coordinates from -1 to 1.
    axes = []
    for axis in (2, 1, 0):
        n = shape[axis]
        # Multiply before dividing: linspace, or a rounded step, would put the identity twice as far off the voxels.
        line = 2 * torch.arange(n, device=ddf.device, dtype=torch.float32) / max(n - 1, 1) - 1
        line = line.view([-1 if a == axis else 1 for a in range(3)])
        axes.append(torch.add(line, ddf[:, axis], alpha=2 / max(n - 1, 1)))
    return _sample(image, torch.stack(axes, dim=-1))


def sample(image: torch.Tensor, positions: Sequence[torch.Tensor], padding_mode: str = "border") -> torch.Tensor:
    """Sample an image [B, C, D, H, W] trilinearly at positions in its voxels, one tensor [B, d, h, w] per axis; float32.

    Outside the image, the border is repeated; with `padding_mode` "zeros", the result is 0.
    """
    axes = [positions[axis] * (2 / max(image.shape[2 + axis] - 1, 1)) - 1 for axis in (2, 1, 0)]
    return _sample(image, torch.stack(axes, dim=-1), padding_mode)


def _sample(image: torch.Tensor, grid: torch.Tensor, padding_mode: str = "border") -> torch.Tensor:
    image, (batch, *shape, _) = image.float(), grid.shape
    if batch == 1 and image.device.type == "cpu" and shape[0] % 2 == 0 and not torch.jit.is_tracing():
        slabs = grid.reshape(2, shape[0] // 2, *shape[1:], 3)
        halves = F.grid_sample(image.expand(2, *image.shape[1:]), slabs, padding_mode=padding_mode, align_corners=True)
        return torch.cat([halves[:1], halves[1:]], dim=2)
    return F.grid_sample(image, grid, padding_mode=padding_mode, align_corners=True)


def _look_up(image: torch.Tensor, ddf: torch.Tensor) -> torch.Tensor:
    # A diverged field (NaN) samples somewhere inside, as with grid_sample: it is up to the losses to reveal it.
    number = torch.zeros((), dtype=torch.long, device=ddf.device)
    for axis, (n, size) in enumerate(zip(ddf.shape[2:], image.shape[2:])):
        line = torch.arange(n, device=ddf.device).view([-1 if a == axis else 1 for a in range(3)])
        position = (ddf[:, axis] + line).mul_((size - 1) / max(n - 1, 1)).nan_to_num_().round_().clamp_(0, size - 1)
        number = number * size + position.long()
    voxels = image.flatten(2).gather(2, number.flatten(1)[:, None].expand(-1, image.shape[1], -1))
    return voxels.view(*image.shape[:2], *ddf.shape[2:])


def compose(inner: torch.Tensor, outer: torch.Tensor) -> torch.Tensor:
    """Return the displacement of x -> outer(inner(x)), all [B, 3, D, H, W].

    `warp(image, compose(a, b))` is approximately `warp(warp(image, b), a)`.
    """
    return inner + warp(outer, inner)


def integrate(velocity: torch.Tensor, steps: int | None = None) -> torch.Tensor:
    """Integrate a stationary velocity field [B, 3, D, H, W] over unit time, by scaling and squaring, to a displacement.

    The rule is that of ``monai.networks.blocks.DVF2DDF``, but it uses :func:`warp` above (the border repeated) for speed,
    and as many squarings as the field needs: enough that a strong field does not fold, and no more for a weak one.

    Args:
        velocity: velocity in voxels per unit time.
        steps: number of squarings; by default as many as make the first step, velocity / 2^steps, at most a quarter of a
            voxel along each axis (up to 10).
    """
    velocity = velocity.float()
    if steps is None and len(velocity) > 1:
        return torch.cat([integrate(one) for one in velocity.split(1)])  # so that no field depends on its batch
    if steps is None:
        largest = float(velocity.detach().abs().amax())
        steps = min(math.ceil(math.log2(4 * largest)), 10) if 0.25 < largest < math.inf else 0
    ddf = velocity / 2**steps
    for _ in range(steps):
        ddf = compose(ddf, ddf)
    return ddf


def along_axes(volume: torch.Tensor, matrices: Sequence[torch.Tensor]) -> torch.Tensor:
    """Multiply each axis of a volume [..., D, H, W], in turn, by its matrix [new size, old size]; float32.

    Products with small matrices keep all cores busy. On a CPU, ``interpolate`` uses one thread per channel, and a 3-D
    convolution of one channel takes a slow path; each is several times slower.
    """
    with torch.autocast(volume.device.type, enabled=False):  # a displacement in bfloat16 errs by tenths of a voxel
        volume = volume.float()
        for matrix in matrices:
            # Each product moves the axis to the end, so that the axes are back in order after three.
            volume = torch.tensordot(volume, matrix, dims=([-3], [1]))
    return volume


def filter_axes(volume: torch.Tensor, taps: Sequence[torch.Tensor]) -> torch.Tensor:
    """Filter a volume [..., D, H, W] along each axis by an odd number of weights, which are normalised; 0 outside the volume."""
    matrices = []
    for n, weights in zip(volume.shape[-3:], taps):
        middle = len(weights) // 2
        matrix = torch.zeros(n, n)
        for shift, weight in zip(range(-middle, middle + 1), weights / weights.sum()):
            matrix.diagonal(shift).fill_(weight)  # a filter is a matrix with its weights on the diagonals
        matrices.append(matrix.to(volume.device))
    return along_axes(volume, matrices)


def resample(volume: torch.Tensor, positions: Sequence[torch.Tensor]) -> torch.Tensor:
    """Interpolate a volume [..., D, H, W] trilinearly at all combinations of voxel coordinates, one list per axis; float32.

    Outside the volume, its border is repeated.
    """
    matrices = []
    for line, nodes in zip(positions, volume.shape[-3:]):
        distance = line.clamp(0, nodes - 1)[:, None] - torch.arange(nodes, device=line.device)
        matrices.append((1 - distance.abs()).clamp_min(0))
    return along_axes(volume, matrices)


def resize_ddf(ddf: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Resample a displacement field trilinearly to another grid over the same box, in voxels of the new grid.

    The grids of this package are nested by strides (voxel i of the coarse grid covers voxels s*i ... s*i+s-1), hence the
    half-pixel centres, and the vectors scaled by the ratio of the shapes.
    """
    if tuple(ddf.shape[2:]) == tuple(shape):
        return ddf
    ratio = torch.tensor([new / old for new, old in zip(shape, ddf.shape[2:])], device=ddf.device, dtype=ddf.dtype)
    positions = [
        (torch.arange(new, device=ddf.device) + 0.5) * (old / new) - 0.5 for new, old in zip(shape, ddf.shape[2:])
    ]
    # Scaled first: the coarse grid has fewer voxels.
    return resample(ddf * ratio[:, None, None, None], positions)


def jacobian_determinant(ddf: torch.Tensor) -> torch.Tensor:
    """Return the Jacobian determinant of `x + ddf(x)` at each voxel: the local change of volume, 1 for the identity.

    The derivatives are central differences, one-sided at the border, as in the tools of ITK and ANTs and most papers.
    They cannot see a field that flips its sign from voxel to voxel; a field integrated from velocities at half
    resolution does not do that.

    Args:
        ddf: displacements in voxels, [..., 3, D, H, W]. The spacing does not matter: it cancels out.

    Returns:
        Tensor of shape [..., D, H, W], float32.

    Raises:
        ValueError: `ddf` has another shape.
    """
    if ddf.shape[-4] != 3:
        raise ValueError(f"jacobian_determinant() expects a ddf [..., 3, D, H, W], got {tuple(ddf.shape)}")
    # rows: component of the displacement, columns: axis of the derivative
    rows = [torch.gradient(component, dim=(-3, -2, -1)) for component in ddf.float().unbind(dim=-4)]
    (a, b, c), (d, e, f), (g, h, i) = rows
    a, e, i = a + 1, e + 1, i + 1
    return a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
