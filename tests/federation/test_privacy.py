"""What clip and noise do to a result, what they are worth, and that no site sends more than it agreed to."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import dp_accounting
import numpy as np
import pytest
import torch
from dp_accounting.pld import PLDAccountant
from monai.fl.utils.constants import ExtraItems
from monai.fl.utils.exchange_object import ExchangeObject

from fedsr_monai.cli import main
from fedsr_monai.errors import UserError
from fedsr_monai.federation.algo import FedSRAlgo
from fedsr_monai.federation.executors import SiteJob, site_job
from fedsr_monai.federation.privacy import Privacy, epsilon, joint_noise, noise_for, protect, read_ledgers, read_privacy
from fedsr_monai.federation.runner import federate
from fedsr_monai.federation.settings import RunSettings
from fedsr_monai.files import read_csv
from tests.helpers.miniature import write_bundle, write_sites

PRIVACY = {"clip": 1.0, "noise": 0.5, "clip_sa": 0.1, "noise_sa": 2.0}
SENT = {"encoder.a": torch.ones(300, 100), "encoder.b": torch.ones(7), "sa.segmentation.0": torch.full((20_000,), 0.5)}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("privacy")
    write_bundle(root / "bundle")
    write_sites(root / "data", {"a": 2, "b": 1})
    return root


@pytest.fixture
def make(place, tmp_path):
    def make(privacy):
        overrides = {"dataset_dir": str(place / "data" / "a")}
        algo = FedSRAlgo(str(place / "bundle"), tmp_path / "a", overrides=overrides, privacy=read_privacy(privacy))
        algo.initialize({ExtraItems.CLIENT_NAME: "a"})
        return algo

    return make


def shared(algo):
    return algo.policy.shared_tensors(algo.trainer.network.state_dict())


def moves(result, sent):
    """The differences of the encoder and of the SA vectors, each as one vector."""
    found = {key: (result[key].double() - sent[key].double()).flatten() for key in sorted(sent)}
    return [torch.cat([value for key, value in found.items() if key.startswith("sa.") == is_sa]) for is_sa in (0, 1)]


def test_a_part_is_clipped_as_one_vector_and_keeps_its_direction():
    trained = {key: value + torch.randn(value.shape) for key, value in SENT.items()}
    result = protect(trained, SENT, Privacy(1.0, 0.0, 0.1, 0.0), np.random.default_rng(0))
    for move, honest, clip in zip(moves(result, SENT), moves(trained, SENT), (1.0, 0.1), strict=True):
        assert float(move.norm()) == pytest.approx(clip, rel=1e-3)
        assert torch.allclose(move / clip, honest / honest.norm(), atol=2e-6)
    assert {value.dtype for value in result.values()} == {torch.float32}


def test_a_short_difference_stays_as_it_is():
    trained = {key: value + 1e-4 for key, value in SENT.items()}
    result = protect(trained, SENT, Privacy(1.0, 0.0, 0.1, 0.0), np.random.default_rng(0))
    assert all(torch.equal(result[key], trained[key]) for key in trained)


def test_the_noise_of_each_part_is_in_units_of_its_clip_norm():
    encoder, sa = moves(protect(SENT, SENT, Privacy(**PRIVACY), np.random.default_rng(0)), SENT)
    assert float(encoder.std()) == pytest.approx(0.5, rel=0.03) and abs(float(encoder.mean())) < 0.02
    assert float(sa.std()) == pytest.approx(0.2, rel=0.03)


@pytest.mark.parametrize(("noise", "releases", "delta"), [(3.0, 5, 1e-5), (1.0, 2, 1e-3), (20.0, 100, 1e-6)])
def test_epsilon_is_that_of_composed_gaussian_mechanisms_of_twice_the_clip_norm(noise, releases, delta):
    accountant = PLDAccountant()
    accountant.compose(dp_accounting.GaussianDpEvent(noise / 2), releases)
    assert epsilon(noise, releases, delta) == pytest.approx(accountant.get_epsilon(delta), rel=1e-3)
    assert noise_for(epsilon(noise, releases, delta), releases, delta) == pytest.approx(noise)


def test_two_parts_compose_and_other_sites_add_their_noise():
    accountant = PLDAccountant()
    accountant.compose(dp_accounting.GaussianDpEvent(3.0 / 2), 4).compose(dp_accounting.GaussianDpEvent(5.0 / 2), 4)
    assert epsilon(joint_noise(3.0, 5.0), 4) == pytest.approx(accountant.get_epsilon(1e-5), rel=1e-3)
    assert epsilon(noise_for(8.0, 5, parts=2) / math.sqrt(2), 5) == pytest.approx(8.0)
    assert epsilon(3.0, 5, sites=10) == pytest.approx(epsilon(9.0, 5))
    assert epsilon(3.0, 5, sites=2) == epsilon(3.0, 5)
    assert epsilon(0.0, 1) == epsilon(joint_noise(0.0, 5.0), 1) == math.inf


@pytest.mark.parametrize(
    "arguments", [(-1.0, 1), (math.nan, 1), (1.0, 0), (1.0, 1.5), (1.0, 1, 0.0), (1.0, 1, 1e-5, 0)]
)
def test_numbers_that_promise_nothing_are_refused(arguments):
    with pytest.raises(UserError, match="found .*, expected a (whole )?number"):
        epsilon(*arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clip": 0}, "privacy: clip: found 0, expected a number above 0"),
        ({"noise_sa": -1.0}, "privacy: noise_sa: found -1.0, expected a number at least 0"),
        ({"noise": math.nan}, "privacy: noise: found nan"),
        ({"noise": "$1"}, "privacy: noise: found '\\$1'"),
        ({"releases": 0}, "privacy: releases: found 0"),
        ({"sigma": 1}, "privacy: sigma: found an unknown key"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(change, message):
    with pytest.raises(UserError, match=message):
        read_privacy(PRIVACY | change)
    with pytest.raises(UserError, match="privacy: clip_sa: found nothing"):
        read_privacy({key: value for key, value in PRIVACY.items() if key != "clip_sa"})


def test_a_round_that_is_asked_for_twice_has_other_noise_and_counts_twice(make, tmp_path):
    """Else a server could ask until the noise has averaged out."""
    results = []
    algo = make({**PRIVACY, "releases": 2})
    sent = shared(algo)
    for _ in range(2):
        algo.train(ExchangeObject(weights=sent), {"round": 0})
        results.append(algo.get_weights())
    assert not torch.equal(results[0].weights["encoder.0.weight"], results[1].weights["encoder.0.weight"])
    assert json.loads((tmp_path / "a" / "releases.json").read_text()) == PRIVACY | {"releases": 2}
    statistics = results[0].statistics
    assert (statistics["images"], statistics["losses"], statistics["epochs"], statistics["seconds"]) == (2, {}, [], 0)
    again = make({**PRIVACY, "releases": 2})  # a new process knows what was sent
    again.train(ExchangeObject(weights=sent), {"round": 1})
    with pytest.raises(UserError, match="releases.json: found 2 results sent, expected at most 2 in a run"):
        again.get_weights()


def test_what_has_no_noise_is_not_sent(make):
    algo = make(PRIVACY)
    for ask in (algo.get_weights, lambda: algo.evaluate(ExchangeObject(weights=shared(algo)))):
        with pytest.raises(UserError, match="privacy: found a request for"):
            ask()


def test_a_run_does_not_continue_with_less_noise(make):
    algo = make(PRIVACY)
    algo.train(ExchangeObject(weights=shared(algo)))
    algo.get_weights()
    algo.privacy = read_privacy(PRIVACY | {"noise": 0.1})
    with pytest.raises(UserError, match="releases.json: noise: found 0.5, expected 0.1"):
        algo.get_weights()


def test_a_federation_with_noise_records_it(place, tmp_path, capsys):
    sites = [str(place / "data" / name) for name in "ab"]
    out = federate(sites, tmp_path / "run", 2, place / "bundle", privacy=PRIVACY)
    assert json.loads((out / "run.json").read_text())["privacy"] == PRIVACY | {"releases": None}
    assert [row["status"] for row in read_csv(out / "participation.csv", ["status"])] == ["ok"] * 4
    assert [(name, of_site.noise_sa, count) for name, of_site, count in read_ledgers(out)] == [
        ("a", 2.0, 2),
        ("b", 2.0, 2),
    ]
    assert main(["privacy", "--run", str(out)]) == 0
    text = f"everybody, site b, 2 results: encoder {epsilon(0.5, 2):.3g}, SA features {epsilon(2.0, 2):.3g}, both "
    assert text in capsys.readouterr().out
    with pytest.raises(UserError, match="run.json: privacy: found"):
        federate(sites, tmp_path / "run", 3, place / "bundle", privacy=PRIVACY | {"noise": 0.1})


def test_a_run_with_noise_begins_with_nothing_of_a_site(place, tmp_path):
    with pytest.raises(UserError, match="privacy: found SA vectors that would come from one site's labelled atlas"):
        federate([place / "data" / "a"], tmp_path / "run", 1, overrides={"preset": "small"}, privacy=PRIVACY)
    with pytest.raises(UserError, match="privacy: found the policy 'local', which exchanges nothing"):
        federate([place / "data" / "a"], tmp_path / "run", 1, place / "bundle", policy="local", privacy=PRIVACY)
    assert not (tmp_path / "run").exists()


def test_a_site_in_a_process_of_its_own_has_the_same_privacy():
    job = SiteJob("a", "data", "folder", "bundle", RunSettings(1), privacy=read_privacy(PRIVACY))
    assert site_job(json.loads(json.dumps(asdict(job)))) == job


def test_the_command_states_epsilon_and_noise(capsys):
    assert main(["privacy", "--epsilon", "8", "--rounds", "5", "--sites", "4"]) == 0
    noise = noise_for(8.0, 5, parts=2)
    out = capsys.readouterr().out
    assert f"(noise={noise:.4g} noise_sa={noise:.4g}; {noise_for(8.0, 5):.4g} where one of them is sent)" in out
    assert out.splitlines()[2].endswith("both 8")
    assert f"another of 4 sites, if it sees plain means of all only: encoder {epsilon(noise, 5, sites=4):.3g}" in out
    assert main(["privacy"]) == 2
