from __future__ import annotations

import csv
import hashlib
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from fedsr_monai import kept_weights, personalisation
from fedsr_monai.engines import JointTrainer
from fedsr_monai.errors import UserError
from fedsr_monai.evaluation.head_agreement import atlas_dice, head_agreement
from fedsr_monai.evaluation.run import models_of_sites
from fedsr_monai.federation.storage import read_tensors, write_tensors
from fedsr_monai.files import write_json
from fedsr_monai.handlers import save_checkpoint
from fedsr_monai.networks import FedSRNet
from fedsr_monai.networks.fedsr_net import pad_to_stride
from fedsr_monai.networks.weights import HEAD_PREFIXES, read_weights
from fedsr_monai.personalisation import initial_tensors, personalise
from fedsr_monai.run_record import read_run
from fedsr_monai.sites.writing import write_site
from fedsr_monai.spatial.nifti import write_volume
from tests.test_run_record import EVIL

pytestmark = pytest.mark.slow


@pytest.fixture
def ward(tmp_path, phantom) -> Path:
    """A site with three training scans."""
    image, label = (volume[0].numpy() for volume in phantom)
    affine = np.diag([6.0, 6.0, 6.0, 1.0])
    scans = [f"images/scan{number}.nii.gz" for number in range(3)]
    for number, scan in enumerate(scans):
        write_volume(tmp_path / "ward" / scan, np.roll(image, number + 1, axis=number), affine)
    return write_site(tmp_path / "ward", "ward", image, label, affine, [{"image": scan} for scan in scans])


