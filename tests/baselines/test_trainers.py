"""Each baseline does what its paper says: which parts move by which step, what its images are, and that it learns."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from ignite.engine import Events

from fedsr_monai import baselines
from fedsr_monai.baselines.tbi_one_shot import inverse, rectified
from fedsr_monai.bundle_path import bundle_path
from fedsr_monai.engines import head_optimizers
from fedsr_monai.federation.site_state import collect_state, restore_state, seed_everything
from fedsr_monai.networks import Registration
from fedsr_monai.spatial.warping import compose, resize_ddf, warp
from fedsr_monai.synthesis import RandomAppearance, RandomAtlas, RandomDeformation

CONFIGS = bundle_path("fedsr_encoder") / "configs" / "baselines"
NAMES = ("deep_atlas", "brbs", "bi_jros", "tbi_one_shot", "u_resnet")


@pytest.fixture
def phantom(phantom) -> tuple[torch.Tensor, torch.Tensor]:
    """The middle of the phantom, [1, 32, 16, 16]: as small as the encoder takes it."""
    return tuple(volume[:, :, 8:24, 8:24] for volume in phantom)


@pytest.fixture
def scans(phantom) -> torch.Tensor:
    """Two deformed phantoms, [2, 1, 32, 16, 16]."""
    torch.manual_seed(7)
    deform = RandomDeformation(6.0)
    return torch.cat([warp(phantom[0][None], deform(phantom[1][None])) for _ in range(2)])


@pytest.fixture
def make(phantom, scans):
    """Make a baseline's trainer with the weights of its override file, on the two scans."""

    def made(name: str, steps: int = 1, epochs: int = 1, lr: float = 1e-3, **options):
        config = json.loads((CONFIGS / f"{name}.json").read_text())
        torch.manual_seed(0)
        network = getattr(baselines, config["network_def"]["_target_"].split(".")[-1])("tiny").set_atlas(*phantom)
        trainer = getattr(baselines, config["train#trainer#_target_"].split(".")[-1])
        fused = config.get("fused", True)
        three = "optimizers" in config
        optimizers = baselines.three_optimizers(network, lr) if three else head_optimizers(network, lr, fused)
        weights = {key: config[key] for key in ("registration_weights", "segmentation_weights")}
        data = [{"image": scans}] * steps
        return trainer("cpu", epochs, data, network, optimizers, amp=False, sa_alpha=0.0, **weights, **options)

    return made


def moved(trainer, step) -> set[str]:
    """Do something with a trainer; return the parts of the network that it has moved."""
    parts = {}
    for key, value in trainer.network.state_dict().items():
        name = ".".join(key.split(".")[:2]) if key.startswith("registration.encoder") else key.split(".")[0]
        parts.setdefault(name, []).append((key, value.clone()))
    step()
    after = trainer.network.state_dict()
    return {part for part, before in parts.items() if any(not torch.equal(after[key], value) for key, value in before)}


def ready(trainer, scans):
    """Return a trainer's images in the state in which it steps."""
    trainer.state.epoch = 1
    trainer.network.train()
    return trainer._draw()


@pytest.mark.parametrize("name", NAMES)
def test_it_learns(make, name):
    trainer = make(name, steps=8, lr=4e-3)
    outputs = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: outputs.append(engine.state.output))
    trainer.run()
    # Steps on the undeformed atlas, whose labels meet from the start, are left out of the registration.
    steps = {"segmentation": outputs, "registration": [output for output in outputs if output.get("dice", 1) > 0.05]}
    first, last = (
        {head: sum(output[head] for output in some[part]) / 3 for head, some in steps.items()}
        for part in (slice(3), slice(-3, None))
    )
    assert last["segmentation"] < 0.9 * first["segmentation"]
    assert last["registration"] < first["registration"]
    assert all(isinstance(value, float) for value in outputs[0].values())


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_that_it_uses_moves_and_the_atlas_does_not(make, name):
    trainer = make(name, steps=3, random_atlas=RandomAtlas(RandomDeformation(6.0), RandomAppearance(14, 6.0)))
    before = {key: value.clone() for key, value in trainer.network.state_dict().items()}
    trainer.run()
    same = {key for key, value in trainer.network.state_dict().items() if torch.equal(value, before[key])}
    expected = {key for key in before if key.startswith(("sa.", "atlas_"))}
    if name == "bi_jros":  # its encoder is fixed
        expected |= {key for key in before if key.startswith("encoder.")}
    assert same == expected


