from __future__ import annotations

import io
import math

import pytest
import torch
from ignite.engine import Events

from fedsr_monai.engines import LossSearch, LossSearchTrainer, freeze, halves, head_optimizers
from fedsr_monai.engines.loss_search import Lambdas, coupling, step_sizes
from fedsr_monai.errors import UserError
from fedsr_monai.federation.site_state import seed_everything
from fedsr_monai.losses import ParzenMI
from fedsr_monai.networks import FedSRNet
from fedsr_monai.spatial.warping import warp
from fedsr_monai.synthesis import RandomAppearance, RandomAtlas, RandomDeformation

pytestmark = pytest.mark.slow


@pytest.fixture
def scans(phantom) -> list[dict[str, torch.Tensor]]:
    """Four deformed phantoms, image and label [1, 32, 32, 32]."""
    torch.manual_seed(7)
    fields = [RandomDeformation(6.0)(phantom[1][None]) for _ in range(4)]
    return [
        {"image": warp(phantom[0][None], ddf)[0], "label": warp(phantom[1][None].float(), ddf, mode="nearest")[0]}
        for ddf in fields
    ]


def make_trainer(
    phantom,
    scans,
    labelled=(),
    optimizer=None,
    lr=1e-3,
    fused=True,
    drawn=True,
    epochs=1,
    stirred=False,
    search=None,
    **options,
) -> LossSearchTrainer:
    """`stirred`: with heads that have moved from their initial identity."""
    torch.manual_seed(0)
    network = FedSRNet("tiny")
    network.set_atlas(*phantom)
    with torch.no_grad():
        for parameter in network.parameters() if stirred else ():
            parameter.add_(0.005 * torch.randn(parameter.shape))
    freeze(network, ["encoder"])
    learning, held_out = halves([scan if "label" in labelled else {"image": scan["image"]} for scan in scans])
    data = [{key: value[None] for key, value in scan.items()} for scan in learning]
    optimizers = head_optimizers(network, lr, fused) if optimizer is None else optimizer(network)
    options = {
        "mutual_information": ParzenMI(),
        "search_interval": 1,
        "search_start": 0,
        "exact_registration": 0.5,
    } | options
    random_atlas = RandomAtlas(RandomDeformation(6.0), RandomAppearance(14, 6.0)) if drawn else None
    return LossSearchTrainer(
        "cpu", epochs, data, network, optimizers, random_atlas, sa_alpha=0.0, amp=False, fused=fused,
        search=search or LossSearch(limit=100.0), held_out=held_out, **options
    )  # fmt: skip


def test_lambdas_begin_at_the_weights_and_keep_their_sum():
    lambdas = Lambdas({"a": 3.0, "b": 1.0, "c": 0.0})
    assert {name: value.item() for name, value in lambdas().items()} == pytest.approx({"a": 3.0, "b": 1.0})
    with torch.no_grad():
        lambdas.logs["a"] += 5
    values = lambdas()
    assert sum(values.values()).item() == pytest.approx(4) and values["a"] > 3.9


def test_lambdas_stay_near_their_initial_values():
    lambdas = Lambdas({"a": 3.0, "b": 1.0}, limit=2.0)
    with torch.no_grad():
        lambdas.logs["a"] += 5
    lambdas.clamp()
    assert {name: value.item() for name, value in lambdas().items()} == pytest.approx({"a": 4 * 6 / 7, "b": 4 * 1 / 7})


def test_halves_are_disjoint():
    learning, held_out = halves(list(range(7)))
    assert learning == [0, 2, 4, 6] and held_out == [1, 3, 5]


def test_one_scan_cannot_be_halved():
    with pytest.raises(
        UserError,
        match=r"loss search: found 1 training scan.*at least 2",
    ):
        halves(["a"])


def test_coupling_is_the_part_of_the_upper_gradient_along_the_lower_one():
    output = torch.tensor([1.0, 2.0, -1.0], requires_grad=True)
    lower = (output * torch.tensor([1.0, 0.0, 2.0])).sum()
    across = (output * torch.tensor([2.0, 7.0, -1.0])).sum()  # orthogonal in the output
    assert coupling(3 * lower + across, lower, output).item() == pytest.approx(3)
    assert coupling(across, lower, output).item() == pytest.approx(0)
    assert coupling(across, 0 * lower, output).item() == 0  # nothing to follow, and no division by zero


def test_step_sizes_are_those_of_the_optimiser():
    weight, free = torch.nn.Parameter(torch.randn(4)), torch.nn.Parameter(torch.randn(2))
    adam = torch.optim.Adam([{"params": [weight], "lr": 0.1}, {"params": [free], "lr": 0.01}])
    weight.grad, free.grad = torch.tensor([1.0, 2.0, -3.0, 4.0]), None
    adam.step()
    expected = 0.1 / (adam.state[weight]["exp_avg_sq"].sqrt() + 1e-8)
    torch.testing.assert_close(step_sizes(adam)(weight), expected)
    assert step_sizes(adam)(free) == 0.01


