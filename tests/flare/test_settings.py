from __future__ import annotations

from dataclasses import asdict

import pytest

from fedsr_monai import __version__
from fedsr_monai.bundle_path import bundle_path
from fedsr_monai.errors import UserError
from fedsr_monai.flare.settings import Settings, file_digest, settings_from_job

BUNDLE = bundle_path("fedsr_encoder")


def job(**changes) -> dict:
    content = {"run": "first", "rounds": 3, "version": __version__, "bundle": "fedsr_encoder"}
    return {**content, "bundle_digest": file_digest(BUNDLE / "configs" / "train.json"), **changes}


def test_settings_survive_json_and_add_what_federate_adds():
    settings = settings_from_job(job(overrides={"learning_rate": 0.1}, local_epochs=2))
    assert settings_from_job(asdict(settings)) == settings
    assert settings.site_overrides() == {"epochs": 6, "seed": 0, "learning_rate": 0.1}
    settings.check_bundle(BUNDLE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"run": "../../etc"}, "^job: run: found '../../etc', expected letters, digits, "),
        ({"run": ".."}, "^job: run: found '..', expected letters"),
        ({"bundle": "/tmp/evil"}, "^job: bundle: found '/tmp/evil', expected letters"),
        ({"rounds": 0}, "^job: rounds: found 0, expected a whole number of at least 1; correct it$"),
        ({"seed": "1"}, "^job: seed: found '1', expected a whole number of at least 0; correct it$"),
        ({"local_epochs": True}, "^job: local_epochs: found True, expected a whole number"),
        (
            {"policy": "local"},
            "^job: policy: found 'local', which exchanges nothing, expected one of fedsr, fedrep, fedper, fedavg",
        ),
        ({"policy": "all"}, "^policy: found 'all', expected one of fedsr"),
        (
            {"dataset_dir": "/data"},
            "^job: dataset_dir: found an unknown setting, expected one of aggregation, baseline, bundle, .*; export the job again$",
        ),
    ],
)
def test_a_job_is_refused_by_setting(change, message):
    with pytest.raises(UserError, match=message):
        settings_from_job(job(**change))


def test_a_job_that_lacks_a_setting_is_refused():
    content = job()
    del content["version"]
    with pytest.raises(UserError, match="^job: version: found nothing, expected a value; export the job again$"):
        settings_from_job(content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"version": "9.9"},
            f"^fedsr_monai: found version {__version__}, expected '9.9' .job.; install the same version everywhere$",
        ),
        (
            {"bundle_digest": "sha256:" + "0" * 64},
            "train.json: found sha256:.*, expected sha256:0000000000000... .job.; install the same version of the bundle",
        ),
        (
            {"weights_digest": "sha256:" + "0" * 64},
            "model.pt: found other weights or none, expected sha256:0000000000000... .job.; install",
        ),
    ],
)
def test_another_package_or_bundle_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        Settings(**job(**change)).check_bundle(BUNDLE)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            {"learning_rate": "$__import__('os').system('true')"},
            "expected a number, a truth value, a word or a list of these; leave it out$",
        ),
        ({"learning_rate": {"_target_": "os.system"}}, "expected a number"),
        ({"learning_rate": "%/etc/passwd"}, "expected a number"),
        ({"learning_rate": "@seed"}, "expected a number"),
        ({"preset": "../x"}, "expected one of small, full"),
        ({"heads": ["a", "$b"]}, "expected a number"),
        ({"heads": [[[[["a"]]]]]}, "expected a number"),
        ({"imports": ["os"]}, "an id that no other party may set"),
        ({"network_def": "small"}, "network_def: found .small., expected an object"),
        (
            {"network_def#_target_": "evil"},
            "found an id that no other party may set",
        ),
        ({"network_def::_target_": "evil"}, "found an id that no other party may set"),
        ({"dataset_dir": "x"}, "^overrides: dataset_dir: found an id that a job must not set"),
        ({"initial_weights": "x"}, "^overrides: initial_weights: found an id that a job must not set"),
        ({"train#handlers#0": 1}, "found 1, expected an object"),
        ({"no_such_id": 1}, "^overrides: no_such_id: found no such id"),
    ],
)
def test_an_override_that_could_be_more_than_a_number_is_refused(override, message):
    with pytest.raises(UserError, match=message):
        Settings(**job(overrides=override)).check_bundle(BUNDLE)


@pytest.mark.parametrize(
    "override",
    [{"learning_rate": 0.1}, {"preset": "full"}, {"heads": ["segmentation"]}, {"registration_weights#dice": 2}],
)
def test_hyper_parameters_may_be_set(override):
    Settings(**job(overrides=override)).check_bundle(BUNDLE)
