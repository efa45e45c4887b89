from __future__ import annotations

import io

import pytest
import torch
from ignite.engine import Events

from fedsr_monai.engines import JointTrainer, freeze, head_optimizers
from fedsr_monai.errors import UserError
from fedsr_monai.federation.site_state import collect_state, seed_everything
from fedsr_monai.losses import Balanced, InfoNCE, ParzenMI
from fedsr_monai.networks import FedSRNet
from fedsr_monai.spatial.warping import warp
from fedsr_monai.synthesis import RandomAppearance, RandomAtlas, RandomDeformation


@pytest.fixture
def scan(phantom) -> dict[str, torch.Tensor]:
    """The phantom, deformed: image and label [1, 1, 32, 32, 32]."""
    torch.manual_seed(7)
    ddf = RandomDeformation(6.0)(phantom[1][None])
    return {"image": warp(phantom[0][None], ddf), "label": warp(phantom[1][None].float(), ddf, mode="nearest")}


def unlabelled(scan: dict[str, torch.Tensor], count: int = 1) -> list[dict[str, torch.Tensor]]:
    return [{"image": scan["image"]}] * count


def random_atlas() -> RandomAtlas:
    return RandomAtlas(RandomDeformation(6.0), RandomAppearance(14, 6.0))


def make_trainer(
    phantom, data, epochs: int = 1, lr: float = 1e-3, frozen=(), fused: bool = True, network=None, **options
) -> JointTrainer:
    torch.manual_seed(0)
    if network is None:
        network = FedSRNet("tiny")
        network.set_atlas(*phantom)
    freeze(network, frozen)
    options = {"mutual_information": ParzenMI(), "amp": False} | options
    return JointTrainer("cpu", epochs, data, network, head_optimizers(network, lr, fused), fused=fused, **options)


def state_of(trainer: JointTrainer, part: str) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in trainer.network.state_dict().items() if key.startswith(part)}


def moved(trainer: JointTrainer, part: str, before: dict[str, torch.Tensor]) -> list[str]:
    return [key for key, value in state_of(trainer, part).items() if not torch.equal(value, before[key])]


@pytest.mark.parametrize("fused", [True, False])
def test_both_ways_to_step_lower_both_losses(phantom, scan, fused):
    # With the scan's labels, so that the registration's target does not move while the segmentation learns it.
    trainer = make_trainer(phantom, [scan] * 12, fused=fused, lr=2e-3)
    outputs = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: outputs.append(engine.state.output))
    trainer.run()
    first, last = outputs[0], outputs[-1]
    assert last["segmentation"] < 0.8 * first["segmentation"]
    assert last["registration"] < 0.9 * first["registration"]
    assert last["similarity"] < first["similarity"] and last["dice"] < first["dice"]


def test_the_first_step_does_not_throw_the_field_off(phantom, scan):
    trainer = make_trainer(phantom, [scan] * 2)
    trainer.run()
    assert trainer.state.output["smoothness"] < 0.01  # 0.05 and a loss twice as high where all layers step alike
    assert [group["lr"] for group in trainer.optimizers["registration"].param_groups] == [1e-3, 1e-4]


def test_output_is_named_numbers_that_add_up(phantom, scan):
    weights = {"similarity": 2.0, "smoothness": 0.5, "dice": 1.0, "mutual_information": 0.0}
    trainer = make_trainer(phantom, unlabelled(scan), registration_weights=weights)
    trainer.run()
    output = trainer.state.output
    assert set(output) == {
        "loss", "registration", "segmentation", "similarity", "smoothness", "dice", "exact", "pseudo", "mutual_information",
        "phi_gradient", "sa_entropy",
    }  # fmt: skip
    assert all(isinstance(value, float) for value in output.values())
    assert output["loss"] == pytest.approx(output["registration"] + output["segmentation"])
    assert output["registration"] == pytest.approx(
        sum(weights[k] * output[k] for k in ("similarity", "smoothness", "dice")), rel=1e-5
    )


def test_every_parameter_moves(phantom, scan):
    for fused in (True, False):
        trainer = make_trainer(phantom, unlabelled(scan, 2), fused=fused)
        before = dict(trainer.network.named_parameters())
        before = {key: value.detach().clone() for key, value in before.items()}
        trainer.run()
        assert [key for key, value in trainer.network.named_parameters() if torch.equal(value, before[key])] == []


