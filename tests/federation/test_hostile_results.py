"""Whatever a site sends, the server says why not, and the others' round is what it would have been without that site."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from fedsr_monai.errors import UserError
from fedsr_monai.federation.records import read_history, write_tables
from fedsr_monai.federation.server import Server
from fedsr_monai.federation.statistics import MOST_LOSSES, RESERVED_NAMES, parse_statistics
from fedsr_monai.federation.validation import LONGEST_REASON

INITIAL = {"encoder.w": torch.arange(1.0, 7.0).reshape(2, 3), "sa.segmentation.0": torch.full((4,), 0.5)}


class Hostile:
    """An object that raises whatever is asked of it."""

    def __getattr__(self, name):
        raise AttributeError(name) if name.startswith("_") else RuntimeError("no")

    def __len__(self):
        raise RuntimeError("no")

    def __repr__(self):
        return "Hostile()"  # hypothesis prints its examples


def good(amount: float = 0.01) -> dict[str, torch.Tensor]:
    return {key: value + amount for key, value in INITIAL.items()}


def tensors(key: str = "encoder.w") -> list:
    """What may stand in the place of a tensor."""
    value = INITIAL[key]
    objects = np.empty(value.shape, dtype=object)
    for place in np.ndindex(objects.shape):
        objects[place] = Hostile()
    return [
        value.to_sparse(),
        torch.empty(value.shape, device="meta"),
        torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        torch.quantize_per_tensor(value, 0.1, 0, torch.quint8),
        value.to(torch.complex64),
        value.half(),
        value.double(),
        torch.full_like(value, math.nan),
        torch.full_like(value, -math.inf),
        torch.full_like(value, 3e38),
        value.clone().requires_grad_(True),
        value[:1].expand(*value.shape),
        torch.zeros(0),
        torch.zeros(1).expand(10**6, 10**6),
        value.numpy()[::-1],
        value.numpy().astype(object),
        value.numpy().astype(">f4"),
        objects,
        np.array("text"),
        np.ma.masked_array(value.numpy(), mask=True),
        np.matrix([[1.0, 2.0, 3.0]]),
        {"data": value},
        [1.0] * 6,
        None,
        Hostile(),
        b"\x80\x04",
    ]


SIMPLE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=400),
    st.binary(max_size=20),
    st.sampled_from(
        [10**4000, -(10**400), 2**63, float("1.7e308"), "9" * 10**6, "=cmd|' /C calc'!A0", "a\nb", "\ud800"]
    ),
    st.sampled_from([*tensors(), Hostile()]),
    npst.arrays(st.sampled_from([np.float32, np.int64, np.bool_]), npst.array_shapes(max_dims=2, max_side=3)),
)
NAMES = st.one_of(
    SIMPLE,
    st.sampled_from(["a", "evil", "", "../../etc", "a" * 300, ".", "a/b", "nul\0", [], {}, ("a",)]),
)
STATISTICS = st.one_of(
    SIMPLE,
    st.dictionaries(
        st.one_of(st.sampled_from(["images", "iterations", "seconds", "losses", "epochs"]), st.text(max_size=5)),
        st.one_of(
            SIMPLE,
            st.just(4),
            st.lists(SIMPLE, max_size=3),
            st.dictionaries(
                st.one_of(st.sampled_from([*RESERVED_NAMES, "loss"]), st.text(max_size=60)), SIMPLE, max_size=4
            ),
            st.lists(
                st.fixed_dictionaries(
                    {"epoch": st.one_of(st.just(1), SIMPLE), "iteration": st.one_of(st.just(3), SIMPLE)},
                    optional={"round": SIMPLE, "site": SIMPLE, "loss": SIMPLE, "seconds": SIMPLE},
                ),
                max_size=3,
            ),
        ),
        max_size=6,
    ),
)
UPDATES = st.one_of(
    SIMPLE,
    st.just(good()),
    st.dictionaries(
        st.one_of(st.sampled_from([*INITIAL, "segmentation.w"]), st.text(max_size=99), st.integers()),
        SIMPLE,
        max_size=4,
    ),
    st.fixed_dictionaries(
        {"encoder.w": st.sampled_from(tensors()), "sa.segmentation.0": st.just(INITIAL["sa.segmentation.0"])}
    ),
)


def check_server(server: Server, folder) -> None:
    """The round can be closed, and what is written can be read, is small, and holds only what the schema knows."""
    for site in ("a", "b", "c"):
        server.receive(site, 0, good(), {"images": 4, "losses": {"loss": 1.5}})
    server.close_round()
    assert all(torch.isfinite(value).all() for value in server.send().values())
    write_tables(folder, server.history)
    state = json.loads((folder / "state.json").read_text())
    assert read_history(folder / "state.json", state["history"])
    assert (folder / "state.json").stat().st_size < 20_000 and (folder / "participation.csv").stat().st_size < 5_000
    assert all(len(row["reason"]) <= LONGEST_REASON for row in server.history[0]["participation"])
    again = Server(folder, INITIAL)
    assert again.resume() and again.round == 1


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(NAMES, st.one_of(st.just(0), SIMPLE), UPDATES, STATISTICS)
def test_receive_never_raises(tmp_path_factory, site, update_round, update, statistics):
    folder = tmp_path_factory.mktemp("server")
    server = Server(folder, INITIAL)
    reasons = server.receive(site, update_round, update, statistics)
    assert isinstance(reasons, list) and all(isinstance(line, str) and len(line) <= LONGEST_REASON for line in reasons)
    assert all("\n" not in line for line in reasons)
    server.updates.pop("a", None)  # where it was acceptable, under the name of a site that answers again below
    check_server(server, folder)


@pytest.mark.parametrize("number", range(len(tensors())))
def test_a_strange_tensor_is_refused_or_equals_a_plain_one(tmp_path, number):
    server = Server(tmp_path, INITIAL)
    value = tensors()[number]
    reasons = server.receive("evil", 0, good() | {"encoder.w": value}, {"images": 4})
    if reasons:
        assert reasons[0].startswith("site 'evil': encoder.w: found ")
        assert server.results["evil"].status == "rejected"
    else:
        kept = server.updates["evil"]["encoder.w"]
        assert type(kept) is torch.Tensor and kept.dtype == torch.float32 and not kept.requires_grad
        assert torch.equal(
            kept,
            torch.tensor(
                np.array(
                    torch.as_tensor(np.ascontiguousarray(value)) if isinstance(value, np.ndarray) else value.detach()
                )
            ),
        )
    check_server(server, tmp_path)


def test_what_a_site_does_to_its_tensors_afterwards_changes_nothing(tmp_path):
    server = Server(tmp_path, INITIAL)
    update = {key: value.numpy() for key, value in good().items()}
    assert server.receive("a", 0, update, {"images": 1}) == []
    for value in update.values():
        value[...] = math.nan
    server.close_round()
    assert torch.allclose(server.send()["encoder.w"], INITIAL["encoder.w"] + 0.01)


def test_sites_that_were_not_asked_leave_no_trace(tmp_path):
    server = Server(tmp_path, INITIAL)
    server.open_round(["a"], {"b": "disconnected"})
    for site in ("b", "c", "../../etc", "x" * 300, ""):
        assert server.receive(site, 0, good(), {"images": 1})
    assert server.receive("a", 0, good(), {"images": 1}) == []
    server.close_round()
    assert [(row["site"], row["status"]) for row in server.history[0]["participation"]] == [
        ("a", "ok"),
        ("b", "absent"),
    ]


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ({"losses": {"loss": 1.7e308, "ok": 2}}, {"losses": {"ok": 2.0}}),
        ({"losses": {"seconds": 5.0, "round": 1, "bytes_up": 1, "site": 1}}, {"losses": {}}),
        ({"losses": {"k" * 20_000_000: 1.0, "=HYPERLINK()": 1.0, 3: 1.0, "a b": 1.0}}, {"losses": {}}),
        (
            {"epochs": [{"epoch": 1, "iteration": 3, "round": 9, "loss": 1.5}]},
            {"epochs": [{"epoch": 1, "iteration": 3, "loss": 1.5}]},
        ),
        ({"epochs": [{"epoch": 1}, {"epoch": -1, "iteration": 1}, {"epoch": 1.5, "iteration": 1}, 3]}, {"epochs": []}),
        ({"iterations": 10**4000, "seconds": -5}, {"iterations": 0, "seconds": 0.0}),
        ({"iterations": True, "seconds": math.inf}, {"iterations": 0, "seconds": 0.0}),
        ({"anything": "else"}, {}),
    ],
)
def test_statistics_have_one_schema(sent, kept):
    assert parse_statistics(sent) == {"iterations": 0, "seconds": 0.0, "losses": {}, "epochs": []} | kept
    assert parse_statistics(parse_statistics(sent)) == parse_statistics(sent)


def test_a_million_losses_are_fifty():
    assert len(parse_statistics({"losses": {f"loss{n}": 1.0 for n in range(10**5)}})["losses"]) == MOST_LOSSES


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state["history"][0].update(round=7),
        lambda state: state["history"][0].update(extra=1),
        lambda state: state["history"][0]["epochs"].append(
            {"round": 0, "site": "a", "epoch": 1, "iteration": 1, "seconds": 1}
        ),
        lambda state: state["history"][0]["participation"][0].update(reason="x" * 10**6),
        lambda state: state["history"][0]["participation"][0].update(site="../../etc"),
        lambda state: state["history"][0]["losses"].update(seconds=1.0),
        lambda state: state["history"][0].update(losses=[]),
        lambda state: state.update(history={}),
        lambda state: state.update(history=[1]),
        lambda state: state.update(round=2),
        lambda state: state.update(round=None),
        lambda state: state.update(file="../state.json"),
        lambda state: state.update(sha256=None),
        lambda state: state.clear(),
    ],
)
def test_a_server_state_of_another_form_is_refused_in_one_line(tmp_path, change):
    server = Server(tmp_path, INITIAL)
    check_server(server, tmp_path)
    state = json.loads((tmp_path / "state.json").read_text())
    change(state)
    (tmp_path / "state.json").write_text(json.dumps(state))
    with pytest.raises(UserError) as caught:
        Server(tmp_path, INITIAL).resume()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize("sign", [1, -1])
def test_a_number_too_long_to_be_printed_is_refused(tmp_path, sign):
    number = sign * 10**5000  # its text would be too long for Python itself
    server = Server(tmp_path, INITIAL)
    assert server.receive("evil", number, good(), {"images": 4})[0].startswith("site 'evil': round: found ")
    assert server.receive("evil", 0, good(), {"images": number})[0].startswith("site 'evil': images: found ")
