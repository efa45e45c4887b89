"""What the two bundles declare, without running it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from monai.bundle import ConfigParser, ConfigWorkflow, verify_metadata, verify_net_in_out

from fedsr_monai import __version__
from fedsr_monai.bundle_path import bundle_path
from fedsr_monai.labels import LABELS

ENCODER, SITE = bundle_path("fedsr_encoder"), bundle_path("fedsr_site")
BUNDLES = pytest.mark.parametrize("bundle", [ENCODER, SITE], ids=["encoder", "site"])

# The demands of MONAI's newest metadata schema (2024-07-25), and ours on top: verify_metadata would download the file.
TEXT = {"type": "string", "minLength": 1}
TABLE = {"type": "object"}
TENSOR = {
    "type": "object",
    "required": ["type", "format", "num_channels", "spatial_shape", "dtype", "value_range", "channel_def"],
    "properties": {
        **dict.fromkeys(["type", "format", "dtype"], TEXT),
        "num_channels": {"type": "integer"},
        "spatial_shape": {"type": "array", "items": {"type": ["string", "integer"]}, "minItems": 3, "maxItems": 3},
        "value_range": {"type": "array", "items": {"type": "number"}},
        "is_patch_data": {"type": "boolean"},
        "channel_def": TABLE,
    },
}
ASKED = {
    **dict.fromkeys(["schema", "version", "monai_version", "pytorch_version", "numpy_version"], TEXT),
    **dict.fromkeys(["task", "description", "authors", "copyright", "name", "intended_use"], TEXT),
    **dict.fromkeys(["data_source", "data_type", "image_classes", "label_classes", "pred_classes"], TEXT),
    **dict.fromkeys(["required_packages_version", "changelog", "eval_metrics", "supported_apps"], TABLE),
    "references": {"type": "array", "items": TEXT, "minItems": 1},
    "network_data_format": {
        "required": ["inputs", "outputs", "post_processed_outputs"],
        "additionalProperties": {"type": "object", "additionalProperties": TENSOR, "minProperties": 1},
    },
}
SCHEMA = {"type": "object", "required": list(ASKED), "properties": ASKED, "additionalProperties": False}


def config(bundle: Path, name: str) -> dict:
    return json.loads((bundle / "configs" / name).read_text())


@BUNDLES
def test_metadata(bundle, tmp_path):
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    verify_metadata(meta_file=str(bundle / "configs" / "metadata.json"), filepath=str(tmp_path / "schema.json"))
    meta = config(bundle, "metadata.json")
    assert list(meta["network_data_format"]["inputs"]) == ["image"] and list(
        meta["network_data_format"]["outputs"]
    ) == ["pred"]
    pred = meta["network_data_format"]["outputs"]["pred"]
    assert {int(key): name for key, name in pred["channel_def"].items()} == LABELS and pred["num_channels"] == len(
        LABELS
    )
    assert (
        meta["network_data_format"]["inputs"]["image"]["spatial_shape"]
        == config(bundle, "inference.json")["spatial_shape"]
    )
    assert meta["version"] == __version__ and meta["version"] in meta["changelog"]


@BUNDLES
def test_metadata_that_lack_something_are_refused(bundle, tmp_path):
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    meta = config(bundle, "metadata.json")
    del meta["network_data_format"]["outputs"]["pred"]["num_channels"]
    (tmp_path / "metadata.json").write_text(json.dumps(meta))
    with pytest.raises(ValueError, match="'num_channels' is a required property"):
        verify_metadata(meta_file=str(tmp_path / "metadata.json"), filepath=str(tmp_path / "schema.json"))


@BUNDLES
def test_the_metrics_are_those_that_were_measured(bundle):
    measured = json.loads((Path(__file__).parents[2] / "benchmarks" / "accuracy.json").read_text())
    metrics = config(bundle, "metadata.json")["eval_metrics"]
    assert metrics == {
        f"{name}_{task}_simulated": pytest.approx(measured[f"FedSR {task}"][key]["mean"], abs=6e-4)
        for task in ("segmentation", "registration")
        for name, key in (("mean_dice", "dice"), ("mean_hd95_mm", "hd95_mm"))
    }
    readme = (bundle / "docs" / "README.md").read_text()
    assert all(f"{metrics[f'mean_dice_{task}_simulated']:.3f}" in readme for task in ("segmentation", "registration"))


@BUNDLES
def test_the_readme_has_what_the_model_zoo_asks_for(bundle):
    text = (bundle / "docs" / "README.md").read_text()
    headings = re.findall(r"^(#{1,3}) (.*)$", re.sub(r"(?s)```.*?```", "", text), flags=re.MULTILINE)
    assert [name for _, name in headings] == [
        "Model Overview", "Data", "Preprocessing", "Training configuration", "Input", "Output", "Performance",
        "System configuration", "Limitations", "MONAI Bundle Commands", "References", "License",
    ]  # fmt: skip
    assert all(name in text for name in LABELS.values())
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (bundle / "docs" / link).is_file(), link


@BUNDLES
def test_versions_are_those_that_are_tested(bundle):
    constraints = Path(__file__).parents[2] / "constraints.txt"
    tested = dict(line.split("==") for line in constraints.read_text().split() if "==" in line)
    meta = config(bundle, "metadata.json")
    assert [meta[f"{key}_version"] for key in ("monai", "pytorch", "numpy")] == [
        tested[key] for key in ("monai", "torch", "numpy")
    ]
    assert meta["required_packages_version"].pop("fedsr-monai") == __version__
    assert all(tested[name] == version for name, version in meta["required_packages_version"].items())


@BUNDLES
def test_the_network_is_what_the_metadata_says(bundle):
    verify_net_in_out(
        net_id="network_def",
        meta_file=str(bundle / "configs" / "metadata.json"),
        config_file=str(bundle / "configs" / "inference.json"),
    )


@BUNDLES
def test_files_of_a_bundle(bundle):
    for file in ("LICENSE", "docs/README.md", "docs/data_license.txt", "configs/logging.conf"):
        assert (bundle / file).stat().st_size > 0
    assert not [
        path for path in (bundle / "models").glob("*.pt") if path.name != "model.pt"
    ]  # MONAI Label would serve it


@BUNDLES
def test_monai_finds_all_that_it_looks_for(bundle, site_folder, tmp_path):
    common = {
        "bundle_root": str(bundle),
        "dataset_dir": str(site_folder()),
        "output_dir": str(tmp_path),
        "logging_file": False,
    }
    for kind, file in (("train", "train.json"), ("infer", "inference.json")):
        workflow = ConfigWorkflow(config_file=str(bundle / "configs" / file), workflow_type=kind, **common)
        parser = workflow.parser
        parser["imports"].append("$from fedsr_monai.sites.site import load_atlas")
        parser["network"] = "$@network_def.set_atlas(*load_atlas(@dataset_dir))"  # without weights
        workflow.initialize()
        assert workflow.check_properties() == []


def test_what_the_bundles_share_is_the_same():
    encoder, site = config(ENCODER, "train.json"), config(SITE, "train.json")
    own = {  # what tells the phases apart
        "imports", "network", "spacing", "epochs", "cosine", "sa_alpha", "random_atlas", "train", "validate",
        "initial_network", "initial_weights", "frozen", "global_weights", "spatial_shape", "grid", "atlas", "atlases", "sites", "fine_labels",
    }  # fmt: skip
    assert {key: value for key, value in encoder.items() if key not in own} == {
        key: value for key, value in site.items() if key not in own
    }
    for config_ in (encoder, site):
        for part in ("train", "validate"):
            config_[part].pop("preprocessing")
        for handler in config_["train"]["handlers"]:
            handler.pop("site", None)
    assert encoder["train"] == site["train"] and encoder["validate"] == site["validate"]
    encoder, site = config(ENCODER, "inference.json"), config(SITE, "inference.json")
    assert set(encoder["imports"]) < set(site["imports"]) and set(site) - set(encoder) == {"protocol", "head_path"}
    heads = {"imports", "trained_network"}  # the heads of label protocols are the site's alone
    assert all(encoder[key] == site[key] for key in set(encoder) - heads)
    assert config(ENCODER, "multi_gpu_train.json") == config(SITE, "multi_gpu_train.json")


@BUNDLES
def test_only_one_process_writes(bundle):
    handlers = config(bundle, "train.json")["train"]["handlers"]
    first_only = {
        handler["_target_"].split(".")[-1] for handler in handlers if handler.get("_disabled_") == "$@rank > 0"
    }
    assert first_only == {
        "TrainingProgress",
        "HistoryWriter",
        "TensorBoardStatsHandler",
    }  # the checkpoints see to it themselves
    assert {"rank", "world_size"} <= set(config(bundle, "multi_gpu_train.json"))


@BUNDLES
def test_inference_names_the_grid_of_the_training(bundle):
    inference = config(bundle, "inference.json")
    site = config(SITE, "train.json")
    assert all(
        inference[key] == site[key] for key in ("spacing", "spatial_shape", "preset", "scie", "network_def", "grid")
    )
    assert inference["preprocessing"]["transforms"][2:5] == [
        {"_target_": "fedsr_monai.transforms.CheckScand", "keys": "image", "grid": "@grid"},
        {"_target_": "CopyItemsd", "keys": "image", "names": "scan", "_disabled_": "$not @by_intensity"},
        {
            "_target_": "fedsr_monai.transforms.ResampleToGridd",
            "keys": "image",
            "kind": "image",
            "grid": "@grid",
            "fineness": "@fineness",
        },
    ]


@BUNDLES
@pytest.mark.parametrize("by_intensity", [True, False])
def test_the_scan_is_kept_for_its_intensities_unless_they_are_off(bundle, by_intensity):
    parser = ConfigParser(config(bundle, "inference.json") | {"by_intensity": by_intensity})
    names = [type(transform).__name__ for transform in parser.get_parsed_content("preprocessing").transforms]
    assert ("CopyItemsd" in names) == by_intensity


@BUNDLES
def test_every_command_of_the_readme_names_what_exists(bundle):
    commands = re.findall(
        r"^.*-m monai\.bundle run (\w+) (.*)$", (bundle / "docs" / "README.md").read_text(), flags=re.MULTILINE
    )
    assert {"training", "evaluating", "inference"} == {run for run, _ in commands}
    shape = config(bundle, "metadata.json")["network_data_format"]["inputs"]["image"]["spatial_shape"]
    for export in ("ckpt_export", "onnx_export"):
        (arguments,) = re.findall(
            rf"-m monai\.bundle {export} (.*)$", (bundle / "docs" / "README.md").read_text(), flags=re.MULTILINE
        )
        traced = f'--use_trace True --input_shape "[1, 1, {shape[0]}, {shape[1]}, {shape[2]}]"'
        assert "--net_id network_def" in arguments and (traced in arguments) == (export == "onnx_export")
        assert all(
            (bundle / file).is_file() for file in re.findall(r"(?:configs|models)/\w+\.(?:json|pt)\b", arguments)
        )
    for run, arguments in commands:
        files = re.findall(r"configs/(\w+\.json)", arguments)
        merged = ConfigParser.load_config_files([str(bundle / "configs" / file) for file in files])
        parser = ConfigParser(merged)
        for key in re.findall(r"--([\w#]+)", arguments.split("json", 1)[1]):
            assert key in parser, f"{run}: {key}"
        assert run in parser
