from __future__ import annotations

import numpy as np
import pytest
import torch
from nvflare.apis.dxo import DXO, DataKind, MetaKey

from fedsr_monai.flare.exchange import add, difference, read_update, update_dxo


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(torch.int32)


@pytest.mark.parametrize("scale", [1e-38, 1e-20, 1e-3, 1.0, 1e6, 1e30])
def test_a_difference_is_added_back_to_the_last_bit(scale):
    generator = torch.Generator().manual_seed(0)
    sent = scale * torch.randn(200_000, generator=generator)
    steps = 10.0 ** torch.empty(200_000).uniform_(-12, 4, generator=generator)
    trained = sent + sent * steps * torch.randn(200_000, generator=generator)
    trained[:1000] = 0.0
    trained[1000:2000] = sent[1000:2000] * 2.0**-25  # almost gone
    sent[2000:3000] = 0.0
    back = add(sent, difference(trained, sent))
    assert torch.equal(bits(back), bits(trained + 0.0))
    assert not torch.equal(sent + (trained - sent), trained)  # what float32 differences would do


def test_a_weight_that_shrinks_beyond_the_limit_is_off_by_as_little_as_promised():
    sent = torch.ones(10_000)
    trained = 2.0 ** torch.empty(10_000).uniform_(-60, -30, generator=torch.Generator().manual_seed(1))
    back = add(sent, difference(trained, sent))
    assert not torch.equal(back, trained)
    assert float((back.double() - trained.double()).abs().max()) <= 2.0**-52


def test_steps_are_iterations_and_images_are_meta_of_their_own():
    tensors = {"encoder.w": torch.ones(2), "sa.registration.0": torch.ones(3)}
    dxo = update_dxo(
        tensors, {key: value * 0.5 for key, value in tensors.items()}, {"images": 24, "iterations": 7, "round": 3}
    )
    assert dxo.data_kind == DataKind.COLLECTION and dxo.meta["images"] == 24
    weights, sa = dxo.data["weights"], dxo.data["sa"]
    assert (weights.data_kind, sa.data_kind) == (DataKind.WEIGHT_DIFF, DataKind.APP_DEFINED)
    assert weights.get_meta_prop(MetaKey.NUM_STEPS_CURRENT_ROUND) == 7
    assert weights.data["encoder.w"].dtype == np.float64 and list(weights.data["encoder.w"]) == [0.5, 0.5]
    assert sa.data["sa.registration.0"].dtype == np.float32


@pytest.mark.parametrize(
    ("dxo", "message"),
    [
        (DXO(DataKind.WEIGHTS, data={}), "found a DXO of kind .*, expected a COLLECTION"),
        (
            DXO(DataKind.COLLECTION, data={"heads": DXO(DataKind.WEIGHT_DIFF, data={})}),
            "found a part 'heads' of another kind",
        ),
        (DXO(DataKind.COLLECTION, data={"sa": 3}), "found a part 'sa' of another kind"),
        (
            DXO(DataKind.COLLECTION, data={"weights": DXO(DataKind.WEIGHTS, data={})}),
            "found a part 'weights' of another kind",
        ),
        (
            DXO(DataKind.COLLECTION, data={"sa": DXO(DataKind.APP_DEFINED, data=[1])}),
            "found a part 'sa' of another kind",
        ),
        (
            DXO(DataKind.COLLECTION, data={"sa": DXO(DataKind.APP_DEFINED, data={"encoder.w": 1})}),
            r"found 'encoder.w' in sa, expected sa\.\* in sa",
        ),
        (
            DXO(DataKind.COLLECTION, data={"weights": DXO(DataKind.WEIGHT_DIFF, data={"sa.x": 1})}),
            "found 'sa.x' in weights",
        ),
    ],
)
def test_an_answer_of_another_kind_is_refused(dxo, message):
    with pytest.raises(ValueError, match=message):
        read_update(dxo.to_shareable(), {})