def test_hypergradient_is_the_slope_of_the_held_out_loss(phantom, scans):
    """Against finite differences over real steps, taken by plain gradient descent."""

    def sgd(network):
        return {
            head: torch.optim.SGD(getattr(network, head).parameters(), lr=1e-2)
            for head in ("registration", "segmentation")
        }

    def held_out_after_step(head=None, name=None, change=0.0):
        options = {"clip": math.inf, "drawn": False, "coupled": False, "stirred": True}
        trainer = make_trainer(phantom, scans, optimizer=sgd, epochs=1, **options)
        trainer.search.optimizer.step = lambda: None
        if head:
            with torch.no_grad():
                trainer.search.lambdas[head].logs[name] += change
        torch.manual_seed(3)
        trainer.state.iteration = 1
        output = trainer._iteration(trainer, {"image": scans[0]["image"][None]})
        return output["held_out"], trainer.search.lambdas

    _, lambdas = held_out_after_step()
    for head, name in (("registration", "similarity"), ("segmentation", "pseudo")):
        up, down = (held_out_after_step(head, name, change)[0] for change in (0.1, -0.1))
        slope = (up - down) / 0.2
        assert lambdas[head].logs[name].grad.item() == pytest.approx(slope, rel=0.15, abs=2e-5), (head, name)


@pytest.mark.parametrize(("name", "wrong"), [("smoothness", 10.0), ("dice", 0.03)])
def test_a_wrong_lambda_moves_the_right_way(phantom, scans, name, wrong):
    search = LossSearch({name: wrong}, lr=0.1, limit=100.0)
    trainer = make_trainer(phantom, scans * 8, search=search, search_start=6, exact_registration=1.0)
    before = search.weights("registration")[name]
    trainer.run()
    after = search.weights("registration")[name]
    assert before == pytest.approx(wrong)
    assert (after < 0.9 * before) if wrong > 1 else (after > 1.25 * before)


def test_the_held_out_loss_does_not_see_the_lambdas(phantom, scans):
    trainer = make_trainer(phantom, scans)
    values = []
    for change in (0.0, -3.0):
        with torch.no_grad():
            for logs in trainer.search.lambdas.parameters():
                logs += change * torch.rand(())
        torch.manual_seed(1)
        values.append(trainer.held_out_objective().item())
    assert values[0] == values[1]


@pytest.mark.parametrize("fused", [True, False])
def test_history_and_what_moves(phantom, scans, fused):
    trainer = make_trainer(phantom, scans, fused=fused, search_interval=2)
    before = {key: value.clone() for key, value in trainer.network.state_dict().items()}
    outputs = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: outputs.append(engine.state.output))
    trainer.run()
    names = {
        "registration": ("similarity", "smoothness", "dice", "mutual_information"),
        "segmentation": ("exact", "pseudo", "mutual_information"),
    }
    columns = {f"lambda/{head}/{name}" for head in names for name in names[head]}
    assert all(columns <= set(output) for output in outputs)
    assert ["held_out" in output for output in outputs] == [False, True]
    assert all(isinstance(value, float) for output in outputs for value in output.values())
    moved = {
        key.split(".")[0] for key, value in trainer.network.state_dict().items() if not torch.equal(value, before[key])
    }
    assert moved == {"registration", "segmentation"}
    assert trainer.search.weights("registration")["dice"] != outputs[0]["lambda/registration/dice"]


def test_coupling_is_part_of_the_step_on_predicted_labels_only(phantom, scans):
    terms = {}
    for share in (0.0, 1.0):
        trainer = make_trainer(phantom, scans[:2], exact_registration=share)
        trainer.run()
        terms[share] = trainer.state.output
    assert "coupling" in terms[0.0] and "coupling" not in terms[1.0]
    plain = make_trainer(phantom, scans[:2], exact_registration=0.0, coupled=False)
    plain.run()
    assert "coupling" not in plain.state.output and plain.state.output["registration"] != terms[0.0]["registration"]


def test_corrected_labels_are_used_held_out_too(phantom, scans):
    values = []
    for labelled in ((), ("label",)):
        trainer = make_trainer(phantom, scans, labelled=labelled)
        torch.manual_seed(1)
        values.append(trainer.held_out_objective().item())
    assert values[0] != values[1]


def test_segmentation_alone(phantom, scans):
    trainer = make_trainer(phantom, scans[:2], heads=["segmentation"])
    trainer.run()
    assert "held_out" in trainer.state.output and "lambda/segmentation/exact" in trainer.state.output
    assert not [name for name in trainer.state.output if name.startswith("lambda/registration")]


def test_resumed_search_equals_an_uninterrupted_one(phantom, scans):
    def run_epoch(trainer, number):
        seed_everything(number)
        trainer.state.max_epochs = number
        trainer.run()

    whole = make_trainer(phantom, scans)
    run_epoch(whole, 1)
    file = io.BytesIO()
    states = {name: optimizer.state_dict() for name, optimizer in whole.optimizers.items()}
    torch.save({"network": whole.network.state_dict(), "optimizers": states, "search": whole.search.state_dict()}, file)
    run_epoch(whole, 2)

    file.seek(0)
    state = torch.load(file, weights_only=True)
    resumed = make_trainer(phantom, scans)
    resumed.network.load_state_dict(state["network"])
    for name, optimizer in resumed.optimizers.items():
        optimizer.load_state_dict(state["optimizers"][name])
    resumed.search.load_state_dict(state["search"])
    resumed.state.epoch, resumed.state.iteration = 1, 2
    run_epoch(resumed, 2)
    assert resumed.state.output == whole.state.output
    assert resumed.search.weights("registration") == whole.search.weights("registration")
