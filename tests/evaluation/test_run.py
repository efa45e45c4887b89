from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from fedsr_monai.bundle_path import bundle_path
from fedsr_monai.cli import main
from fedsr_monai.errors import UserError
from fedsr_monai.evaluation.run import (
    PERSONALISED,
    earlier_models,
    evaluate_models,
    load_network,
    models_of_run,
    models_of_sites,
)
from fedsr_monai.evaluation.stages import COMPARED
from fedsr_monai.evaluation.tables import METRIC_COLUMNS, read_measures
from fedsr_monai.federation.storage import write_tensors
from fedsr_monai.handlers import save_checkpoint
from fedsr_monai.networks import FedSRNet
from fedsr_monai.sites.writing import write_site
from fedsr_monai.spatial.nifti import write_volume

AFFINE = np.diag([6.0, 6.0, 6.0, 1.0])


def write_ward(root: Path, name: str, phantom) -> Path:
    """A site whose test scan is its atlas moved by one voxel."""
    image, label = (volume[0].numpy() for volume in phantom)
    write_volume(root / name / "images/a.nii.gz", np.roll(image, 1, 0), AFFINE)
    write_volume(root / name / "images/b.nii.gz", np.roll(image, 1, 1), AFFINE)
    write_volume(root / name / "labels/b.nii.gz", np.roll(label, 1, 1), AFFINE)
    test = [{"image": "images/b.nii.gz", "label": "labels/b.nii.gz"}]
    return write_site(root / name, name, image, label, AFFINE, [{"image": "images/a.nii.gz"}], test=test)


