from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from monai.networks.blocks import Warp

from fedsr_monai.errors import UserError
from fedsr_monai.evaluation import evaluate_network
from fedsr_monai.evaluation.tables import CASE_COLUMNS, METRIC_COLUMNS, read_measures
from fedsr_monai.networks.fedsr_net import Prediction
from fedsr_monai.simulation.sites import RECORD
from fedsr_monai.sites.site import load_site
from fedsr_monai.sites.writing import write_site
from fedsr_monai.spatial.nifti import write_volume

SHAPE = (16, 18, 14)
SPACING = (3.0, 2.0, 4.0)


def scan(shift=0):
    """A body with two structures, moved along the first axis."""
    label = np.zeros(SHAPE, np.uint8)
    label[3:7, 4:9, 3:8], label[7:11, 4:9, 3:8] = 6, 8
    image = np.linspace(0.1, 0.9, label.size, dtype=np.float32).reshape(SHAPE) * (label > 0)
    return np.roll(image, shift, 0), np.roll(label, shift, 0)


class FakeNetwork(torch.nn.Module):
    """Segments by a rule that misses label 8, and registers by a given shift: all is known in advance."""

    def __init__(self, shift):
        super().__init__()
        image, label = scan()
        self.register_buffer("atlas_image", torch.from_numpy(image)[None, None])
        self.register_buffer("atlas_label", torch.from_numpy(label)[None, None])
        self.shift = shift

    def predict(self, image):
        assert not self.training and not torch.is_grad_enabled()
        logits = torch.zeros(1, 14, *SHAPE)
        logits[:, 6] = torch.where(image[:, 0] > 0, 1.0, -1.0)
        ddf = torch.zeros(1, 3, *SHAPE)
        ddf[:, 0] = -self.shift
        return Prediction(logits, ddf, Warp()(self.atlas_image, ddf))

    def warp_labels(self, ddf):
        return Warp(mode="nearest")(self.atlas_label.float(), ddf).to(torch.uint8)


@pytest.fixture
def make_site(tmp_path):
    def make(name, shifts, labelled=True, shape_of=lambda volume: volume):
        root = tmp_path / name
        affine = np.diag([*SPACING, 1.0])
        test = []
        write_volume(root / "images" / "train.nii.gz", scan()[0], affine)
        for shift in shifts:
            image, label = scan(shift)
            write_volume(root / "images" / f"s{shift}.nii.gz", shape_of(image), affine)
            write_volume(root / "labels" / f"s{shift}.nii.gz", shape_of(label), affine)
            test.append({"image": f"images/s{shift}.nii.gz", "label": f"labels/s{shift}.nii.gz"})
        write_site(root, name, *scan(), affine, [{"image": "images/train.nii.gz"}], test=test if labelled else [])
        return load_site(root)

    return make


def dice(rows, case, task, structure):
    (row,) = [r for r in rows if (r["case"], r["task"], r["structure"]) == (case, task, structure)]
    return row["dice"]


def test_the_three_tasks(make_site, tmp_path):
    site = make_site("a", [0, 2])
    network = FakeNetwork(shift=2).train()
    rows = evaluate_network(network, site, out_dir=tmp_path / "evaluation")
    assert network.training
    assert len(rows) == 2 * 3 * 13
    assert dice(rows, "s0", "unregistered", "thalamus") == 1
    assert dice(rows, "s2", "unregistered", "thalamus") == pytest.approx(0.5)
    assert dice(rows, "s2", "registration", "thalamus") == dice(rows, "s2", "registration", "putamen") == 1
    assert dice(rows, "s0", "registration", "thalamus") == pytest.approx(0.5)  # the fake always shifts
    assert dice(rows, "s2", "segmentation", "thalamus") == pytest.approx(2 / 3)
    assert dice(rows, "s2", "segmentation", "putamen") == 0
    missed = [(row["task"], row["structure"]) for row in rows if row["missed"]]
    assert missed == [("segmentation", "putamen")] * 2
    (moved,) = [r for r in rows if (r["case"], r["task"], r["structure"]) == ("s2", "unregistered", "putamen")]
    assert moved["hd95_mm"] == pytest.approx(2 * SPACING[0])


