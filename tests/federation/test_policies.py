from __future__ import annotations

import pytest
import torch
from safetensors.torch import save

from fedsr_monai.errors import UserError
from fedsr_monai.federation.policies import POLICIES, Policy, find_policy
from fedsr_monai.federation.server import Server
from fedsr_monai.federation.storage import size_in_bytes

STATE = {
    "segmentation.out": torch.full((3,), 2.0),
    "encoder.w": torch.full((2, 2), 1.0, dtype=torch.float64),
    "encoder.b": torch.zeros(2),
    "registration.out": torch.full((3,), 3.0),
    "sa.segmentation.0": torch.full((4,), 4.0),
    "sa.registration.0": torch.full((4,), 5.0),
    "atlas_image": torch.rand(1, 1, 4, 4, 4),
    "atlas_label": torch.zeros(1, 1, 4, 4, 4, dtype=torch.uint8),
}


@pytest.mark.parametrize(
    ("policy", "keys"),
    [
        ("fedsr", ["encoder.b", "encoder.w", "sa.registration.0", "sa.segmentation.0"]),
        ("fedrep", ["encoder.b", "encoder.w"]),
        ("fedper", ["encoder.b", "encoder.w"]),
        (
            "fedavg",
            [
                "encoder.b",
                "encoder.w",
                "registration.out",
                "sa.registration.0",
                "sa.segmentation.0",
                "segmentation.out",
            ],
        ),
        ("local", []),
        ("pooled", []),
    ],
)
def test_each_policy_lets_out_its_keys_and_no_other(policy, keys):
    assert list(find_policy(policy).shared_tensors(STATE)) == keys


@pytest.mark.parametrize("policy", POLICIES)
def test_no_policy_lets_the_atlas_out_even_under_a_near_name(policy):
    state = {**STATE, "atlas.sa.0": torch.ones(1), "my.encoder.w": torch.ones(1), "encoder_cache": torch.ones(1)}
    assert not [
        key
        for key in find_policy(policy).shared_tensors(state)
        if key in ("atlas.sa.0", "my.encoder.w", "encoder_cache")
    ]
    assert not [key for key in find_policy(policy).shared_tensors(state) if key.startswith("atlas")]


def test_shared_tensors_are_float32_copies():
    shared = find_policy("fedsr").shared_tensors(STATE)
    assert {tensor.dtype for tensor in shared.values()} == {torch.float32}
    shared["encoder.b"] += 1
    assert STATE["encoder.b"].sum() == 0


def test_whole_numbers_are_refused_by_name():
    with pytest.raises(
        UserError, match=r"^encoder.steps: found torch.int64, expected floating point; share only tensors"
    ):
        find_policy("fedsr").shared_tensors({"encoder.steps": torch.zeros(1, dtype=torch.int64)})


def test_unknown_policy_is_named():
    with pytest.raises(
        UserError, match=r"^policy: found 'fedprox', expected one of fedsr, fedrep, fedper, fedavg, local, pooled"
    ):
        find_policy("fedprox")


def test_size_is_that_of_the_safetensors_file():
    shared = find_policy("fedsr").shared_tensors(STATE)
    assert size_in_bytes(shared) == len(save(shared)) > 4 * 14
    assert size_in_bytes({}) == 0


def test_a_policy_is_added_in_one_place(monkeypatch, tmp_path):
    """Server and site ask the registered object; nothing else knows the policies by name."""
    monkeypatch.setitem(POLICIES, "vectors", Policy("vectors", shares=("sa.",)))
    server = Server(tmp_path, STATE, policy="vectors", mutual_information=None)
    assert list(server.send()) == ["sa.registration.0", "sa.segmentation.0"]
    assert server.receive("a", 0, server.send(), {"images": 1}) == []
    server.close_round()
    assert not POLICIES["vectors"].shares_heads and POLICIES["fedavg"].shares_heads