def test_frozen_parts_do_not_move(phantom, scan):
    trainer = make_trainer(phantom, unlabelled(scan), frozen=["encoder"], sa_alpha=0.0, random_atlas=random_atlas())
    before = state_of(trainer, "")
    trainer.run()
    assert moved(trainer, "encoder.", before) == [] and moved(trainer, "sa.", before) == []
    assert moved(trainer, "atlas_", before) == []
    assert moved(trainer, "registration.", before) and moved(trainer, "segmentation.", before)


@pytest.mark.parametrize("labelled", [True, False])
def test_segmentation_alone(phantom, scan, labelled):
    data = [scan] if labelled else unlabelled(scan)
    trainer = make_trainer(phantom, data, heads=["segmentation"])
    before = state_of(trainer, "")
    trainer.run()
    assert moved(trainer, "registration.", before) == [] and moved(trainer, "sa.registration", before) == []
    assert moved(trainer, "segmentation.", before) and moved(trainer, "encoder.", before)
    losses = {"loss", "segmentation", "exact"}
    # A scan without labels is not computed, and the drawn image tells the mutual information nothing.
    of_scan = {"mutual_information", "phi_gradient", "sa_entropy"} if labelled else set()
    assert set(trainer.state.output) == losses | of_scan


def test_registration_alone(phantom, scan):
    trainer = make_trainer(phantom, unlabelled(scan), heads=["registration"])
    before = state_of(trainer, "")
    trainer.run()
    assert moved(trainer, "segmentation.", before) == [] and moved(trainer, "registration.", before)
    assert "segmentation" not in trainer.state.output and "similarity" in trainer.state.output


def test_corrected_labels_are_exact_labels(phantom, scan):
    """A scan with labels teaches more than the same scan without."""
    outputs = {}
    for name, data in (("label", [scan]), ("none", unlabelled(scan))):
        trainer = make_trainer(phantom, data)
        trainer.run()
        outputs[name] = trainer.state.output
    assert "pseudo" not in outputs["label"] and "pseudo" in outputs["none"]
    assert outputs["label"]["exact"] != outputs["none"]["exact"]
    assert outputs["label"]["dice"] != outputs["none"]["dice"]  # the registration's target too


@pytest.mark.parametrize(("share", "target"), [(1.0, "drawn"), (0.0, "scan")])
def test_registration_target_is_the_random_atlas_or_the_scan(phantom, scan, share, target):
    trainer = make_trainer(phantom, unlabelled(scan), random_atlas=random_atlas(), exact_registration=share)
    trainer.run()
    assert ("pseudo" in trainer.state.output) == (target == "scan")  # only a registered scan has pseudo-labels


@pytest.mark.parametrize("fused", [True, False])
def test_a_scan_that_no_loss_looks_at_is_not_computed(phantom, scan, fused):
    seen = []
    trainer = make_trainer(phantom, unlabelled(scan), random_atlas=random_atlas(), exact_registration=1.0, fused=fused)
    trainer.network.encoder.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    trainer.run()
    assert seen and not any(torch.equal(image, scan["image"][0]) for batch in seen for image in batch)
    seen.clear()
    trainer = make_trainer(phantom, [scan], random_atlas=random_atlas(), exact_registration=1.0, fused=fused)
    trainer.network.encoder.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    trainer.run()  # its own labels are exact: they are learnt from in every step
    assert any(torch.equal(image, scan["image"][0]) for batch in seen for image in batch)


