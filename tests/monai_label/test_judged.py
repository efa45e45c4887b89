"""The verdict on what is served; needs no MONAI Label."""

from __future__ import annotations

import pytest
import torch

from fedsr_monai.errors import UserError, UserErrors
from fedsr_monai.inference.quality import Quality
from fedsr_monai.monai_label.app import BUNDLE, make_app
from fedsr_monai.monai_label.judged import label_and_judge
from fedsr_monai.networks import FedSRNet, Prediction


@pytest.fixture
def served(tmp_path, site_folder, monkeypatch, phantom):
    """Label a scan of a site, of which both heads know the labels, with the app that serves this site."""
    logits = 8 * torch.nn.functional.one_hot(phantom[1].long(), 14).movedim(-1, 1).float()
    prediction = Prediction(logits, torch.zeros(1, 3, 32, 32, 32), phantom[0][None])
    monkeypatch.setattr(FedSRNet, "predict", lambda self, scan: prediction)
    monkeypatch.setattr(FedSRNet, "forward", lambda self, scan: logits)
    monkeypatch.setattr("fedsr_monai.transforms.resample_to_grid.FINE", 0)
    torch.save(FedSRNet().state_dict(), tmp_path / "model.pt")
    site = site_folder()
    make_app(tmp_path / "app", tmp_path / "model.pt", site)
    bundle = tmp_path / "app" / "model" / BUNDLE

    def label(name: str, **options):
        return label_and_judge(site / "images" / "test3.nii.gz", tmp_path / name, bundle, site, **options)

    return label


def test_a_result_says_what_it_is_worth(served, monkeypatch, capsys):
    labels, quality = served("good")
    assert labels.name == "test3_dseg.nii.gz" and labels.is_file()
    assert float(quality["agreement"]) > 0.99 and "scan" not in quality
    monkeypatch.setattr("fedsr_monai.inference.run.judge", lambda *_: Quality(0.8, 0.8, 0.0, 0.0))
    _, quality = served("doubtful")
    assert (quality["verdict"], quality["reasons"]) == (
        "doubtful",
        "segmentation and registration agree at a Dice of 0.80",
    )
    assert "test3.nii.gz: doubtful: segmentation and registration agree" in capsys.readouterr().err


def test_an_implausible_result_is_refused_unless_it_is_not_judged(served, monkeypatch):
    monkeypatch.setattr("fedsr_monai.inference.run.judge", lambda *_: Quality(0.2, 0.8, 0.0, 0.0))
    words = r"test3.nii.gz: found an implausible result \(.*Dice of 0.20\), expected .*switch off the option 'judge'$"
    with pytest.raises(UserError, match=words) as caught:
        served("rejected")
    assert not isinstance(caught.value, UserErrors)
    labels, quality = served("unjudged", judge=False)
    assert labels.is_file() and quality == {}
