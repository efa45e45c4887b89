"""The bundles in programs that know nothing of this package: MONAI's own loaders, the model zoo's check, MONAI Deploy.

docs/hosts.md records the runs in those programs themselves.
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
from monai.bundle import (
    ConfigParser,
    ConfigWorkflow,
    ckpt_export,
    create_workflow,
    load,
    verify_metadata,
    verify_net_in_out,
)
from monai.data import MetaTensor
from monai.transforms import Compose

from fedsr_monai.atlas.build import build_atlas
from fedsr_monai.bundle_path import bundle_path
from fedsr_monai.networks import FedSRNet
from fedsr_monai.networks.weights import load_weights
from fedsr_monai.spatial.nifti import write_volume
from tests.bundles.test_configs import SCHEMA

NAMES = ["fedsr_encoder", "fedsr_site"]


@pytest.fixture(params=NAMES)
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


def test_inference_in_another_folder_says_what_to_add(tmp_path):
    bundle = bundle_path("fedsr_site")  # the configurations for inference are the same, see test_configs
    command = [sys.executable, "-m", "monai.bundle", "run", "inference", "--dataset#data", "[]"]
    command += ["--config_file", str(bundle / "configs" / "inference.json")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, timeout=300)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and last.startswith("fedsr: models/model.pt: ") and "add --bundle_root" in last


# -- the model zoo: what its ci/verify_bundle.py does, in its order and with its relative paths
# --------------------------------


@pytest.fixture(params=NAMES)
def zoo(request, tmp_path, monkeypatch) -> str:
    """The bundle in `models/` of a clone of the zoo, which is the working directory; the schema is where the check keeps it."""
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "models" / request.param
    shutil.copytree(bundle_path(request.param), root)
    (root / "eval").mkdir(exist_ok=True)
    (root / "eval" / "schema.json").write_text(json.dumps(SCHEMA))
    return f"models/{request.param}"


def test_the_steps_of_the_model_zoos_check(zoo, phantom):
    """Directory, version and changelog, metadata, data shape, TorchScript. No properties are asked of apps other than MONAI Deploy's."""
    for file in ("LICENSE", "configs/metadata.json", "configs/inference.json", "models/model.pt"):
        assert Path(zoo, file).is_file(), file
    metadata = json.loads(Path(zoo, "configs/metadata.json").read_text())
    assert metadata["version"] in metadata["changelog"] and set(metadata.get("supported_apps", {})) <= {"monai-label"}
    meta, config = f"{zoo}/configs/metadata.json", f"{zoo}/configs/inference.json"
    verify_metadata(meta_file=meta, filepath=f"{zoo}/eval/schema.json")
    verify_net_in_out(net_id="network_def", meta_file=meta, config_file=config, bundle_root=zoo)
    exported = f"{zoo}/models/verify_model.ts"
    ckpt_export(
        net_id="network_def",
        filepath=exported,
        ckpt_file=f"{zoo}/models/model.pt",
        meta_file=meta,
        config_file=config,
        bundle_root=zoo,
    )
    network = torch.jit.load(exported)
    expected = load_weights(FedSRNet(), f"{zoo}/models/model.pt")
    torch.testing.assert_close(logits(network, phantom), logits(expected, phantom), atol=1e-3, rtol=1e-4)
    assert network(torch.rand(2, 1, 40, 33, 17)).shape == (2, 14, 40, 33, 17)  # not bound to one shape, as a trace is


@pytest.mark.skipif("FEDSR_ZOO" not in os.environ, reason="set FEDSR_ZOO to a clone of Project-MONAI/model-zoo")
def test_the_model_zoos_own_check(zoo):
    """The real script, on copies: nothing is written into the clone."""
    clone = Path(os.environ["FEDSR_ZOO"])
    shutil.copytree(clone / "ci", "ci")
    shutil.copy(clone / "models" / "model_info.json", "models")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "ci/verify_bundle.py", "-b", Path(zoo).name, "-m", "full"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    print(done.stdout)
    assert done.returncode == 0, done.stderr[-2000:]
    steps = ["directory is", "version and changelog are", "metadata format is", "properties are", "data shape is"]
    assert all(f"{step} verified correctly." in done.stdout for step in steps)
    assert "export weights into TorchScript module successfully." in done.stdout


@pytest.mark.parametrize("kind", ["train", "inference"])
def test_the_properties_that_monai_asks_of_a_workflow(bundle, site_folder, kind):
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


# -- MONAI Deploy
# --------------------------------------------------------------------------------------------------------


class BundleOperator:
    """What MonaiBundleInferenceOperator of monai-deploy-app-sdk 4.0 does with a TorchScript bundle, in its own order.

    The SDK needs Holoscan, which is no dependency of this project: this is its logic (the configuration files from the archive, loaders and
    writers dropped by the names of their classes, the image from memory with its affine), not its code.
    """

    DROPPED = ("LoadImage", "SaveImage")

    def __init__(self, model: Path, folder: Path) -> None:
        shutil.unpack_archive(model, folder, "zip")
        extra = folder / model.stem / "extra"
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
        """Return the label map of an image [X, Y, Z], as DICOMSeriesToVolumeOperator hands it over, without a channel."""
        meta = {"original_channel_dim": "no_channel", "affine": affine, "original_affine": affine, "space": "RAS"}
        inputs = {"image": MetaTensor.ensure_torch_and_prune_meta(torch.from_numpy(voxels), meta)}
        inputs = self.preprocessing(inputs)
        batch = inputs["image"][None].to(self.device)
        outputs = {"pred": self.inferer(inputs=batch, network=self.network)[0]} | inputs
        return self.postprocessing(outputs)["pred"]