def network(seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    net = FedSRNet("small")
    for vector in net.sa.buffers():
        vector.normal_()
    return net.state_dict()


def shared(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value for key, value in state.items() if key.startswith(("encoder.", "sa."))}


def heads(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value for key, value in state.items() if key.startswith(HEAD_PREFIXES)}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return set(one) == set(other) and all(torch.equal(one[key], other[key]) for key in one)


def write_checkpoint(run: Path, tensors: dict[str, torch.Tensor]) -> None:
    content = write_tensors(run / "server" / "round_0003.safetensors", tensors)
    state = {"round": 3, "file": "round_0003.safetensors", "sha256": hashlib.sha256(content).hexdigest()}
    write_json(run / "server" / "state.json", state)


@pytest.fixture
def run(tmp_path) -> Path:
    """What a federation leaves: global tensors (seed 1), a site that took part with its own heads (seed 2)."""
    run = tmp_path / "run"
    write_checkpoint(run, shared(network(1)))
    write_json(
        run / "run.json",
        {"sites": [{"name": "clinic"}], "overrides": {"preset": "small", "learning_rate": 5.0}, "from_weights": None},
    )
    save_checkpoint(shared(network(1)) | heads(network(2)), run / "sites" / "clinic" / "model.pt")
    return run


def rows(out: Path) -> list[dict[str, str]]:
    with open(out / "history.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_an_unseen_site_fits_its_heads_and_nothing_else(ward, run, tmp_path):
    model = personalise(ward, run, tmp_path / "out", epochs=1, overrides={"device": "cpu"})
    assert model == tmp_path / "out" / "model.pt"
    fitted, start = read_weights(model), network(1)
    assert same(shared(fitted), shared(start))
    moved = {key.split(".")[0] for key, value in heads(fitted).items() if not torch.equal(value, start[key])}
    assert moved == {"registration", "segmentation"}
    assert fitted["atlas_image"].shape == (1, 1, 32, 32, 32) and fitted["atlas_label"].max() == 13
    assert [(row["site"], row["epoch"], row["iteration"]) for row in rows(tmp_path / "out")] == [("ward", "1", "3")]
    assert list((tmp_path / "out").glob("events.out.tfevents.*"))
    record = json.loads((tmp_path / "out" / "personalised.json").read_text())
    assert record["site"] == str(ward) and record["overrides"] == {"preset": "small", "device": "cpu"}


def test_a_killed_search_goes_on_to_the_same_numbers(ward, run, tmp_path, monkeypatch):
    arguments = {"epochs": 2, "epoch_length": 3, "search": True, "overrides": {"search_start": 1, "search_interval": 2}}
    whole = personalise(ward, run, tmp_path / "whole", **arguments)
    step = JointTrainer._iteration

    def killed_in_the_second_epoch(trainer, engine, batch):
        if trainer.state.iteration == 5:
            raise KeyboardInterrupt
        return step(trainer, engine, batch)

    monkeypatch.setattr(JointTrainer, "_iteration", killed_in_the_second_epoch)
    with pytest.raises(KeyboardInterrupt):
        personalise(ward, run, tmp_path / "killed", **arguments)
    monkeypatch.undo()
    resumed = personalise(ward, run, tmp_path / "killed", **arguments)
    assert same(read_weights(whole), read_weights(resumed))
    assert rows(tmp_path / "whole") == rows(tmp_path / "killed") and len(rows(tmp_path / "whole")) == 2
    assert (
        float(rows(tmp_path / "whole")[1]["lambda/registration/dice"]) != 3.0
        and rows(tmp_path / "whole")[1]["held_out"]
    )


def start_of(run: Path, site: str) -> dict[str, torch.Tensor]:
    return initial_tensors(run / "server" / "round_0003.safetensors", run, read_run(run), site)


def test_a_site_of_the_run_starts_from_its_own_heads(run):
    start = start_of(run, "clinic")
    assert same(shared(start), shared(network(1))) and same(heads(start), heads(network(2)))


def test_a_new_site_starts_from_the_heads_that_the_run_started_from(run, tmp_path):
    assert heads(start_of(run, "ward")) == {}  # the run began with random numbers: so does the site
    save_checkpoint(network(4), tmp_path / "shipped.pt")
    write_json(run / "run.json", {"from_weights": {"path": str(tmp_path / "shipped.pt")}})
    start = start_of(run, "ward")
    assert same(shared(start), shared(network(1))) and same(heads(start), heads(network(4)))


def test_a_whole_network_brings_its_heads(run, tmp_path):
    save_checkpoint(network(4), tmp_path / "model.pt")
    start = initial_tensors(tmp_path / "model.pt", None, None, "ward")
    assert same(start, shared(network(4)) | heads(network(4)))


def test_other_settings_are_refused(ward, run, tmp_path):
    write_json(tmp_path / "out" / "personalised.json", {"site": str(ward), "epochs": 7})
    with pytest.raises(
        UserError,
        match=r"personalised.json: name: found null, expected \"ward\"; give the settings that the training began with",
    ):
        personalise(ward, run, tmp_path / "out", epochs=2)
    assert not (tmp_path / "out" / "start.safetensors").exists()
    (tmp_path / "out" / "personalised.json").rename(tmp_path / "out" / "training_state.pt")
    with pytest.raises(UserError, match="personalised.json: found no such file, expected the settings of the training"):
        personalise(ward, run, tmp_path / "out", epochs=2)


def test_a_state_that_is_lost_is_said_and_one_that_is_elsewhere_is_refused(ward, run, tmp_path, monkeypatch, capsys):
    trained = []
    monkeypatch.setattr(
        "fedsr_monai.personalisation.run_workflow", lambda files, **ids: trained.append(ids["output_dir"])
    )
    monkeypatch.setattr("fedsr_monai.personalisation.keep", lambda *args, **kwargs: None)
    out, again = tmp_path / "out", "training_state.pt: no such file; the training begins again"
    personalise(ward, run, out, epochs=2)
    personalise(ward, run, out, epochs=2)  # it was stopped before the end of the first epoch
    assert again not in capsys.readouterr().err
    (out / "history.csv").write_text("round,site,epoch,iteration\n0,ward,1,3\n")
    personalise(ward, run, out, epochs=2)
    assert again in capsys.readouterr().err and len(trained) == 3
    (out / "personalised.json").unlink()
    (out / "personalised.json").symlink_to("/nowhere/at/all")
    with pytest.raises(UserError, match="personalised.json: found a link to /nowhere/at/all, which leads nowhere"):
        personalise(ward, run, out, epochs=2)
    assert len(trained) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"global_weights": "nowhere.pt"}, r"^nowhere.pt: found no such file, expected a run folder of fedsr federate or a file of weights; correct the path$"),
        ({"global_weights": "ward"}, r"ward: found no server/state.json, expected a run folder of fedsr federate; name one, or a file of weights$"),
        ({"global_weights": "empty.safetensors"}, r"empty.safetensors: encoder.\*: found nothing, expected the encoder of a federation"),
        ({"site": "run"}, r"run.*site.json"),
        ({"epochs": 0}, r"^epochs: found 0, expected a whole number of at least 1; correct it$"),
        ({"epoch_length": "3"}, r"^epoch_length: found '3', expected a whole number of at least 1; correct it$"),
        ({"overrides": {"learning_rat": 1}}, r"^overrides: learning_rat: found no such id in .*train.json, expected one of its ids; did you mean 'learning_rate'\?$"),
        ({"overrides": {"search_interval": 1}}, r"^overrides: search_interval: found no such id"),
        ({"overrides": {"seed": 1}}, r"^overrides: seed: found a value, expected none, as it is an argument of its own"),
        ({"bundle": "nothing"}, r"^bundle: found no nothing/configs/train.json"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_and_leave_nothing(ward, run, tmp_path, monkeypatch, change, message):
    monkeypatch.chdir(tmp_path)
    write_tensors(tmp_path / "empty.safetensors", {})
    with pytest.raises(UserError, match=message) as error:
        personalise(**{"site": ward, "global_weights": run, "out": tmp_path / "out"} | change)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_weights_of_another_network_are_refused_by_key(ward, run, tmp_path):
    tensors = read_tensors(run / "server" / "round_0003.safetensors")
    key = min(key for key in tensors if key.startswith("encoder."))
    write_checkpoint(run, tensors | {key: torch.zeros(3)})
    with pytest.raises(UserError, match=rf"start.safetensors: {key}: found float32 \[3\].*expected"):
        personalise(ward, run, tmp_path / "out", epochs=1)


def test_a_checkpoint_that_its_server_did_not_write_is_refused(ward, run, tmp_path):
    write_tensors(run / "server" / "round_0003.safetensors", shared(network(9)))
    with pytest.raises(UserError, match=r"round_0003.safetensors: found other bytes, expected those that state.json"):
        personalise(ward, run, tmp_path / "out", epochs=1)
    for file in ("../../elsewhere.safetensors", "/etc/passwd", 3, None):
        write_json(run / "server" / "state.json", {"round": 3, "file": file, "sha256": "0"})
        with pytest.raises(UserError, match=r"state.json: file: found .*, expected the name of a checkpoint"):
            personalise(ward, run, tmp_path / "out", epochs=1)
    assert not (tmp_path / "out").exists()


def test_other_initial_weights_than_the_run_began_with_are_refused(ward, run, tmp_path):
    save_checkpoint(network(4), tmp_path / "shipped.pt")
    write_json(run / "run.json", {"from_weights": {"path": str(tmp_path / "shipped.pt"), "sha256": "0" * 64}})
    with pytest.raises(UserError, match="shipped.pt: found other weights than the run began with"):
        personalise(ward, run, tmp_path / "out", epochs=1)


def test_switches_of_network_and_losses_are_inherited_and_no_others(ward, run, tmp_path):
    switches = {"mutual_information": None, "registration_weights": {"dice": 2.0, "similarity": 1.0}, "scie": True}
    record = json.loads((run / "run.json").read_text())
    others = {"learning_rate": 5.0, "initial_weights": "/data/other.pt", "frozen": ["encoder"], "val_interval": 9}
    write_json(run / "run.json", record | {"overrides": switches | others | {"exact_registration": 0.3}})
    personalise(ward, run, tmp_path / "out", epochs=1, epoch_length=1, overrides={"exact_registration": 0.7})
    found = json.loads((tmp_path / "out" / "personalised.json").read_text())["overrides"]
    assert found == switches | {"exact_registration": 0.7}
    assert "mutual_information" not in rows(tmp_path / "out")[0] or not rows(tmp_path / "out")[0]["mutual_information"]


@pytest.mark.parametrize("override", EVIL)
def test_code_in_a_record_is_refused_and_not_run(ward, run, tmp_path, monkeypatch, override):
    monkeypatch.chdir(tmp_path)
    record = json.loads((run / "run.json").read_text())
    write_json(run / "run.json", record | {"overrides": override})
    with pytest.raises(UserError, match="run.json: overrides: "):
        personalise(ward, run, tmp_path / "out", epochs=1)
    assert not (tmp_path / "ran").exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("borders", "after", "kept"),
    [(0.8, 0.805, "start"), (0.8, 0.83, "trained"), (0.9, 0.83, "mean"), (0.9, 0.805, "start")],
    ids=["no nearer", "nearer", "nearer, borders known", "no nearer, borders known"],
)
def test_heads_that_fit_already_are_kept(ward, tmp_path, monkeypatch, capfd, borders, after, kept):
    """Given again, the same; with guard=False the trained ones are taken after all."""
    save_checkpoint(network(1), tmp_path / "weights.pt")
    measured = []

    def agreement(model):
        measured.append(model.weights.name)
        return 0.8 if model.weights.name == "start.safetensors" else after

    monkeypatch.setattr(kept_weights, "head_agreement", agreement)
    monkeypatch.setattr(kept_weights, "atlas_dice", lambda model: borders)
    arguments = (ward, tmp_path / "weights.pt", tmp_path / "out")
    start, spare = heads(network(1)), tmp_path / "out" / "trained.pt"
    found = []
    for _ in range(2):
        found.append(read_weights(personalise(*arguments, epochs=1, epoch_length=1)))
        assert found[-1]["atlas_label"].max() == 13
        assert spare.is_file() == (kept != "trained")
        assert json.loads((tmp_path / "out" / "agreement.json").read_text())["kept"] == kept
        assert "the two heads agree at a Dice of 0.800 before the training" in capfd.readouterr().err
    assert measured == 2 * ["start.safetensors", "model.pt", *(["mean.pt"] if borders == 0.9 else [])]
    assert same(*found)
    trained = read_weights(personalise(*arguments, epochs=1, epoch_length=1, guard=False))
    assert not same(heads(trained), start) and not spare.exists()
    share = {"start": 0.0, "mean": 0.5, "trained": 1.0}[kept]
    for key, value in heads(found[0]).items():
        assert torch.allclose(value, torch.lerp(start[key], trained[key], share), atol=1e-6), key
    assert same(
        {k: v for k, v in found[0].items() if k not in start}, {k: v for k, v in trained.items() if k not in start}
    )


