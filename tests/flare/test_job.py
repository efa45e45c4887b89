from __future__ import annotations

import errno
import io
import json
import zipfile
from pathlib import Path

import pytest
from nvflare.private.fed.server.job_meta_validator import JobMetaValidator

from fedsr_monai.cli import main
from fedsr_monai.errors import UserError
from fedsr_monai.flare.job import export_job
from fedsr_monai.flare.recipe import APP
from fedsr_monai.flare.site_config import read_site_config
from fedsr_monai.flare.startup_kit import CLIENT_LAUNCHER, RESTARTING_LAUNCHER, prepare_startup_kit


def validate(job: Path) -> dict:
    """FLARE's own check of a submitted job."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in sorted(job.rglob("*")):
            archive.write(path, Path(job.name) / path.relative_to(job))
    valid, error, meta = JobMetaValidator().validate(job.name, buffer.getvalue())
    assert valid, error
    return meta


@pytest.mark.parametrize("count", [1, 3, 40])
def test_a_job_for_any_number_of_sites_is_plain_json_without_a_path(tmp_path, count):
    sites = {f"hospital-{number}": 10 + number for number in range(count)}
    job = export_job(tmp_path / "first", sites, 20, overrides={"learning_rate": 0.0005})
    files = sorted(path for path in job.rglob("*") if path.is_file())
    assert [str(path.relative_to(job)) for path in files] == [
        "app/config/config_fed_client.json",
        "app/config/config_fed_server.json",
        "meta.json",
    ]
    for path in files:
        text = path.read_text()
        json.loads(text)
        assert str(tmp_path) not in text and "/" not in text and "$" not in text
    meta = validate(job)
    assert not meta.get("byoc")
    assert meta["deploy_map"] == {APP: ["server", *sites]} and meta["min_clients"] == (count + 1) // 2
    server = json.loads((job / "app/config/config_fed_server.json").read_text())
    assert server["components"][0]["args"]["images"] == sites


def test_without_names_every_connected_site_takes_part(tmp_path):
    meta = validate(export_job(tmp_path / "first", {}, 20, min_sites=2))
    assert meta["deploy_map"] == {APP: ["@ALL"]} and meta["min_clients"] == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--sites a=x", "--sites: found 'a=x', expected each site once, as NAME or NAME=SCANS; correct it"),
        ("--sites a a", "--sites: found 'a', expected each site once, as NAME or NAME=SCANS; correct it"),
        ("--sites Hôpital", "sites: found the name 'Hôpital', expected letters, digits, '_' and '-'"),
        ("--sites a.b=3", "sites: found the name 'a.b', expected letters, digits, '_' and '-'"),
        ("--sites @ALL", "sites: found the name '@ALL', expected letters, digits, '_' and '-'"),
        ("--sites server", "sites: found the name 'server', expected letters, digits, '_' and '-', and not 'server'"),
        ("--sites a --aggregation most", "job: aggregation: found 'most', expected one of mean, "),
        ("--rounds 5", "min_sites: found nothing, expected a number where no sites are named; give --min_sites"),
        ("--sites a b --min_sites 3", "min_sites: found 3, expected at most 2, the number of sites; correct it"),
        (
            "--sites a --policy pooled",
            "job: policy: found 'pooled', which exchanges nothing, expected one of fedsr, fedrep, fedper, fedavg; choose one of them",
        ),
        ("--sites a --rounds 0", "job: rounds: found 0, expected a whole number of at least 1; correct it"),
        ("--sites a --wait -1", "wait (seconds): found -1, expected a whole number of at least 0; correct it"),
        ("--sites a --weighting most", "job: weighting: found 'most', expected one of images, uniform; correct it"),
        ("--sites a=0", "sites: a (training scans): found 0, expected a whole number of at least 1; correct it"),
        (
            "--sites a --override device=cpu",
            "overrides: device: found an id that a job must not set, expected hyper-parameters only; set it in the site's own fedsr.json",
        ),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_job(tmp_path, capsys, line, message):
    assert main(["export-job", str(tmp_path / "job"), *line.split()]) == 2
    assert capsys.readouterr().err.startswith(f"fedsr: {message}")
    assert not (tmp_path / "job").exists()


def test_a_folder_of_something_else_is_left_alone_and_a_job_is_replaced(tmp_path, monkeypatch):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").write_text("x")
    with pytest.raises(UserError, match="thesis: found something else, expected a job"):
        export_job(tmp_path / "thesis", {"a": 1}, 20)
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["thesis.txt"]
    for sites in ({"a": 1, "b": 2}, {"a": 1}):
        job = export_job(tmp_path / "job", sites, 20)
    assert validate(job)["deploy_map"] == {APP: ["server", "a"]}

    def forbidden(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("fedsr_monai.flare.job.shutil.rmtree", forbidden)
    with pytest.raises(UserError, match=r"job: found a job that cannot be replaced \(Permission denied\)"):
        export_job(tmp_path / "job", {"a": 1}, 20)


def test_the_commands_write_a_job_and_prepare_a_startup_kit(tmp_path, inputs, capsys):
    assert (
        main(["export-job", str(tmp_path / "first"), "--sites", "a=3", "b", "--min_sites", "1", "--start_from_bundle"])
        == 0
    )
    client = json.loads((tmp_path / "first/app/config/config_fed_client.json").read_text())
    assert len(client["executors"][0]["executor"]["args"]["settings"]["weights_digest"]) == len("sha256:") + 64
    kit = tmp_path / "kit"
    (kit / "local").mkdir(parents=True)
    launcher = {"id": "process_launcher", "path": CLIENT_LAUNCHER}
    default = {"format_version": 2, "class_allow_list": ["nvflare.x."], "components": [{"id": "x"}, launcher]}
    (kit / "local" / "resources.json.default").write_text(json.dumps(default))
    capsys.readouterr()
    assert main(["flare-site", str(kit), "--site", str(inputs / "data" / "a")]) == 0
    assert capsys.readouterr().out.split() == [f"{kit}/local/fedsr.json", f"{kit}/local/resources.json"]
    assert json.loads((kit / "local/resources.json").read_text()) == {
        "format_version": 2,
        "class_allow_list": ["nvflare.x.", "fedsr_monai.flare."],
        "components": [{"id": "x"}, {**launcher, "path": RESTARTING_LAUNCHER}],
    }
    found = read_site_config(kit, "a")
    assert (found.site, found.state, found.policies) == (
        str(inputs / "data" / "a"),
        kit / "fedsr",
        ("fedsr", "fedrep", "fedper"),
    )


def test_preparing_a_startup_kit_again_keeps_its_other_entries(tmp_path, inputs):
    kit = tmp_path / "kit"
    kit.mkdir()
    prepare_startup_kit(kit, "/data/{SITE_NAME}", tmp_path / "state")
    content = json.loads((kit / "local/fedsr.json").read_text())
    (kit / "local/fedsr.json").write_text(json.dumps({**content, "policies": ["fedrep"]}))
    assert prepare_startup_kit(kit, inputs / "data" / "b") == [kit / "local" / "fedsr.json"]
    found = read_site_config(kit, "b")
    assert (found.site, found.state, found.policies) == (str(inputs / "data" / "b"), tmp_path / "state", ("fedrep",))
    if (kit / "local/resources.json").exists():  # FLARE from 2.8 on
        allowed = json.loads((kit / "local/resources.json").read_text())["class_allow_list"]
        assert allowed.count("fedsr_monai.flare.") == 1 and any(item.startswith("nvflare.") for item in allowed)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "fedsr.json: found damaged JSON .*; write it again with `fedsr flare-site`$"),
        ("[]", "fedsr.json: found JSON of type list, expected an object"),
        (
            '{"path": "/x"}',
            "fedsr.json: path: found an unknown key, expected one of site, state, bundles, overrides, policies",
        ),
        ('{"policies": "fedsr"}', "fedsr.json: policies: found 'fedsr', expected a list"),
        ('{"site": 3}', "fedsr.json: site: found 3, expected text"),
        ('{"bundles": ["/x"]}', "fedsr.json: bundles: found .*, expected an object"),
        ('{"privacy": {"clip": 1}}', "fedsr.json: privacy: clip_sa: found nothing, expected a number above 0"),
        ('{"site": "data"}', "fedsr.json: site: found 'data', expected an absolute path; correct it$"),
        ('{"bundles": {"x": 3}}', "fedsr.json: x: found 3, expected an absolute path"),
        ('{"state": "/\\u0000"}', "fedsr.json: state: found .*, expected an absolute path"),
    ],
)
def test_a_wrong_file_of_a_site_is_named(tmp_path, content, message):
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "fedsr.json").write_text(content)
    with pytest.raises(UserError, match=message):
        read_site_config(tmp_path, "a")


def test_settings_behind_a_link_are_read_and_never_taken_for_none(tmp_path):
    """What they say about privacy would be lost."""
    privacy = {"clip": 1.0, "noise": 2.0, "clip_sa": 1.0, "noise_sa": 2.0}
    (tmp_path / "local").mkdir()
    (tmp_path / "shared.json").write_text(json.dumps({"privacy": privacy}))
    settings = tmp_path / "local" / "fedsr.json"
    settings.symlink_to(tmp_path / "shared.json")
    assert read_site_config(tmp_path, "a").privacy is not None
    (tmp_path / "shared.json").rename(tmp_path / "elsewhere.json")
    for read in (lambda: read_site_config(tmp_path, "a"), lambda: prepare_startup_kit(tmp_path)):
        with pytest.raises(UserError, match="fedsr.json: found a link to .*shared.json, which leads nowhere"):
            read()
    assert settings.is_symlink()


@pytest.mark.parametrize("content", [{"components": 3}, {"components": ["a"]}, {"class_allow_list": "a"}])
def test_resources_of_another_form_are_named_and_kept(tmp_path, content):
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "resources.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="resources.json: components, class_allow_list: found entries of another form"):
        prepare_startup_kit(tmp_path)
    assert json.loads((tmp_path / "local" / "resources.json").read_text()) == content


def test_a_missing_startup_kit_or_site_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere: found no such folder, expected a FLARE startup kit"):
        prepare_startup_kit(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no such folder, expected a site folder"):
        prepare_startup_kit(tmp_path, tmp_path / "nowhere")


def test_the_site_name_stands_in_for_shared_folders(tmp_path):
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "fedsr.json").write_text('{"site": "/data/{SITE_NAME}/scans"}')
    assert read_site_config(tmp_path, "clinic").site == "/data/clinic/scans"
