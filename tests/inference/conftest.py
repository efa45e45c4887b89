from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from fedsr_monai.atlas.standard import standard_atlas, standard_grid
from fedsr_monai.networks import FedSRNet, Prediction


@pytest.fixture(scope="session")
def brain(tmp_path_factory) -> Path:
    """The image of the project's atlas as a scan, at 2 mm, which the shipped weights label well."""
    image, _ = standard_atlas(2.0, (80, 96, 80))
    path = tmp_path_factory.mktemp("brain") / "brain.nii.gz"
    affine = standard_grid(2.0, (80, 96, 80)).affine
    nib.save(nib.Nifti1Image((1000 * image[0].numpy()).astype(np.int16), affine), path)
    return path


@pytest.fixture
def weights(tmp_path) -> Path:
    torch.manual_seed(0)
    torch.save(FedSRNet().state_dict(), tmp_path / "model.pt")
    return tmp_path / "model.pt"


@pytest.fixture
def knows_both(monkeypatch, phantom):
    """A network of which both heads answer with the labels of the phantom, whatever they are shown."""
    image, label = phantom
    logits = 8 * torch.nn.functional.one_hot(label.long(), 14).movedim(-1, 1).float()
    prediction = Prediction(logits, torch.zeros(1, 3, *label.shape[1:]), image[None])
    monkeypatch.setattr(FedSRNet, "forward", lambda self, scan: logits)
    monkeypatch.setattr(FedSRNet, "predict", lambda self, scan: prediction)
    # It does not look at the scan, and so cannot tell the grids of a fine scan apart.
    monkeypatch.setattr("fedsr_monai.transforms.resample_to_grid.FINE", 0)
