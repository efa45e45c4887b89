from __future__ import annotations

import numpy as np
import pytest
import torch

from fedsr_monai.federation.validation import screen_norms, validate_update

SENT = {"encoder.w": torch.ones(2, 3), "sa.segmentation.0": torch.full((4,), 0.5)}


def answer(**changes):
    update = {key: value + 0.01 for key, value in SENT.items()}
    for key, value in changes.items():
        update[key.replace("__", ".")] = value
    return update


def check(update=None, **changes):
    arguments = {"images": 3, "update_round": 2, "current_round": 2, **changes}
    return validate_update(answer() if update is None else update, SENT, "oasis", **arguments)


def test_a_good_answer_has_no_reasons_as_torch_or_numpy():
    assert check() == []
    assert check({key: value.numpy() for key, value in answer().items()}) == []


@pytest.mark.parametrize(
    ("update", "reason"),
    [
        (
            answer(encoder__w=torch.tensor([[1, np.nan, 1], [np.inf, 1, 1]], dtype=torch.float32)),
            "site 'oasis': encoder.w: found NaN or Inf in 2 of 6 values, expected none",
        ),
        ({"encoder.w": torch.ones(2, 3)}, "site 'oasis': sa.segmentation.0: missing, expected float32 [4]"),
        (
            answer(**{"segmentation.out": torch.ones(1)}),
            "site 'oasis': segmentation.out: found a foreign tensor, expected only the keys that were sent",
        ),
        (answer(encoder__w=torch.ones(3, 2)), "site 'oasis': encoder.w: found float32 [3, 2], expected float32 [2, 3]"),
        (
            answer(encoder__w=torch.ones(2, 3, dtype=torch.float64)),
            "site 'oasis': encoder.w: found float64 [2, 3], expected float32 [2, 3]",
        ),
        (
            answer(encoder__w=np.ones((2, 3), dtype=np.int32)),
            "site 'oasis': encoder.w: found int32 [2, 3], expected float32 [2, 3]",
        ),
        (answer(encoder__w="ones"), "site 'oasis': encoder.w: found str, expected float32 [2, 3]"),
        ([1, 2], "site 'oasis': found list, expected tensors by key"),
        (None, "site 'oasis': found NoneType, expected tensors by key"),
    ],
)
def test_bad_tensors_are_named_by_site_and_key(update, reason):
    arguments = {"images": 3, "update_round": 0, "current_round": 0}
    assert validate_update(update, SENT, "oasis", **arguments) == [reason]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"images": 0}, "images: found 0, expected 1 to 100000"),
        ({"images": -4}, "images: found -4, expected 1 to 100000"),
        ({"images": 10**9}, "images: found 1000000000, expected 1 to 100000"),
        ({"images": 2.5}, "images: found 2.5, expected a whole number"),
        ({"images": True}, "images: found True, expected a whole number"),
        ({"images": None}, "images: found None, expected a whole number"),
        ({"images": "9" * 10**6}, "images: found '99999999999999999...999999999999999999', expected a whole number"),
        ({"declared_images": 5}, "images: found 3, expected 5 as declared"),
        ({"update_round": 1}, "round: found 1, expected 2 (a late result)"),
        ({"update_round": 7}, "round: found 7, expected 2 (not the open round)"),
        ({"update_round": None}, "round: found None, expected 2 (not the open round)"),
        ({"received": {"oasis"}}, "round: found a second result of round 2, expected one (a duplicate)"),
    ],
)
def test_bad_claims_are_named(changes, reason):
    assert check(**changes) == [f"site 'oasis': {reason}"]


def test_all_reasons_are_listed_at_once():
    reasons = check({"encoder.w": torch.full((2, 3), np.nan), "atlas_image": torch.ones(1)}, images=0)
    assert len(reasons) == 4


def moved(amount, sent=SENT):
    return {key: value + amount for key, value in sent.items()}