def test_sizes_of_structures_are_those_of_the_atlas_and_the_trained_weights_stay_beside(
    ward, run, tmp_path, monkeypatch, capfd
):
    """Given again, the same; with sizes=False the trained weights are taken after all."""

    def move(network):
        biases = torch.zeros(14)
        biases[12] = -0.5
        network.segmentation.logits.bias.add_(biases)
        return biases

    monkeypatch.setattr(kept_weights, "match_sizes", move)
    fit = partial(personalise, ward, run, tmp_path / "out", epochs=1, epoch_length=1)
    spare, table = tmp_path / "out" / "trained.pt", tmp_path / "out" / "sizes.json"
    found = []
    for _ in range(2):
        found.append(read_weights(fit()))
        assert list(json.loads(table.read_text())) == ["amygdala"]
        assert f"all are in {table}" in capfd.readouterr().err
    assert same(*found)
    trained, bias = read_weights(spare), "segmentation.logits.bias"
    moved = found[0][bias] - trained[bias]
    assert moved[12] == pytest.approx(-0.5, abs=1e-6) and moved.abs().sum() == pytest.approx(0.5, abs=1e-6)
    assert same(*({k: v for k, v in weights.items() if k != bias} for weights in (found[0], trained)))
    assert same(read_weights(fit(sizes=False)), trained)
    assert not spare.exists() and not table.exists()
    fit()
    assert table.exists()
    monkeypatch.setattr(kept_weights, "match_sizes", lambda network: torch.zeros(14))
    assert same(read_weights(fit()), trained)
    assert not spare.exists() and not table.exists()