def write_weights(path: Path, seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    network = FedSRNet("small")
    save_checkpoint(network, path)
    return network.state_dict()


@pytest.fixture
def run(tmp_path, phantom) -> Path:
    """A run of two sites as `fedsr federate` leaves it, with a third site that joined afterwards."""
    sites = [write_ward(tmp_path / "sites", name, phantom) for name in ("east", "west", "young")]
    run = tmp_path / "run"
    record = {
        "bundle": {"path": str(bundle_path("fedsr_encoder"))},
        "overrides": {"preset": "small"},
        "sites": [{"name": site.name, "path": str(site)} for site in sites[:2]],
    }
    run.mkdir()
    (run / "run.json").write_text(json.dumps(record))
    for seed, site in enumerate(sites[:2]):
        write_weights(run / "sites" / site.name / "model.pt", seed)
    return run


def join(run: Path, name: str, seed: int) -> None:
    folder = run / PERSONALISED / name
    write_weights(folder / "model.pt", seed)
    record = {"site": str(run.parent / "sites" / name), "bundle": str(bundle_path("fedsr_site"))}
    (folder / "personalised.json").write_text(json.dumps(record))


def test_each_site_is_measured_with_its_own_network(run):
    summary = evaluate_models(models_of_run(run), run / "evaluation", figures=0)
    assert list(summary["sites"]) == ["east", "west"]
    rows = read_measures(run / "evaluation" / "metrics.csv", METRIC_COLUMNS)
    assert len(rows) == 2 * 3 * 13
    found = {
        (row["site"], row["task"]): [r["dice"] for r in rows if (r["site"], r["task"]) == (row["site"], row["task"])]
        for row in rows
    }
    # the same scan and atlas, other random heads
    assert found["east", "unregistered"] == found["west", "unregistered"]
    assert found["east", "segmentation"] != found["west", "segmentation"]


def test_personalised_networks_come_before_those_of_the_last_round(run):
    join(run, "young", seed=7)
    join(run, "east", seed=8)
    models = {model.site.name: model for model in models_of_run(run)}
    assert list(models) == ["east", "west", "young"]
    assert models["east"].weights == run / PERSONALISED / "east" / "model.pt"
    assert models["west"].weights == run / "sites" / "west" / "model.pt"
    assert models["young"].bundle == bundle_path("fedsr_site")


def stages_of(run: Path) -> dict[str, dict[str, Path]]:
    return {stage: {model.site.name: model.weights for model in of} for stage, of in earlier_models(run).items()}


def test_the_stages_of_a_run(run):
    assert stages_of(run) == {}  # random weights, nobody personalised
    record = json.loads((run / "run.json").read_text())
    begun_with = run.parent / "begun.pt"
    state = write_weights(begun_with, 11)
    (run / "run.json").write_text(json.dumps(record | {"from_weights": {"path": str(begun_with)}}))
    assert stages_of(run) == {"before": {"east": begun_with, "west": begun_with}}
    join(run, "young", seed=7)
    join(run, "east", seed=8)
    in_rounds = {name: run / "sites" / name / "model.pt" for name in ("east", "west")}
    before = dict.fromkeys(("east", "west", "young"), begun_with)
    # what the joined site's training began with is not known to have had heads
    assert stages_of(run) == {"before": before, "rounds": in_rounds}
    young = run / PERSONALISED / "young" / "start.safetensors"
    write_tensors(young, {key: value for key, value in state.items() if key.startswith(("encoder.", "sa."))})
    assert stages_of(run)["rounds"] == in_rounds
    write_tensors(young, {key: value for key, value in state.items() if key not in ("atlas_image", "atlas_label")})
    assert stages_of(run)["rounds"] == in_rounds | {"young": young}
    # It is read for this site alone, and then whatever is wrong with it is named.
    (model,) = [model for model in earlier_models(run)["rounds"] if model.site.name == "young"]
    load_network(model)
    broken = {key: value for key, value in state.items() if key not in ("atlas_image", "atlas_label")}
    key = next(iter(broken))
    write_tensors(young, broken | {key: torch.full_like(broken[key], torch.nan)})
    with pytest.raises(UserError, match=rf"start.safetensors: {key}: found NaN"):
        load_network(model)
    young.unlink()
    young.symlink_to("/nowhere/at/all")
    with pytest.raises(UserError, match="start.safetensors: found a link to /nowhere/at/all"):
        earlier_models(run)


def test_an_evaluation_says_what_training_changed(run, capsys):
    record = json.loads((run / "run.json").read_text())
    write_weights(run.parent / "begun.pt", 11)
    record["from_weights"] = {"path": str(run.parent / "begun.pt")}
    (run / "run.json").write_text(json.dumps(record))
    assert main(["evaluate", str(run), "--figures", "0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    pattern = "{} is (better|worse|no better) than before training: mean Dice 0.*, 0.* before .*of 2 scans"
    assert [bool(re.match(pattern.format(task), line)) for task, line in zip(COMPARED, lines[2:4])] == [True, True]
    assert (run / "evaluation" / "before" / "metrics.csv").is_file()
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "What training changed" in page and "Segmentation is " in page


def test_the_pooled_network_is_measured_on_every_site(run):
    record = json.loads((run / "run.json").read_text())
    record["sites"] = [{"name": "pooled", "path": ",".join(site["path"] for site in record["sites"])}]
    (run / "run.json").write_text(json.dumps(record))
    write_weights(run / "sites" / "pooled" / "model.pt", 3)
    models = models_of_run(run)
    assert [model.site.name for model in models] == ["east", "west"]
    assert {model.weights for model in models} == {run / "sites" / "pooled" / "model.pt"}


def test_a_network_gets_its_sites_atlas_whatever_the_file_holds(run, phantom):
    weights = run / "sites" / "east" / "model.pt"
    state = torch.load(weights, weights_only=True)
    state["atlas_image"] = torch.full((1, 1, 8, 8, 8), 0.5)
    torch.save(state, weights)
    network = load_network(models_of_run(run)[0])
    assert torch.equal(network.atlas_image[0], phantom[0]) and torch.equal(network.atlas_label[0], phantom[1])
    assert torch.equal(network.encoder.state_dict()["stages.0.conv.weight"], state["encoder.stages.0.conv.weight"])


def test_evaluate_prints_one_line_per_site(run, capsys):
    assert main(["evaluate", str(run), "--figures", "1", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["east", "west", str(run / "evaluation")]
    assert lines[0].startswith("east  mean Dice of 1 scan: unregistered 0.")
    assert sorted(path.name for path in (run / "evaluation" / "cases").rglob("*.npz")) == ["b.npz", "b.npz"]
    assert main(["report", str(run)]) == 0
    assert (run / "report.html").stat().st_size > 50_000


def test_a_member_without_labelled_test_scans_is_named_and_left_out(run, capsys):
    """Most hospitals of a federation have no labels but those of their atlas; the others are measured all the same."""
    record = run.parent / "sites" / "east" / "site.json"
    content = json.loads(record.read_text())
    content["test"] = []
    record.write_text(json.dumps(content))
    assert main(["evaluate", str(run), "--figures", "0", "--device", "cpu"]) == 0
    captured = capsys.readouterr()
    assert [line.split("  ")[0] for line in captured.out.splitlines()] == ["west", str(run / "evaluation")]
    assert captured.err.count(f"fedsr: {record.parent}: not measured, as it has no labelled scan in 'test'") == 1
    assert main(["report", str(run)]) == 0


def test_evaluate_one_set_of_weights_on_sites(run, capsys):
    weights, sites = run / "sites" / "east" / "model.pt", run.parent / "sites"
    assert main(["evaluate", str(sites), "--weights", str(weights), "--out", str(run / "other")]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[:-1]] == ["east", "west", "young"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("{run} --section exam", "section: found 'exam', expected one of training, validation, test; correct it"),
        (
            "{run} --section training",
            "{sites}/east: found no labelled scan in 'training', expected at least one to evaluate; ",
        ),
        (
            "{run} {sites}/young",
            "{run}: found the folder of a run beside other folders or --weights, expected it alone; ",
        ),
        ("{sites}", "--out: found nothing, expected it for site folders; name a folder for the tables"),
        (
            "{sites} --weights nowhere.pt --out x",
            "nowhere.pt: found no such file, expected weights to measure; give the path of a model.pt with --weights",
        ),
    ],
)
def test_mistakes_are_one_line(run, capsys, words, message):
    folders = {"run": run, "sites": run.parent / "sites"}
    assert main(["evaluate", *words.format(**folders).split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith("fedsr: " + message.format(**folders)) and error.count("\n") == 1
    assert not (run / "evaluation").exists()


def test_a_run_that_has_not_finished_says_so(run, capsys):
    (run / "sites" / "west" / "model.pt").unlink()
    assert main(["evaluate", str(run)]) == 2
    assert capsys.readouterr().err == (
        f"fedsr: {run}/sites/west/model.pt: found no such file, expected the network of the last round; "
        "finish the run with the command that began it\n"
    )


def test_weights_of_another_network_are_named(run):
    torch.save({"weight": torch.zeros(3)}, run / "other.pt")
    models = models_of_sites([run.parent / "sites" / "east"], run / "other.pt")
    with pytest.raises(Exception, match="other.pt: encoder.stages.0.* found nothing.* expected float32"):
        load_network(models[0])
