from __future__ import annotations

import errno
import json
import os

import pytest
import torch

from fedsr_monai.errors import UserError
from fedsr_monai.federation.server import Server

INITIAL = {
    "encoder.w": torch.arange(6.0).reshape(2, 3),
    "sa.segmentation.0": torch.full((4,), 0.5),
    "segmentation.out": torch.ones(3),
    "atlas_image": torch.ones(2),
}


def shifted(server: Server, amount: float):
    return {key: tensor + amount for key, tensor in server.send().items()}


def play(server: Server, rounds: int) -> Server:
    for _ in range(rounds):
        for site, amount, images in (("b", 0.2, 1), ("a", 0.1, 3)):
            assert server.receive(site, server.round, shifted(server, amount), {"images": images}) == []
        server.close_round()
    return server


def without_times(server: Server):
    return [
        {key: value for key, value in record.items() if "seconds" not in key} for record in times_out(server.history)
    ]


def times_out(history):
    return [
        {**record, "participation": [{**row, "seconds": 0} for row in record["participation"]]} for record in history
    ]


def same(first, second):
    return list(first) == list(second) and all(torch.equal(first[key], second[key]) for key in first)


def test_only_what_the_policy_shares_is_kept_and_sent(tmp_path):
    assert list(Server(tmp_path, INITIAL).send()) == ["encoder.w", "sa.segmentation.0"]
    assert list(Server(tmp_path, INITIAL, policy="local").send()) == []


def test_what_is_sent_is_a_copy(tmp_path):
    server = Server(tmp_path, INITIAL)
    server.send()["encoder.w"].zero_()
    assert torch.equal(server.send()["encoder.w"], INITIAL["encoder.w"])


@pytest.mark.parametrize(("weighting", "moved"), [("images", 0.125), ("uniform", 0.15)])
def test_a_round_is_the_weighted_mean(tmp_path, weighting, moved):
    server = play(Server(tmp_path, INITIAL, weighting=weighting, declared_images={"a": 3, "b": 1}), 1)
    assert torch.allclose(server.send()["encoder.w"], INITIAL["encoder.w"] + moved)
    assert server.round == 1


def test_answers_in_another_order_give_the_same_bytes(tmp_path):
    forward, backward = Server(tmp_path / "forward", INITIAL), Server(tmp_path / "backward", INITIAL)
    for server, order in ((forward, "abc"), (backward, "cba")):
        for site in order:
            generator = torch.Generator().manual_seed(ord(site))
            update = {
                key: tensor + torch.rand(tensor.shape, generator=generator) for key, tensor in server.send().items()
            }
            server.receive(site, 0, update, {"images": ord(site) - 96})
        server.close_round()
    first, second = ((tmp_path / way / "round_0001.safetensors").read_bytes() for way in ("forward", "backward"))
    assert first == second


def test_bad_answers_are_left_out_and_named(tmp_path):
    server = Server(tmp_path, INITIAL, declared_images={"liar": 4})
    nan = {key: tensor * float("nan") for key, tensor in server.send().items()}
    for site in "abc":
        server.receive(site, 0, shifted(server, 0.1), {"images": 1})
    server.receive("nan", 0, nan, {"images": 1})
    server.receive("liar", 0, shifted(server, 0.1), {"images": 4000})
    server.receive("big", 0, {key: 1000 * tensor for key, tensor in server.send().items()}, {"images": 1})
    assert server.receive("a", 0, shifted(server, 9.0), {"images": 1}) == [
        "site 'a': round: found a second result of round 0, expected one (a duplicate)"
    ]
    server.close_round()
    rows = {row["site"]: (row["status"], row["reason"]) for row in server.history[0]["participation"]}
    assert [rows[site][0] for site in "abc"] == ["ok"] * 3
    assert rows["liar"] == ("rejected", "site 'liar': images: found 4000, expected 4 as declared")
    assert rows["big"][0] == rows["nan"][0] == "rejected" and "times the other sites' median" in rows["big"][1]
    assert torch.allclose(server.send()["encoder.w"], INITIAL["encoder.w"] + 0.1)
    assert server.receive("c", 0, shifted(server, 0.1), {"images": 1}) == [
        "site 'c': round: found 0, expected 1 (a late result)"
    ]


