"""Baselines as users run them: by name in a federation and a study, and by their override file in the bundle."""

from __future__ import annotations

import json

import pytest
import torch
from monai.bundle import ConfigWorkflow

from fedsr_monai.bundle_path import bundle_path, training_files
from fedsr_monai.errors import UserError
from fedsr_monai.evaluation.run import evaluate
from fedsr_monai.federation import federate
from fedsr_monai.networks.weights import read_weights
from fedsr_monai.personalisation import personalise
from fedsr_monai.pretraining import with_encoder

ROOT = bundle_path("fedsr_encoder")
NAMES = [path.stem for path in sorted((ROOT / "configs" / "baselines").glob("*.json"))]
ONE_STEP = {"epoch_length": 1, "val_interval": 1000}


def test_the_baselines_are_those_of_the_documentation():
    text = (ROOT.parents[1] / "docs" / "baselines.md").read_text()
    assert NAMES == ["bi_jros", "brbs", "deep_atlas", "synthseg", "tbi_one_shot", "u_resnet"]
    assert all(f"`{name}`" in text for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_override_file_trains_in_the_bundle(name, site_folder, tmp_path):
    workflow = ConfigWorkflow(
        config_file=[str(path) for path in training_files(ROOT, name)],
        logging_file=False,
        workflow_type="train",
        bundle_root=str(ROOT),
        dataset_dir=str(site_folder()),
        output_dir=str(tmp_path),
        ckpt_path=str(tmp_path / "model.pt"),
        epochs=1,
        device="$torch.device('cpu')",
        **ONE_STEP,
    )
    workflow.initialize()
    workflow.run()
    assert torch.isfinite(torch.tensor(workflow.trainer.state.output["loss"]))
    assert "encoder.stages.0.conv.weight" in read_weights(tmp_path / "model.pt")
    drawn = workflow.parser.get_parsed_content("random_atlas")
    assert (drawn is None) == (name != "synthseg")
    state = torch.load(tmp_path / "training_state.pt", weights_only=True)
    assert set(state) >= {f"optimizer_{optimizer}" for optimizer in workflow.trainer.optimizers}


def test_a_baseline_that_does_not_exist_is_refused(tmp_path, site_folder):
    with pytest.raises(UserError, match="baseline: found '../train', expected one of bi_jros, brbs"):
        federate([site_folder()], tmp_path / "run", rounds=1, baseline="../train")


@pytest.mark.slow
def test_in_a_federation_it_is_pooled_unless_told_and_resumes_and_is_measured(tmp_path, site_folder):
    arguments = {"baseline": "tbi_one_shot", "overrides": ONE_STEP | {"drawn_images": True, "ramp_up": 2}}
    sites = [site_folder("north"), site_folder("south")]
    whole = federate(sites, tmp_path / "whole", rounds=2, **arguments)
    assert json.loads((whole / "run.json").read_text())["policy"] == "pooled"
    federate(sites, tmp_path / "parts", rounds=1, **arguments)
    parts = federate(sites, tmp_path / "parts", rounds=2, **arguments)
    one, two = (read_weights(run / "sites" / "pooled" / "model.pt") for run in (whole, parts))
    assert all(torch.equal(value, two[key]) for key, value in one.items())
    tasks = evaluate(whole, progress=False, figures=0)["all"]["tasks"]
    assert all(0 <= tasks[task]["mean"]["dice"]["mean"] <= 1 for task in tasks)
    with pytest.raises(UserError, match="found a run of the baseline tbi_one_shot"):
        personalise(sites[0], whole, tmp_path / "personalised", epochs=1)

    shared = federate(sites, tmp_path / "shared", rounds=1, policy="fedavg", **arguments)
    north, south = (read_weights(shared / "sites" / name / "model.pt") for name in ("north", "south"))
    apart = {key.split(".")[0] for key, value in north.items() if not torch.equal(value, south[key])}
    assert apart == {"augmentation"}  # needed in training alone, so it stays at the site; everything else is averaged


def test_an_encoder_can_be_put_into_an_untrained_network(tmp_path, site_folder):
    federate([site_folder()], tmp_path / "run", rounds=1, baseline="synthseg", overrides=ONE_STEP)
    trained = tmp_path / "run" / "sites" / "pooled" / "model.pt"
    first = read_weights(with_encoder(trained, tmp_path / "first.pt", seed=1))
    again = read_weights(with_encoder(trained, tmp_path / "again.pt", seed=1))
    of_encoder = {key: value for key, value in read_weights(trained).items() if key.startswith("encoder.")}
    assert all(torch.equal(first[key], value) for key, value in of_encoder.items())
    assert all(torch.equal(first[key], value) for key, value in again.items())
    head = "segmentation.levels.0.conv.conv.weight"
    assert not torch.equal(first[head], read_weights(trained)[head])
    with pytest.raises(UserError, match="use the encoder of a network of the same preset"):
        with_encoder(trained, tmp_path / "full.pt", overrides={"preset": "full"})