def test_an_update_times_1000_is_rejected_among_many_and_alone():
    big = {key: 1000 * value for key, value in SENT.items()}
    usual = {"a": moved(0.01), "b": moved(0.02)}
    reasons = screen_norms({**usual, "c": big}, SENT)
    assert reasons == {
        "c": [
            "site 'c': encoder.w: found an update of norm 2.45e+03, "
            "expected at most 0.551 (10 times the other sites' median)",
            "site 'c': sa.segmentation.0: found an update of norm 999, "
            "expected at most 0.3 (10 times the other sites' median)",
        ]
    }
    assert list(screen_norms({"c": big}, SENT)) == ["c"]
    assert "10 times the norm of what was sent" in screen_norms({"c": big, "a": moved(0.01)}, SENT)["c"][0]
    assert "a" not in screen_norms({"c": big, "a": moved(0.01)}, SENT)


def test_a_large_sa_vector_cannot_hide_behind_the_encoder():
    sent = {"encoder.w": torch.full((1000,), 5.0), "sa.segmentation.0": torch.full((4,), 0.01)}
    update = {"encoder.w": sent["encoder.w"] + 0.01, "sa.segmentation.0": 1000 * sent["sa.segmentation.0"]}
    reasons = screen_norms({"a": moved(0.001, sent), "b": moved(0.001, sent), "c": update}, sent)
    assert [reason.split(" found")[0] for reason in reasons["c"]] == ["site 'c': sa.segmentation.0:"]


def test_a_tensor_that_noise_moves_is_no_reason_to_reject_an_honest_site():
    """As measured in a federation of four honest sites, of which FedAvg rejected three: updates move most tensors by 5 %, an attention bias by 0.1 or 3 %."""
    sent = {f"encoder.{i}.w": torch.full((100,), 0.1) for i in range(5)} | {"scie.query.bias": torch.full((16,), 0.1)}

    def honest(of_bias: float) -> dict[str, torch.Tensor]:
        return {key: value * (1 + (of_bias if key == "scie.query.bias" else 0.05)) for key, value in sent.items()}

    updates = {"a": honest(0.001), "b": honest(0.0014), "c": honest(0.03)}
    assert screen_norms(updates, sent) == {}
    assert list(screen_norms(updates | {"evil": honest(0.8)}, sent)) == ["evil"]


def test_a_site_that_worked_eight_times_as_long_is_kept():
    assert screen_norms({"a": moved(0.01), "b": moved(0.01), "c": moved(0.08)}, SENT) == {}


def test_two_sites_may_move_a_layer_that_begins_near_zero():
    # The last layers of the registration: standard deviation 1e-5, and the first step of Adam moves each weight by 1e-4.
    sent = {"registration.velocities.0.weight": torch.full((100,), 1e-5)}
    assert screen_norms({"a": moved(0.002, sent), "b": moved(-0.002, sent)}, sent) == {}
    assert list(screen_norms({"a": moved(0.002, sent), "b": moved(0.2, sent)}, sent)) == ["b"]


def test_all_zeros_and_a_dead_layer_are_rejected_beside_honest_updates_of_two_percent():
    """What was let through when an update of the norm of the weights themselves passed."""
    sent = {"encoder.first.w": torch.ones(10), "encoder.second.w": torch.full((1000,), 3.0)}
    honest = {site: {key: 1.02 * value for key, value in sent.items()} for site in "abc"}
    zeros = {key: torch.zeros_like(value) for key, value in sent.items()}
    dead = {**honest["a"], "encoder.first.w": torch.zeros(10)}
    assert len(screen_norms({**honest, "evil": zeros}, sent)["evil"]) == 2
    assert list(screen_norms({**honest, "evil": dead}, sent)) == ["evil"]
    assert screen_norms(honest, sent) == {}


def test_zero_weights_and_equal_updates_are_no_reason():
    zero = {key: torch.zeros_like(value) for key, value in SENT.items()}
    assert screen_norms({"a": moved(0.5, zero), "b": moved(0.5, zero)}, zero) == {}
    assert screen_norms({"a": SENT, "b": SENT, "c": SENT}, SENT) == {}
    assert screen_norms({}, SENT) == {}
    assert screen_norms({"a": {}}, {}) == {}
