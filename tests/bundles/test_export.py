"""The bundles as TorchScript and ONNX: the same labels as from the Python network, in programs without this package."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from monai.bundle import ckpt_export, onnx_export
from monai.data import load_net_with_metadata

from fedsr_monai.atlas.standard import standard_atlas
from fedsr_monai.bundle_path import bundle_path
from fedsr_monai.networks import FedSRNet
from fedsr_monai.networks.weights import load_weights

pytestmark = pytest.mark.slow

SHAPE = [1, 1, 32, 32, 32]


@pytest.fixture(params=["fedsr_encoder", "fedsr_site"])
def bundle(request) -> Path:
    return bundle_path(request.param)


@pytest.fixture
def scan() -> torch.Tensor:
    """The middle of the atlas' brain, of `SHAPE`, at the spacing of the weights: they find structures in it, as in no phantom."""
    image, _ = standard_atlas(2.0, (80, 96, 80))
    return image[None, :, 24:56, 32:64, 24:56].clone()


@pytest.fixture
def expected(bundle, scan) -> torch.Tensor:
    """Labels of the scan from the Python network with the weights that come with the bundle."""
    network = load_weights(FedSRNet(), bundle / "models" / "model.pt").eval()
    with torch.no_grad():
        labels = network(scan).argmax(dim=1)
    assert len(labels.unique()) > 3
    return labels


def arguments(bundle: Path, filepath: Path) -> dict:
    """What `python -m monai.bundle ..._export` gets in the bundle's README, on a smaller grid."""
    return {
        "net_id": "network_def",
        "filepath": str(filepath),
        "ckpt_file": str(bundle / "models" / "model.pt"),
        "meta_file": str(bundle / "configs" / "metadata.json"),
        "config_file": str(bundle / "configs" / "inference.json"),
    }


def test_torchscript_gives_the_same_labels(bundle, scan, expected, tmp_path):
    ckpt_export(**arguments(bundle, tmp_path / "model.ts"))
    network, meta, files = load_net_with_metadata(str(tmp_path / "model.ts"), more_extra_files=["inference.json"])
    with torch.no_grad():
        assert torch.equal(network(scan).argmax(dim=1), expected)
    written = json.loads((bundle / "configs" / "metadata.json").read_text())
    assert {key: meta[key] for key in ("name", "version", "network_data_format")} == {
        key: written[key] for key in ("name", "version", "network_data_format")
    }
    assert json.loads(files["inference.json"]) == json.loads((bundle / "configs" / "inference.json").read_text())


@pytest.fixture
def of_a_site(bundle, phantom, tmp_path) -> dict:
    """The weights that come with the bundle as the checkpoint of a site, with its atlas."""
    network = load_weights(FedSRNet(), bundle / "models" / "model.pt").set_atlas(*phantom)
    torch.save(network.state_dict(), tmp_path / "site.pt")
    return {"ckpt_file": str(tmp_path / "site.pt")}


def test_torchscript_takes_a_site_s_atlas_along(bundle, phantom, of_a_site, tmp_path):
    ckpt_export(**arguments(bundle, tmp_path / "model.ts") | of_a_site)
    assert torch.equal(torch.jit.load(tmp_path / "model.ts").atlas_label, phantom[1][None])


def test_onnx_gives_the_same_labels_and_has_no_atlas(bundle, scan, expected, of_a_site, tmp_path):
    names = {"input_names": ["image"], "output_names": ["pred"]}
    one_shape = {"use_trace": True, "input_shape": SHAPE}
    onnx_export(**arguments(bundle, tmp_path / "model.onnx") | of_a_site | one_shape, converter_kwargs=names)
    onnx.checker.check_model(str(tmp_path / "model.onnx"), full_check=True)
    shapes = [list(tensor.dims) for tensor in onnx.load(tmp_path / "model.onnx").graph.initializer]
    assert shapes and SHAPE not in shapes
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    (logits,) = session.run(["pred"], {"image": scan.numpy()})
    same = torch.from_numpy(logits).argmax(dim=1) == expected
    assert same.float().mean() > 0.999  # another program adds in another order: two labels that are equal may swap
