"""The bundles in programs that know nothing of this package: MONAI's own loaders, the model zoo's check, MONAI
Deploy.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow, ckpt_export, create_workflow, load, verify_net_in_out
from monai.data import MetaTensor
from monai.transforms import Compose

from fedsr_monai.atlas.build import build_atlas
from fedsr_monai.bundle_path import bundle_path
from fedsr_monai.networks import FedSRNet
from fedsr_monai.networks.weights import load_weights
from fedsr_monai.spatial.nifti import write_volume


@pytest.fixture(params=["fedsr_encoder", "fedsr_site"])
def bundle(request, tmp_path, monkeypatch) -> Path:
    """The folder of a bundle; the working directory is another one."""
    monkeypatch.chdir(tmp_path)
    return bundle_path(request.param)


@pytest.fixture
def expected(bundle, phantom) -> torch.Tensor:
    """Logits of the phantom from the weights that come with the bundle."""
    network = load_weights(FedSRNet(), bundle / "models" / "model.pt").eval()
    with torch.no_grad():
        return network(phantom[0][None])


def logits(network: torch.nn.Module, phantom) -> torch.Tensor:
    with torch.no_grad():
        return network.eval()(phantom[0][None])


# -- MONAI
# ----------------------------------------------------------------------------------------------------------------


def test_monai_bundle_load_gives_the_weights_of_the_bundle(bundle, phantom, expected):
    network = load(bundle.name, bundle_dir=str(bundle.parent), device="cpu")
    assert torch.equal(logits(network, phantom), expected)


@pytest.mark.parametrize("make", [create_workflow, ConfigWorkflow])
def test_workflows_give_the_weights_of_the_bundle(bundle, phantom, expected, make):
    workflow = make(
        config_file=str(bundle / "configs" / "inference.json"),
        workflow_type="inference",
        bundle_root=str(bundle),
        device="$torch.device('cpu')",
        logging_file=False,
    )
    workflow.initialize()
    assert torch.equal(logits(workflow.parser.get_parsed_content("network"), phantom), expected)


def test_inference_in_another_folder_says_what_to_add(bundle, tmp_path):
    command = [sys.executable, "-m", "monai.bundle", "run", "inference", "--dataset#data", "[]"]
    command += ["--config_file", str(bundle / "configs" / "inference.json")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, timeout=300)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and last.startswith("fedsr: models/model.pt: ") and "add --bundle_root" in last


# -- the model zoo: the steps of its ci/verify_bundle.py that need no network, by its own rules
# --------------------------------


def test_zoo_directory_version_and_changelog(bundle):
    for file in ("LICENSE", "configs/metadata.json", "configs/inference.json", "models/model.pt"):
        assert (bundle / file).is_file(), file
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    assert metadata["version"] in metadata["changelog"]


@pytest.mark.parametrize("kind", ["train", "inference"])
def test_zoo_properties(bundle, site_folder, kind):
    workflow = create_workflow(
        workflow_type=kind,
        bundle_root=str(bundle),
        config_file=str(bundle / "configs" / f"{kind}.json"),
        meta_file=str(bundle / "configs" / "metadata.json"),
        logging_file=False,
        dataset_dir=str(site_folder()),
        output_dir="out",
    )
    assert not workflow.check_properties()
    ids = {"train": ("train#postprocessing", "train#key_metric", "validate#key_metric"), "inference": ("key_metric",)}
    assert all(name in workflow.parser for name in ids[kind])


def test_zoo_data_shape(bundle):
    verify_net_in_out(
        net_id="network_def",
        meta_file=str(bundle / "configs" / "metadata.json"),
        config_file=str(bundle / "configs" / "inference.json"),
        bundle_root=str(bundle),
    )


def test_zoo_torchscript(bundle, phantom, expected, tmp_path):
    ckpt_export(
        net_id="network_def",
        filepath=str(tmp_path / "verify_model.ts"),
        ckpt_file=str(bundle / "models" / "model.pt"),
        meta_file=str(bundle / "configs" / "metadata.json"),
        config_file=str(bundle / "configs" / "inference.json"),
        bundle_root=str(bundle),
    )
    network = torch.jit.load(tmp_path / "verify_model.ts")
    torch.testing.assert_close(logits(network, phantom), expected, atol=1e-3, rtol=1e-4)
    assert network(torch.rand(2, 1, 40, 33, 17)).shape == (2, 14, 40, 33, 17)  # not bound to one shape, as a trace is


# -- MONAI Deploy
# --------------------------------------------------------------------------------------------------------


class BundleOperator:
    """What MonaiBundleInferenceOperator of monai-deploy-app-sdk 3.5 does with a TorchScript bundle, in its own order.

    The SDK itself needs Holoscan, which is not installed here: this is its logic (the configuration files from the
        archive,
    loaders and writers dropped by the names of their classes, the image from memory with its affine), not its code.
    """

    DROPPED = ("LoadImage", "SaveImage")

    def __init__(self, model: Path, folder: Path) -> None:
        shutil.unpack_archive(model, folder, "zip")
        extra = next(folder.glob("*/extra"))
        self.parser = ConfigParser()
        self.parser.read_meta(f=json.loads((extra / "metadata.json").read_text()))
        self.parser.read_config(str(extra / "inference.json"))
        self.parser.parse()
        self.device = self.parser.get_parsed_content("device")
        self.inferer = self.parser.get_parsed_content("inferer")
        self.preprocessing, self.postprocessing = map(self.without_files, ("preprocessing", "postprocessing"))
        self.network = torch.jit.load(model, map_location=self.device).eval()

    def without_files(self, name: str) -> Compose:
        compose = self.parser.get_parsed_content(name)
        kept = [t for t in compose.transforms if not any(part in type(t).__name__ for part in self.DROPPED)]
        return Compose(kept)

    @torch.no_grad()
    def compute(self, voxels: np.ndarray, affine: np.ndarray) -> MetaTensor:
        """Return the label map of an image [X, Y, Z], as DICOMSeriesToVolumeOperator hands it over, without a
        channel.
        """
        meta = {"original_channel_dim": "no_channel", "affine": affine, "original_affine": affine, "space": "RAS"}
        inputs = {"image": MetaTensor.ensure_torch_and_prune_meta(torch.from_numpy(voxels), meta)}
        inputs = self.preprocessing(inputs)
        batch = inputs["image"][None].to(self.device)
        outputs = {"pred": self.inferer(inputs=batch, network=self.network)[0]} | inputs
        return self.postprocessing(outputs)["pred"]


def test_monai_deploy_gives_the_labels_of_the_bundle(bundle, tmp_path):
    spacing, shape = 6.0, (32, 32, 32)
    image, _, affine = build_atlas(spacing, shape)
    turned = affine @ np.array([[0, 0, -1, 31], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    scan = np.ascontiguousarray(image.transpose(1, 2, 0)[:, :, ::-1])  # on axes of its own
    write_volume(tmp_path / "scan.nii.gz", scan, turned)

    root = tmp_path / "bundle"  # at a resolution for tests
    shutil.copytree(bundle, root)
    config = json.loads((root / "configs" / "inference.json").read_text())
    config |= {"spacing": spacing, "spatial_shape": list(shape), "device": "$torch.device('cpu')"}
    (root / "configs" / "inference.json").write_text(json.dumps(config))
    workflow = ConfigWorkflow(
        config_file=str(root / "configs" / "inference.json"),
        workflow_type="inference",
        run_id="inference",
        logging_file=False,
        bundle_root=str(root),
        output_dir=str(tmp_path / "out"),
        **{"dataset#data": [{"image": str(tmp_path / "scan.nii.gz")}]},
    )
    workflow.initialize()
    workflow.run()
    reference = nib.load(tmp_path / "out" / "scan_dseg.nii.gz")

    ckpt_export(
        net_id="network_def",
        filepath=str(tmp_path / "model.ts"),
        ckpt_file=str(root / "models" / "model.pt"),
        meta_file=str(root / "configs" / "metadata.json"),
        config_file=str(root / "configs" / "inference.json"),
    )
    operator = BundleOperator(tmp_path / "model.ts", tmp_path / "app")
    names = [type(t).__name__ for c in (operator.preprocessing, operator.postprocessing) for t in c.transforms]
    transforms = [t for part in ("preprocessing", "postprocessing") for t in config[part]["transforms"]]
    declared = [t["_target_"].rpartition(".")[2] for t in transforms]
    assert names == declared[1:-1] and (declared[0], declared[-1]) == ("LoadImaged", "SaveImageLabelMapd")
    assert names[0] == "EnsureChannelFirstd"
    labels = operator.compute(scan, turned)
    assert len(np.unique(labels)) > 3
    assert np.array_equal(labels[0].numpy(), np.asarray(reference.dataobj))
    assert np.allclose(labels.affine.numpy(), reference.affine)
    assert not (tmp_path / "eval").exists()  # nothing was written beside the working directory