def test_sa_features_start_from_the_atlas_and_move_by_alpha(phantom, scan):
    start = state_of(make_trainer(phantom, unlabelled(scan)), "sa.")
    assert all(vector.any() for vector in start.values()) and len(start) == 6
    distance = {}
    for alpha in (0.0, 0.1, 0.2):
        trainer = make_trainer(phantom, unlabelled(scan), sa_alpha=alpha)
        trainer.run()
        after = state_of(trainer, "sa.")
        distance[alpha] = torch.cat([after[key] - start[key] for key in start])
    assert not distance[0.0].any() and distance[0.1].any()
    torch.testing.assert_close(distance[0.2], 2 * distance[0.1], atol=1e-6, rtol=1e-4)  # eq. 7 is linear in alpha


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("exact_registration", [0.0, 1.0])
def test_sa_features_by_scans_alone(phantom, scan, fused, exact_registration):
    after = {}
    for image in (1.0, 0.5):  # another drawn image, the same scan

        def draw(atlas, label, ddf, image=image):
            return image * atlas, label

        options = {"exact_registration": exact_registration, "fused": fused, "sa_scans_only": True}
        trainer = make_trainer(phantom, unlabelled(scan), random_atlas=draw, lr=0.0, **options)
        before = state_of(trainer, "sa.")
        trainer.run()
        after[image] = state_of(trainer, "sa.")
        assert bool(moved(trainer, "sa.", before)) == (exact_registration == 0)  # no scan is seen where all are drawn
    for key, value in after[1.0].items():
        torch.testing.assert_close(value, after[0.5][key], atol=1e-6, rtol=1e-4)


def test_the_part_of_phi_is_measured_once_per_epoch_and_changes_no_step(phantom, scan):
    outputs, states = {}, []
    for measuring in (True, False):
        trainer = make_trainer(phantom, unlabelled(scan, 2), epochs=2)
        rows = outputs.setdefault(measuring, [])
        trainer.add_event_handler(
            Events.ITERATION_COMPLETED, lambda engine, rows=rows: rows.append(engine.state.output)
        )
        if not measuring:
            trainer.add_event_handler(Events.EPOCH_STARTED, lambda engine: setattr(engine, "_measuring", False))
        trainer.run()
        states.append(state_of(trainer, ""))
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert ["phi_gradient" in row for row in outputs[True]] == [True, False, True, False]
    assert not any("phi_gradient" in row or "sa_entropy" in row for row in outputs[False])
    first = outputs[True][0]
    assert first["phi_gradient"] > 0 and first["sa_entropy"] > 0
    weak = make_trainer(phantom, unlabelled(scan), registration_weights={"mutual_information": 1e-3},
                        segmentation_weights={"mutual_information": 1e-3})  # fmt: skip
    weak.run()
    assert weak.state.output["phi_gradient"] == pytest.approx(first["phi_gradient"] / 100, rel=1e-2)


def test_sa_features_that_arrived_are_kept(phantom, scan):
    network = FedSRNet("tiny")
    network.set_atlas(*phantom)
    network.sa.segmentation[0].fill_(0.5)
    before = {key: value.clone() for key, value in network.sa.state_dict().items()}
    trainer = make_trainer(phantom, unlabelled(scan), network=network)
    assert moved(trainer, "sa.", {f"sa.{key}": value for key, value in before.items()}) == []


def test_grids_that_are_no_multiple_of_16(phantom, scan):
    cut = (slice(None), slice(0, 27), slice(0, 30))
    trainer = make_trainer(
        [x[cut] for x in phantom], [{"image": scan["image"][(slice(None), *cut)]}], random_atlas=random_atlas()
    )
    trainer.run()
    assert all(value == value for value in trainer.state.output.values())


@pytest.mark.parametrize("fused", [True, False])
def test_both_targets_register_the_scan_in_every_step(phantom, scan, fused):
    options = {"random_atlas": random_atlas(), "exact_registration": 1.0, "both_targets": True, "fused": fused}
    trainer = make_trainer(phantom, unlabelled(scan), **options)
    fields = []
    trainer.network.registration.register_forward_hook(lambda module, inputs, output: fields.append(output[0].shape[0]))
    trainer.run()
    assert fields == [2] and "pseudo" in trainer.state.output


def test_the_general_branch_is_a_loss_of_its_own_without_scie(phantom, scan):
    weights = {"pseudo": 0.5, "general": 2.0}
    trainer = make_trainer(phantom, unlabelled(scan), segmentation_weights=weights)
    trainer.run()
    output = trainer.state.output
    # At initialisation SCIE is the identity: both branches say the same.
    assert output["general"] == pytest.approx(output["exact"] + 0.5 * output["pseudo"], rel=1e-4)


