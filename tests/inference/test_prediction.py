from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, CopyItemsd

from fedsr_monai.inference.interleaved import InterleavedInferer, on_network_grid
from fedsr_monai.inference.prediction import ask, flip_average, label
from fedsr_monai.inference.workflow import Workflow
from fedsr_monai.networks import FedSRNet
from fedsr_monai.spatial.grid import Grid
from fedsr_monai.transforms import ResampleToGridd
from fedsr_monai.transforms.local_intensities import with_intensities


@pytest.fixture
def workflow(phantom) -> Workflow:
    torch.manual_seed(0)
    network = FedSRNet().set_atlas(*phantom).eval()
    grid = Grid(np.diag([-6.0, 6.0, 6.0, 1.0]), (32, 32, 32))
    inferer = InterleavedInferer(grid)
    return Workflow(network, grid, torch.device("cpu"), Path("model.pt"), Compose([]), inferer, Compose([]))


@pytest.fixture
def scan(phantom) -> torch.Tensor:
    return phantom[0].roll(3, dims=1)[None]


@torch.no_grad()
def test_the_average_does_not_change_with_the_side(workflow, scan):
    averaged = ask(workflow, scan, register=False, accurate=True).logits
    mirrored = ask(workflow, scan.flip(2), register=False, accurate=True).logits
    torch.testing.assert_close(averaged, mirrored.flip(1), rtol=0, atol=1e-4)
    plain = ask(workflow, scan, register=False).logits
    assert not torch.allclose(plain, averaged, atol=1e-3)
    torch.testing.assert_close(averaged, flip_average(workflow, scan, plain[None])[0])


@torch.no_grad()
def test_the_mirror_stands_across_left_and_right(workflow, scan):
    turned = Grid(workflow.grid.affine[:, [1, 0, 2, 3]], workflow.grid.shape)  # here left and right are the second axis
    turned_workflow = Workflow(**{**workflow.__dict__, "grid": turned})
    logits = workflow.network(scan)
    expected = (logits + workflow.network(scan.flip(3)).flip(3)) / 2
    torch.testing.assert_close(flip_average(turned_workflow, scan, logits), expected)


@torch.no_grad()
def test_both_heads_in_one_pass(workflow, scan, monkeypatch):
    logits, ddf = workflow.network(scan)[0], workflow.network.register(scan)[0][0]
    passes = []
    original = workflow.network.encoder.forward
    monkeypatch.setattr(
        workflow.network.encoder, "forward", lambda image: passes.append(image.shape) or original(image)
    )
    answer = ask(workflow, scan, register=True)
    assert torch.equal(answer.logits, logits) and torch.equal(answer.ddf, ddf)
    assert len(passes) == 2  # the scan and the atlas


@torch.no_grad()
def test_a_finer_scan_is_answered_voxel_by_voxel(workflow, scan, monkeypatch):
    fine = torch.nn.functional.interpolate(scan, scale_factor=2, mode="trilinear")
    seen = []
    assert torch.equal(workflow.inferer(fine, lambda image: seen.append(image.shape) or image), fine)  # each voxel once
    assert seen == 8 * [(1, 1, 32, 32, 32)]

    answer = ask(workflow, fine, register=True)
    coarse = ask(workflow, on_network_grid(fine, workflow.grid), register=True)
    assert torch.equal(on_network_grid(answer.logits, workflow.grid), coarse.logits)
    assert torch.equal(answer.ddf, coarse.ddf)  # the registration stays on the network's grid
    shifted = workflow.network(fine[:, :, 1::2, ::2, 1::2])
    torch.testing.assert_close(answer.logits[:, 1::2, ::2, 1::2], shifted[0])

    averaged = ask(workflow, fine, register=False, accurate=True).logits
    mirrored = ask(workflow, fine.flip(2), register=False, accurate=True).logits
    torch.testing.assert_close(averaged, mirrored.flip(1), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("spacing", "counts"), [(3.0, True), (6.0, False)])
def test_the_refinement_sees_the_intensities_of_finer_scans_alone(workflow, scan, monkeypatch, spacing, counts):
    targets = []

    def refine(ddf, atlas, logits, steps):
        targets.append(logits)
        return ddf

    monkeypatch.setattr("fedsr_monai.inference.prediction.refine_registration", refine)
    factor = round(6 / spacing)
    voxels = scan[0].repeat_interleave(factor, 1).repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    affine = workflow.grid.affine @ np.diag([1 / factor, 1 / factor, 1 / factor, 1])
    preprocessing = Compose([CopyItemsd("image", names="scan"), ResampleToGridd("image", workflow.grid)])
    changed = Workflow(**{**workflow.__dict__, "preprocessing": preprocessing})
    read = MetaTensor(voxels, affine=torch.as_tensor(affine))
    data, image, answer = label(changed, read, register=True, refine=1)
    assert torch.equal(data["scan"].as_tensor(), voxels)
    network = answer.logits[None]
    assert torch.equal(targets[0], network) != counts
    if counts:
        expected = with_intensities(network[0], workflow.grid.affine, voxels, affine)
        assert torch.equal(targets[0][0], expected)


def test_an_image_on_another_grid_is_an_error(workflow):
    with pytest.raises(ValueError, match=r"\(1, 33, 32\)|\(32, 33, 32\)"):
        workflow.inferer(torch.zeros(1, 1, 32, 33, 32), workflow.network)