@pytest.mark.parametrize("name", ["deep_atlas", "brbs"])
def test_each_of_two_networks_is_moved_by_its_own_step_alone(make, scans, name):
    trainer = make(name)
    drawn = ready(trainer, scans)
    registration = {"registration", "registration.encoder"}
    assert moved(trainer, lambda: trainer.registration_step(scans, drawn)) == registration
    assert moved(trainer, lambda: trainer.segmentation_step(scans, drawn)) == {"segmentation", "encoder"}


@pytest.mark.parametrize("name", ["deep_atlas", "brbs"])
def test_a_site_with_one_scan_can_train(make, scans, name):
    trainer = make(name)
    report = trainer.step(scans[:1], ready(trainer, scans))
    assert all(torch.isfinite(loss) for losses in report.values() for loss in losses.values())


def test_the_anatomy_loss_of_deep_atlas_teaches_both_networks(make, scans):
    trainer = make("deep_atlas")
    drawn = ready(trainer, scans)
    trainer.weights["segmentation"]["exact"] = 0.0
    assert moved(trainer, lambda: trainer.segmentation_step(scans, drawn)) == {"segmentation", "encoder"}
    trainer.weights["registration"] |= {"similarity": 0.0, "smoothness": 0.0}
    assert "registration" in moved(trainer, lambda: trainer.registration_step(scans, drawn))


def test_brbs_samples_between_the_atlas_and_the_scans(make, scans, phantom):
    trainer = make("brbs")
    drawn = ready(trainer, scans)
    ddf = torch.zeros(1, 3, 16, 8, 8)
    ddf[:, 0] = 1.0  # half-resolution voxels: two of the image's
    space = Registration(ddf, resize_ddf(ddf, (32, 16, 16)), [])
    image, label = trainer.sample(drawn, scans[:1], space, 0.0, 0.0)
    assert torch.allclose(image, drawn.atlas, atol=1e-5) and torch.equal(label, drawn.atlas_label)
    image, label = trainer.sample(drawn, scans[:1], space, 1.0, 0.0)
    assert torch.allclose(image, scans[:1], atol=1e-5) and torch.equal(label, drawn.atlas_label)
    _, label = trainer.sample(drawn, scans[:1], space, 0.0, 0.5)
    assert torch.equal(label[:, :, :-1], drawn.atlas_label[:, :, 1:])


def test_the_heads_of_bi_jros_take_turns_and_its_encoder_learns_for_some_epochs(make, scans):
    trainer = make("bi_jros", encoder_epochs=1)
    drawn = ready(trainer, scans)
    trainer.network.encoder.requires_grad_(False)
    assert moved(trainer, lambda: trainer.segmentation_step(scans[:1], drawn)) == {"segmentation"}
    assert moved(trainer, lambda: trainer.registration_step(scans[:1], drawn)) == {"registration"}
    assert "encoder" in moved(trainer, lambda: trainer.step(scans, drawn))
    trainer.state.epoch = 2
    assert moved(trainer, lambda: trainer.step(scans, drawn)) == {"registration", "segmentation"}


def test_the_fake_of_bi_jros_has_the_anatomy_of_the_warped_atlas(make, scans):
    trainer = make("bi_jros")
    drawn = ready(trainer, scans)
    there, back = (torch.zeros(1, 3, 16, 8, 8) for _ in range(2))
    there[:, 1], back[:, 1] = 1.0, -1.0
    to_scan, to_atlas = (Registration(ddf, resize_ddf(ddf, (32, 16, 16)), []) for ddf in (there, back))
    image, fractions = trainer.fake(scans[:1], drawn, to_scan, to_atlas)
    inside = (slice(None), slice(None), slice(None), slice(4, -4))
    assert torch.allclose(image[inside], scans[:1][inside], atol=1e-4)  # there and back again
    assert torch.allclose(fractions, warp(drawn.atlas_fractions, there))