def test_heads_learn_before_the_encoder_where_they_take_turns(phantom, scan):
    trainer = make_trainer(phantom, unlabelled(scan, 2), heads_first=0.5)
    states = [state_of(trainer, "")]
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: states.append(state_of(engine, "")))
    trainer.run()
    moves = [
        {key.split(".")[0] for key in after if not key.startswith("sa.") and not torch.equal(before[key], after[key])}
        for before, after in zip(states, states[1:])
    ]
    assert moves == [{"registration", "segmentation"}, {"encoder"}]


def test_each_scan_is_registered_with_the_atlas_of_its_site(phantom, scan):
    other = (0.5 * phantom[0], phantom[1])
    data = [{"image": scan["image"], "name": [f"{site}/scan"]} for site in ("b", "a", "b")]
    trainer = make_trainer(phantom, data, atlases={"a": phantom, "b": other})
    atlases = []
    trainer.network.segmentation.register_forward_hook(
        lambda module, inputs, output: atlases.append(float(trainer.network.atlas_image.max()))
    )
    trainer.run()
    high, low = float(phantom[0].max()), float(other[0].max())
    assert atlases == [low, high, low]


def test_a_gradient_that_is_not_finite_stops_before_the_weights_are(phantom, scan):
    trainer = make_trainer(phantom, [{"image": scan["image"] * float("nan")}])
    before = state_of(trainer, "encoder.")
    with pytest.raises(UserError, match="^training, iteration 1: found NaN or an infinite value in the gradient"):
        trainer.run()
    assert moved(trainer, "encoder.", before) == []


def test_a_balanced_estimator_holds_its_part_of_the_gradient(phantom, scan):
    fractions = []
    for estimator in (ParzenMI(), Balanced(ParzenMI(), fraction=0.05, interval=1)):
        trainer = make_trainer(phantom, unlabelled(scan, 3), mutual_information=estimator)
        trainer.add_event_handler(
            Events.ITERATION_COMPLETED, lambda engine: fractions.append(engine.state.output.get("phi_gradient"))
        )
        trainer.run()
    assert fractions[3] == pytest.approx(fractions[0])  # the first is measured before anything is changed
    assert all(0.01 < fraction < 0.2 for fraction in fractions[4:])


def test_resumed_training_equals_an_uninterrupted_one(phantom, scan):
    data = [{"image": scan["image"].roll(shift, dims=2)} for shift in range(3)]  # epochs end in the middle of them

    def new_trainer() -> JointTrainer:
        options = {"mutual_information": InfoNCE(), "exact_registration": 0.3, "epoch_length": 2}
        return make_trainer(phantom, data, random_atlas=random_atlas(), **options)

    def run_round(trainer: JointTrainer, number: int) -> None:
        seed_everything(number)
        trainer.state.max_epochs = number
        trainer.run()

    whole = new_trainer()
    run_round(whole, 1)
    file = io.BytesIO()
    torch.save(collect_state(whole, {}), file)
    run_round(whole, 2)

    file.seek(0)
    state = torch.load(file, weights_only=True)
    resumed = new_trainer()
    resumed.network.load_state_dict(state["network"], strict=False)
    for head, optimizer in resumed.optimizers.items():
        optimizer.load_state_dict(state["optimizers"][head])
    resumed.mutual_information.load_state_dict(state["mutual_information"])
    resumed.state.epoch, resumed.state.iteration = 1, 2
    run_round(resumed, 2)
    assert moved(resumed, "", state_of(whole, "")) == []
    assert resumed.state.output == whole.state.output


@pytest.mark.parametrize("fused", [True, False])
def test_learning_rates_of_heads_and_encoder(fused):
    network = FedSRNet()
    optimizers = head_optimizers(network, 1e-3, fused, registration_lr=0.1, velocity_lr=0.5, encoder_lr=0.3)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    rates = {
        (head, names[id(parameter)]): group["lr"]
        for head, optimizer in optimizers.items()
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    expected = {}
    for name, _ in network.named_parameters():
        part = name.split(".")[0]
        if part == "encoder":
            expected["segmentation", name] = 3e-4
            if not fused:  # the alternating steps of Algorithm 1 move it with each head
                expected["registration", name] = 3e-5
        else:
            last = name.startswith("registration.velocities")
            expected[part, name] = 1e-3 if part == "segmentation" else 5e-5 if last else 1e-4
    assert rates == pytest.approx(expected)