@pytest.fixture(scope="module")
def scan() -> tuple[np.ndarray, np.ndarray]:
    """Voxels [X, Y, Z] of the atlas on axes of their own, and their affine."""
    image, _, affine = build_atlas(6.0, (32, 32, 32))
    turned = affine @ np.array([[0, 0, -1, 31], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    return np.ascontiguousarray(image.transpose(1, 2, 0)[:, :, ::-1]), turned


@pytest.fixture(scope="module")
def deployed(scan, tmp_path_factory) -> Path:
    """A folder with `bundle/`, at a resolution for tests and with `models/model.ts`, and the labels that MONAI's workflow gives the scan."""
    folder = tmp_path_factory.mktemp("deploy")
    root = folder / "bundle"
    shutil.copytree(bundle_path("fedsr_site"), root)
    config = json.loads((root / "configs" / "inference.json").read_text())
    # in float32: TorchScript and the plain network round differently in bfloat16
    config |= {"spacing": 6.0, "spatial_shape": [32, 32, 32], "device": "$torch.device('cpu')", "amp": False}
    (root / "configs" / "inference.json").write_text(json.dumps(config))
    write_volume(folder / "scan.nii.gz", *scan)
    workflow = ConfigWorkflow(
        config_file=str(root / "configs" / "inference.json"),
        workflow_type="inference",
        run_id="inference",
        logging_file=False,
        bundle_root=str(root),
        output_dir=str(folder / "out"),
        **{"dataset#data": [{"image": str(folder / "scan.nii.gz")}]},
    )
    workflow.initialize()
    workflow.run()
    ckpt_export(
        net_id="network_def",
        filepath=str(root / "models" / "model.ts"),
        ckpt_file=str(root / "models" / "model.pt"),
        meta_file=str(root / "configs" / "metadata.json"),
        config_file=str(root / "configs" / "inference.json"),
    )
    return folder


def test_monai_deploy_gives_the_labels_of_the_bundle(deployed, scan, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    operator = BundleOperator(deployed / "bundle" / "models" / "model.ts", tmp_path / "app")
    names = [type(t).__name__ for c in (operator.preprocessing, operator.postprocessing) for t in c.transforms]
    config = json.loads((deployed / "bundle" / "configs" / "inference.json").read_text())
    transforms = [t for part in ("preprocessing", "postprocessing") for t in config[part]["transforms"]]
    declared = [t["_target_"].rpartition(".")[2] for t in transforms]
    assert names == declared[1:-1] and (declared[0], declared[-1]) == ("LoadImaged", "SaveImageLabelMapd")
    assert names[0] == "EnsureChannelFirstd"
    reference = nib.load(deployed / "out" / "scan_dseg.nii.gz")
    labels = operator.compute(*scan)
    assert len(np.unique(labels)) > 3
    assert np.array_equal(labels[0].numpy(), np.asarray(reference.dataobj))
    assert np.allclose(labels.affine.numpy(), reference.affine)
    assert not (tmp_path / "eval").exists()  # nothing was written beside the working directory


def test_monai_deploy_takes_the_weights_of_a_bundle_folder(bundle, phantom, expected):
    """Of a folder without model.ts the SDK builds `network`, wherever it runs, and loads models/model.pt into it by itself."""
    parser = ConfigParser()
    parser.read_meta(f=json.loads((bundle / "configs" / "metadata.json").read_text()))
    parser.read_config([bundle / "configs" / "inference.json"])
    parser.parse()
    parser["device"] = "$torch.device('cpu')"
    network = parser.get_parsed_content("network")
    network.load_state_dict(torch.load(bundle / "models" / "model.pt", map_location="cpu"), strict=True)
    assert torch.equal(logits(network, phantom), expected)


@pytest.mark.parametrize("form", ["models/model.ts", "folder with model.ts", "folder with model.pt"])
def test_monai_deploy_itself(deployed, scan, form, tmp_path, monkeypatch):
    """The SDK's operator in a Holoscan application."""
    pytest.importorskip("holoscan", reason="MONAI Deploy is not installed")
    from tests.helpers.deploy import labels_of

    monkeypatch.chdir(tmp_path)
    reference = np.asarray(nib.load(deployed / "out" / "scan_dseg.nii.gz").dataobj)
    model = deployed / "bundle"
    if form == "models/model.ts":
        model /= form
    elif form == "folder with model.pt":
        model = tmp_path / "bundle"
        shutil.copytree(deployed / "bundle", model, ignore=shutil.ignore_patterns("*.ts"))
    labels = labels_of(model, *scan)
    assert len(np.unique(labels)) > 3 and np.array_equal(labels, reference)