def test_the_response_of_bi_jros_is_the_least_squares_ratio_of_two_gradients(make, scans):
    trainer = make("bi_jros")
    ready(trainer, scans)
    lower = trainer.segment(scans[:1]).square().mean()
    assert float(trainer.response(-3 * lower, lower)) == pytest.approx(-3, rel=1e-4)


def test_the_third_network_of_tbi_one_shot_works_against_the_second(make, scans):
    trainer = make("tbi_one_shot", ramp_up=1, lr=1e-2)
    drawn = ready(trainer, scans)
    ddf = RandomDeformation(6.0)(drawn.atlas_label)
    intensities = scans[1:] - drawn.atlas
    with torch.no_grad():
        full = trainer.augmented(drawn, intensities, ddf)
    arguments = (full, intensities, ddf, drawn)
    for _ in range(10):  # segmentations that do not look at the image cannot be told apart
        trainer.segmentation_step(*arguments)
    likeness = []
    for _ in range(6):
        step = lambda: likeness.append(trainer.augmentation_step(*arguments)["augmentation"]["likeness"].item())  # noqa: E731
        assert moved(trainer, step) == {"augmentation"}
    assert likeness[-1] < likeness[0]
    assert moved(trainer, lambda: trainer.segmentation_step(*arguments)) == {"segmentation", "encoder"}


def test_what_is_adversarial_is_ramped_up(make):
    trainer = make("tbi_one_shot", ramp_up=10)
    ramps = []
    for trainer.state.epoch in (0, 5, 10, 20):
        ramps.append(trainer.ramp())
    assert ramps == pytest.approx([0.0067, 0.2865, 1, 1], abs=1e-3)


def test_doubtful_voxels_count_less():
    label = torch.ones(1, 1, 2, 2, 2, dtype=torch.long)
    wrong = torch.zeros(1, 3, 2, 2, 2)
    wrong[:, 0] = 4.0
    right = wrong.flip(1).roll(-1, 1)
    assert rectified(wrong, right, label) < 0.5 * rectified(wrong, wrong, label)


def test_the_inverse_of_a_field_undoes_it(phantom):
    torch.manual_seed(3)
    ddf = RandomDeformation(6.0, zoom=(0.98, 1.02), shift=1.0, rotation=1.0)(phantom[1][None])
    left = compose(inverse(ddf), ddf)[:, :, 4:-4, 4:-4, 4:-4]
    assert left.abs().mean() < 0.1 * ddf.abs().mean()


def test_the_field_of_u_resnet_keeps_the_order_of_voxels(make, scans):
    trainer = make("u_resnet")
    head = trainer.network.registration
    torch.nn.init.normal_(head.velocities[0].weight, std=5.0)
    with torch.no_grad():
        ddf = trainer.network.register_pair(scans[:1], scans[1:]).ddf
    assert ddf.std() > 1
    for axis in range(3):
        assert ddf[:, axis].diff(dim=axis + 1).min() >= -1 - 1e-5


def test_u_resnet_at_first_does_nothing_and_moves_all_in_one_step(make, scans):
    trainer = make("u_resnet")
    drawn = ready(trainer, scans)
    assert trainer.network.register_pair(scans[:1], scans[1:]).ddf.abs().max() < 0.05
    assert moved(trainer, lambda: trainer.step(scans, drawn)) == {"encoder", "registration", "segmentation"}


@pytest.mark.parametrize("name", NAMES)
def test_stopped_and_resumed_is_not_stopped(make, name):
    options = {"steps": 1, "epochs": 2} | ({"encoder_epochs": 1} if name == "bi_jros" else {})
    whole, begun, resumed = (make(name, **options) for _ in range(3))

    def epoch(trainer):
        seed_everything(trainer.state.epoch)
        trainer.state.max_epochs = trainer.state.epoch + 1
        trainer.state.epoch_length = 1
        trainer.run()

    for trainer in (whole, whole, begun):
        epoch(trainer)
    file = io.BytesIO()
    torch.save(collect_state(begun, []), file)
    file.seek(0)
    resumed.state.epoch_length = 1
    restore_state(resumed, [], torch.load(file, weights_only=True), Path("state.pt"))
    epoch(resumed)
    expected = whole.network.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in resumed.network.state_dict().items())
    assert not all(torch.equal(value, expected[key]) for key, value in begun.network.state_dict().items())