def test_the_evaluation_folder(make_site, tmp_path):
    out = tmp_path / "evaluation"
    rows = evaluate_network(FakeNetwork(shift=2), make_site("a", [0, 2, 1]), out_dir=out, keep_figures=2)
    back = read_measures(out / "metrics.csv", METRIC_COLUMNS)
    assert [r["structure"] for r in back] == [r["structure"] for r in rows]
    cases = {case["case"]: case for case in read_measures(out / "cases.csv", CASE_COLUMNS)}
    assert cases["s2"]["ncc_registration"] == pytest.approx(1, abs=1e-5) and cases["s2"]["ncc_unregistered"] < 0.9
    # thalamus: all of the body against the warped half of it, putamen: nothing
    assert cases["s2"]["head_agreement"] == pytest.approx((2 / 3 + 0) / 2)
    assert cases["s0"]["ncc_unregistered"] == pytest.approx(1) and cases["s0"]["folded_percent"] == 0
    summary = json.loads((out / "metrics.json").read_text())
    assert summary["sites"]["a"]["tasks"]["segmentation"]["missed"] == 3
    assert summary["data"]["a"]["section"] == "test" and summary["data"]["a"]["simulated"] is False
    assert sorted(path.name for path in (out / "cases" / "a").iterdir()) == ["s0.npz", "s2.npz"]
    with np.load(out / "cases" / "a" / "s2.npz") as volumes:
        assert set(volumes) == {
            "image", "label", "segmentation", "atlas_image", "warped_image", "warped_label", "ddf", "spacing",
        }  # fmt: skip
        assert volumes["ddf"].dtype == np.float16 and volumes["ddf"].shape == (3, *SHAPE)
        assert volumes["segmentation"].shape == SHAPE and volumes["segmentation"].dtype == np.uint8
        np.testing.assert_array_equal(volumes["label"], scan(2)[1])


def test_sites_share_a_folder_and_an_evaluation_replaces_the_former(make_site, tmp_path):
    out = tmp_path / "evaluation"
    a, b = make_site("a", [0, 2]), make_site("b", [1])
    for site, shift in ((a, 0), (b, 1), (a, 2)):
        evaluate_network(FakeNetwork(shift), site, out_dir=out)
    rows = read_measures(out / "metrics.csv", METRIC_COLUMNS)
    assert len(rows) == 3 * 3 * 13
    assert dice(rows, "s2", "registration", "thalamus") == 1  # of the second evaluation
    summary = json.loads((out / "metrics.json").read_text())
    assert set(summary["sites"]) == set(summary["data"]) == {"a", "b"}
    assert summary["all"]["tasks"]["unregistered"]["cases"] == 3


def test_a_simulated_site_is_remembered(make_site, tmp_path):
    site = make_site("a", [0])
    (site.root / RECORD).write_text("{}")  # what `simulate_sites` leaves in its folders
    evaluate_network(FakeNetwork(0), site, out_dir=tmp_path / "evaluation")
    assert json.loads((tmp_path / "evaluation" / "metrics.json").read_text())["data"]["a"]["simulated"] is True


def test_nothing_labelled_is_said(make_site):
    site = make_site("a", [0], labelled=False)
    with pytest.raises(UserError, match="no labelled scan in 'test'") as raised:
        evaluate_network(FakeNetwork(0), site)
    assert raised.value.where == str(site.root)


def test_another_grid_is_said_by_file(make_site, tmp_path):
    site = make_site("a", [0], shape_of=lambda volume: volume[:-2])
    network = FakeNetwork(0).train()
    with pytest.raises(UserError, match=r"\(14, 18, 14\).*\(16, 18, 14\)") as raised:
        evaluate_network(network, site, out_dir=tmp_path / "evaluation")
    assert raised.value.where == site.test[0]["image"]
    assert network.training and not (tmp_path / "evaluation").exists()


def test_figures_of_metrics_csv_are_plain_numbers(make_site, tmp_path):
    evaluate_network(FakeNetwork(0), make_site("a", [0]), out_dir=tmp_path, keep_figures=0)
    with open(tmp_path / "metrics.csv", newline="") as file:
        first = next(csv.DictReader(file))
    assert list(first) == list(METRIC_COLUMNS) and first["dice"] == "nan" and first["reference_ml"] == "0"
    assert not (tmp_path / "cases").exists()