def test_too_few_answers_stop_the_round_but_lose_nothing(tmp_path):
    server = play(Server(tmp_path, INITIAL, min_sites=2), 1)
    before = server.send()
    server.receive("a", 1, shifted(server, 0.1), {"images": 1})
    with pytest.raises(
        UserError, match=r"^round 2: found 1 acceptable results \(a\), expected at least 2 \(min_sites\)"
    ):
        server.close_round()
    again = Server(tmp_path, INITIAL, min_sites=2)
    assert again.resume() and again.round == 1 and same(again.send(), before)


def test_a_full_disk_leaves_the_last_round_on_disk_and_in_memory(tmp_path, monkeypatch):
    server = play(Server(tmp_path, INITIAL), 1)
    before = server.send()
    server.receive("a", 1, shifted(server, 0.1), {"images": 1})
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
        with pytest.raises(UserError, match=r"round_0002.safetensors: .*cannot be written \(No space left on device\)"):
            server.close_round()
    assert server.round == 1 and same(server.send(), before) and len(server.history) == 1
    again = Server(tmp_path, INITIAL)
    assert again.resume() and same(again.send(), before)
    server.close_round()
    assert server.round == 2


def test_resumed_equals_uninterrupted(tmp_path):
    whole = play(Server(tmp_path / "whole", INITIAL), 5)
    play(Server(tmp_path / "parts", INITIAL), 2)
    parts = Server(tmp_path / "parts", INITIAL)
    assert parts.resume()
    play(parts, 3)
    assert same(whole.send(), parts.send()) and without_times(whole) == without_times(parts)
    assert [record["round"] for record in parts.history] == [0, 1, 2, 3, 4]


def test_an_empty_folder_has_nothing_to_resume_and_begins(tmp_path):
    assert not Server(tmp_path, INITIAL).resume()
    Server(tmp_path, INITIAL).begin()
    again = Server(tmp_path, {**INITIAL, "encoder.w": torch.zeros(2, 3)})
    again.begin()
    assert again.round == 0 and torch.equal(again.send()["encoder.w"], INITIAL["encoder.w"])


def test_the_last_two_checkpoints_are_kept(tmp_path):
    play(Server(tmp_path, INITIAL), 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "round_0003.safetensors",
        "round_0004.safetensors",
        "state.json",
    ]
    assert json.loads((tmp_path / "state.json").read_text())["file"] == "round_0004.safetensors"


def test_a_stray_newer_file_is_not_believed(tmp_path):
    """A kill between the two writes leaves the tensors of a round that state.json does not name yet."""
    server = play(Server(tmp_path, INITIAL), 2)
    before = server.send()
    (tmp_path / "round_0003.safetensors").write_bytes(b"half")
    again = Server(tmp_path, INITIAL)
    assert again.resume() and again.round == 2 and same(again.send(), before)
    play(again, 1)
    assert same(again.send(), play(server, 1).send())


def test_damage_is_named(tmp_path):
    play(Server(tmp_path, INITIAL), 1)
    path = tmp_path / "round_0001.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(
        UserError, match=r"round_0001.safetensors: found other bytes, expected those that state.json names"
    ):
        Server(tmp_path, INITIAL).resume()
    path.write_bytes(content[:20])
    with pytest.raises(UserError, match=r"round_0001.safetensors: found other bytes"):
        Server(tmp_path, INITIAL).resume()
    path.unlink()
    with pytest.raises(UserError, match=r"round_0001.safetensors: found no such file, expected the checkpoint"):
        Server(tmp_path, INITIAL).resume()
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(UserError, match=r"state.json: found damaged JSON"):
        Server(tmp_path, INITIAL).resume()


def test_another_network_is_named_by_key(tmp_path):
    play(Server(tmp_path, INITIAL), 1)
    other = {**INITIAL, "encoder.w": torch.ones(9)}
    with pytest.raises(
        UserError, match=r"encoder.w: found \[2, 3\], expected \[9\]; continue with the bundle and policy"
    ):
        Server(tmp_path, other).resume()
    with pytest.raises(UserError, match=r"sa.segmentation.0: found \[4\], expected nothing"):
        Server(tmp_path, INITIAL, policy="fedrep").resume()
