from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from fedsr_monai.errors import UserError
from fedsr_monai.networks import FedSRNet
from fedsr_monai.networks.weights import ATLAS_KEYS, HEAD_PREFIXES, load_head, load_weights, read_weights


@pytest.fixture
def network() -> FedSRNet:
    torch.manual_seed(1)
    return FedSRNet()


def without(state, *prefixes):
    return {key: value for key, value in state.items() if not key.startswith(prefixes)}


@pytest.mark.parametrize("wrap", [lambda state: {"model": state}, lambda state: state])
def test_every_weight_is_loaded_and_the_atlas_kept(tmp_path, network, phantom, wrap):
    torch.save(wrap(network.state_dict()), tmp_path / "model.pt")
    other = FedSRNet().set_atlas(*phantom)
    assert load_weights(other, tmp_path / "model.pt") is other
    for key, value in network.state_dict().items():
        assert torch.equal(other.state_dict()[key], value) == (key not in ATLAS_KEYS)
    assert torch.equal(other.atlas_label[0], phantom[1])


def test_an_atlas_is_taken_over_when_asked_for(tmp_path, network, phantom):
    torch.save({"model": network.set_atlas(*phantom).state_dict()}, tmp_path / "model.pt")
    assert torch.equal(load_weights(FedSRNet(), tmp_path / "model.pt", atlas=True).atlas_image[0], phantom[0])
    assert not load_weights(FedSRNet(), tmp_path / "model.pt").has_atlas


def test_an_empty_atlas_replaces_none(network, phantom):
    passed_on = network.state_dict()
    other = FedSRNet().set_atlas(*phantom)
    other.load_state_dict(passed_on)
    assert torch.equal(other.atlas_label[0], phantom[1]) and torch.equal(other.atlas_image[0], phantom[0])
    assert not passed_on["atlas_label"].any()


def test_what_a_server_writes_leaves_the_heads_alone(tmp_path, network):
    shared = {key: value for key, value in network.state_dict().items() if key.startswith(("encoder.", "sa."))}
    save_file(shared, tmp_path / "round.safetensors")
    torch.manual_seed(2)
    other = FedSRNet()
    heads = {key: value.clone() for key, value in other.state_dict().items() if key.startswith(HEAD_PREFIXES)}
    load_weights(other, tmp_path / "round.safetensors", optional=HEAD_PREFIXES)
    assert all(torch.equal(other.state_dict()[key], value) for key, value in {**shared, **heads}.items())
    with pytest.raises(
        UserError,
        match=r"round.safetensors: registration.fine.adn.N.bias: found nothing .*, expected float32 \[24\]",
    ):
        load_weights(other, tmp_path / "round.safetensors")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda s: without(s, "encoder.stages.0"),
            r"encoder.stages.0.adn.N.bias: found nothing .*first of 3 keys.*, expected float32 \[8\]",
        ),
        (
            lambda s: without(s, "registration.velocities"),
            r"registration.velocities.0.bias: found nothing .*first of 8 keys.*, expected float32 \[3\]",
        ),
        (
            lambda s: s | {"encoder.more": torch.zeros(2)},
            r"encoder.more: found float32 \[2\] .*, expected nothing; use weights",
        ),
        (
            lambda s: s | {"sa.segmentation.0": torch.zeros(5)},
            r"sa.segmentation.0: found float32 \[5\] .*, expected float32 \[32\]",
        ),
        (
            lambda s: s | {"sa.segmentation.0": torch.zeros(32).half()},
            r"sa.segmentation.0: found float16 \[32\] .*, expected float32 \[32\]",
        ),
        (
            lambda s: s | {"sa.segmentation.0": torch.full((32,), torch.nan)},
            r"sa.segmentation.0: found NaN.*, expected finite numbers",
        ),
    ],
)
def test_anything_else_is_refused_and_nothing_loaded(tmp_path, network, spoil, message):
    torch.save({"model": spoil(network.state_dict())}, tmp_path / "model.pt")
    torch.manual_seed(2)
    other = FedSRNet()
    before = {key: value.clone() for key, value in other.state_dict().items()}
    with pytest.raises(UserError, match=f"^{tmp_path}/model.pt: {message}"):
        load_weights(other, tmp_path / "model.pt", optional=HEAD_PREFIXES)
    assert all(torch.equal(value, before[key]) for key, value in other.state_dict().items())


def test_another_segmentation_head_takes_the_place_of_the_first(tmp_path, network):
    head = {key: value.half() for key, value in network.state_dict().items() if key.startswith("segmentation.")}
    save_file(head, tmp_path / "head.safetensors")
    torch.manual_seed(2)
    other = FedSRNet()
    before = {key: value.clone() for key, value in other.state_dict().items()}
    assert load_head(other, None) is other and load_head(other, tmp_path / "head.safetensors") is other
    for key, value in other.state_dict().items():
        assert torch.equal(value, head[key].float() if key in head else before[key]), key
    for spoilt, words in (
        (head | {"encoder.more": torch.zeros(2)}, r"encoder.more: found float32 \[2\] .*, expected nothing"),
        (without(head, "segmentation.logits"), r"segmentation.logits.bias: found nothing .*, expected float32 \[14\]"),
    ):
        save_file(spoilt, tmp_path / "spoilt.safetensors")
        with pytest.raises(UserError, match=f"spoilt.safetensors: {words}"):
            load_head(other, tmp_path / "spoilt.safetensors")


def test_files_that_are_no_checkpoint(tmp_path):
    with pytest.raises(UserError, match=r"none.pt: found no such file, expected the weights of a network"):
        read_weights(tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "text.safetensors").write_text("hello")
    torch.save({"model": {"epoch": 3}}, tmp_path / "epoch.pt")
    for name in ("text.pt", "epoch.pt"):
        with pytest.raises(UserError, match=rf"{name}: found something else.*, expected the weights of a network"):
            read_weights(tmp_path / name)
    with pytest.raises(UserError, match=r"text.safetensors: found a damaged file .*; restore"):
        read_weights(tmp_path / "text.safetensors")