def test_a_run_that_began_with_weights_ends_half_way_where_they_knew_the_borders(
    ward, run, tmp_path, monkeypatch, capfd
):
    """The encoder of the rounds too; a run's weights are never dropped, however little the heads agree after it."""
    save_checkpoint(network(4), tmp_path / "weights.pt")
    record = json.loads((run / "run.json").read_text())
    digest = hashlib.sha256((tmp_path / "weights.pt").read_bytes()).hexdigest()
    from_weights = {"path": str(tmp_path / "weights.pt"), "sha256": digest}
    write_json(run / "run.json", record | {"from_weights": from_weights})
    agreements = {"weights.pt": 0.9, "model.pt": 0.85, "mean.pt": 0.86}
    monkeypatch.setattr(kept_weights, "head_agreement", lambda model: agreements[model.weights.name])
    monkeypatch.setattr(kept_weights, "atlas_dice", lambda model: 0.9)
    fit = partial(personalise, ward, run, tmp_path / "out", epochs=1, epoch_length=1)
    mean = read_weights(fit())
    assert json.loads((tmp_path / "out" / "agreement.json").read_text())["kept"] == "mean"
    trained, began = read_weights(tmp_path / "out" / "trained.pt"), network(4)
    assert same(shared(trained), shared(network(1)))
    for key, value in (shared(mean) | heads(mean)).items():
        assert torch.allclose(value, (began[key] + trained[key]) / 2, atol=1e-6), key
    agreements["mean.pt"] = 0.8  # worse than both ends: there is nothing good half-way
    assert same(read_weights(fit()), trained)
    save_checkpoint(network(5), tmp_path / "weights.pt")  # other weights under that name
    capfd.readouterr()
    assert personalisation.weights_before(read_run(run)) is None
    assert "other weights than the run began with" in capfd.readouterr().err


def test_how_well_weights_draw_the_borders_of_an_atlas(ward, tmp_path, monkeypatch):
    """1 if the segmentation head gives the labels of the atlas, whatever the size of the grid."""
    save_checkpoint(network(1), tmp_path / "weights.pt")
    (model,) = models_of_sites([ward], tmp_path / "weights.pt")
    assert 0 <= atlas_dice(model) < 0.5  # of a random head

    def right(network, features):
        labels = pad_to_stride(network.atlas_label)[:, 0].long()
        return functional.one_hot(labels, network.num_classes).movedim(-1, 1).float(), []

    monkeypatch.setattr(FedSRNet, "segment", right)
    assert atlas_dice(model) == 1


def test_the_agreement_of_two_heads_is_measured_on_the_sites_scans(ward, tmp_path):
    save_checkpoint(network(1), tmp_path / "weights.pt")
    (model,) = models_of_sites([ward], tmp_path / "weights.pt")
    assert 0 <= head_agreement(model, most=1) < 0.5  # of random heads
