from __future__ import annotations

import copy
import json
import random
from pathlib import Path

import pytest

from fedsr_monai.bundle_path import bundle_path
from fedsr_monai.errors import UserError
from fedsr_monai.evaluation.run import load_network, models_of_run
from fedsr_monai.files import sha256, write_json
from fedsr_monai.handlers import save_checkpoint
from fedsr_monai.networks import FedSRNet
from fedsr_monai.run_record import read_personalised, read_run, trusted_bundle

TOUCH = "$__import__('pathlib').Path('ran').touch()"
EVIL = [
    {"preset": TOUCH},
    {"preset": [TOUCH]},
    {"scie": {"a": TOUCH}},
    {"learning_rate": TOUCH},
    {"registration_weights": {"_target_": "os.system", "command": "touch ran"}},
    {"network_def": {"_target_": "os.system", "command": "touch ran"}},
    {"network_def#_target_": "os.system"},
    {"network_def::_requires_": TOUCH},
    {"imports": [TOUCH]},
    {"imports": ["os"]},
    {"preset": "%../x.json"},
    {"preset": "@network"},
    {"preset": "/etc/passwd"},
    {TOUCH: 1},
    {"": 1},
    {"preset#": 1},
    ["preset"],
]
RECORD = {
    "sites": [],
    "overrides": {
        "preset": "small",
        "mutual_information": None,
        "registration_weights": {"dice": 2},
        "heads": ["segmentation"],
    },
    "bundle": {"name": "fedsr_encoder", "path": str(bundle_path("fedsr_encoder"))},
    "from_weights": None,
}


@pytest.fixture
def run(tmp_path, site_folder, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    site = site_folder("clinic")
    save_checkpoint(FedSRNet("small"), tmp_path / "run" / "sites" / "clinic" / "model.pt")
    write_json(tmp_path / "run" / "run.json", RECORD | {"sites": [{"name": "clinic", "path": str(site)}]})
    return tmp_path / "run"


def change(run: Path, **content) -> None:
    record = json.loads((run / "run.json").read_text())
    write_json(run / "run.json", record | content)


def test_only_what_the_network_depends_on_is_taken_from_a_record(run):
    (model,) = models_of_run(run)
    assert model.overrides == {"preset": "small"} and model.bundle == bundle_path("fedsr_encoder")
    load_network(model)
    change(
        run, overrides={"device": TOUCH, "dataset_dir": TOUCH, "output_dir": TOUCH}
    )  # each machine's own: never read
    assert models_of_run(run)[0].overrides == {}
    load_network(models_of_run(run)[0])
    assert not Path("ran").exists()


@pytest.mark.parametrize("override", EVIL)
def test_code_in_run_json_is_refused_and_not_run(run, override):
    change(run, overrides=override)
    with pytest.raises(UserError, match="run.json: overrides") as caught:
        load_network(models_of_run(run)[0])
    assert "\n" not in str(caught.value) and not Path("ran").exists()


@pytest.mark.parametrize("override", EVIL)
def test_code_in_personalised_json_is_refused_and_not_run(run, override):
    record = {"site": str(run.parent / "clinic"), "bundle": str(bundle_path("fedsr_site")), "overrides": override}
    write_json(run / "personalised" / "clinic" / "personalised.json", record)
    with pytest.raises(UserError, match="personalised.json: overrides"):
        models_of_run(run)
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    "override", [{"preset": 5}, {"preset": "huge"}, {"preset": None}, {"preset": {"a": 1}}, {"preset": []}]
)
def test_plain_values_that_make_no_network_are_one_line(run, override):
    change(run, overrides=override)
    with pytest.raises(UserError) as caught:
        load_network(models_of_run(run)[0])
    assert "\n" not in str(caught.value)


def bring_bundle(run: Path) -> Path:
    """A folder that looks like a bundle, whose configuration runs something."""
    config = json.loads((bundle_path("fedsr_encoder") / "configs" / "train.json").read_text())
    write_json(run / "evil" / "configs" / "train.json", config | {"preset": TOUCH})
    return run / "evil"


def test_a_record_cannot_bring_its_own_bundle_but_a_user_can(run):
    evil = bring_bundle(run)
    for content in (
        {"path": str(evil)},
        {"name": "fedsr_encoder", "path": str(evil), "train.json": sha256(evil / "configs" / "train.json")},
    ):
        change(run, bundle=content)
        with pytest.raises(UserError, match="run.json: bundle: found 'evil', which is not installed.*--bundle"):
            models_of_run(run)
    assert not Path("ran").exists()
    change(run, bundle={"name": "evil", "path": str(evil)})
    assert models_of_run(run, bundle=evil)[0].bundle == evil.absolute()


def test_a_run_of_another_machine_has_the_bundle_of_the_same_name_and_content():
    root = bundle_path("fedsr_encoder")
    content = {
        "name": "fedsr_encoder",
        "path": "/elsewhere/fedsr_encoder",
        "train.json": sha256(root / "configs" / "train.json"),
    }
    assert trusted_bundle(content, "run.json") == root
    with pytest.raises(UserError, match="found 'fedsr_encoder', which is not installed"):
        trusted_bundle(content | {"train.json": "0" * 64}, "run.json")


@pytest.mark.parametrize("text", ["[]", "null", "3", '"x"', "{", "", "[" * 100_000, '{"sites": 1, "sites": 2}'])
def test_what_is_no_record_is_one_line(run, text):
    (run / "run.json").write_text(text)
    with pytest.raises(UserError, match="run.json") as caught:
        models_of_run(run)
    assert "\n" not in str(caught.value)


def mutated(content, rng: random.Random):
    """The content with one value, anywhere, replaced by something else or removed."""
    content = copy.deepcopy(content)
    places = []

    def walk(value):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            places.append((value, key))
            if isinstance(value[key], (dict, list)):
                walk(value[key])

    walk(content)
    holder, key = rng.choice(places)
    if rng.random() < 0.2:
        del holder[key]
    else:
        holder[key] = copy.deepcopy(
            rng.choice(
                [None, True, -1, 1e300, "", TOUCH, "x" * 9999, "\0", [], {}, [[]], {"_target_": "os.system"}, [1, "a"]]
            )
        )
    return content


def test_two_hundred_mutations_of_a_record_end_in_one_line_or_in_what_was_there_before(run):
    whole = json.loads((run / "run.json").read_text())
    whole["from_weights"] = {
        "path": str(run / "sites" / "clinic" / "model.pt"),
        "sha256": sha256(run / "sites" / "clinic" / "model.pt"),
    }
    rng = random.Random(0)
    for _ in range(200):
        content = mutated(whole, rng)
        (run / "run.json").write_text(json.dumps(content))
        try:
            models = models_of_run(run)
            read_run(run).initial_weights()
        except UserError as error:
            assert "\n" not in str(error), content
        else:
            assert [model.overrides.get("preset") for model in models] in (
                [],
                ["small"],
                [None],
                [content["overrides"].get("preset")],
            ), content
        write_json(run / "personalised" / "clinic" / "personalised.json", {})
        (run / "personalised" / "clinic" / "personalised.json").write_text(
            json.dumps(mutated({"site": "x", "bundle": RECORD["bundle"], "overrides": RECORD["overrides"]}, rng))
        )
        try:
            read_personalised(run / "personalised" / "clinic" / "personalised.json")
        except UserError as error:
            assert "\n" not in str(error)
    assert not Path("ran").exists()
