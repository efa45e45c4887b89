from __future__ import annotations

import pytest

import fedsr_monai.bundle_path
from fedsr_monai.bundle_path import bundle_path
from fedsr_monai.errors import UserError


def test_by_name_in_this_checkout_and_by_folder():
    for name in ("fedsr_encoder", "fedsr_site"):
        root = bundle_path(name)
        assert root.is_absolute() and root.name == name and (root / "configs" / "inference.json").is_file()
        assert bundle_path(root) == root


def test_inside_the_package_as_a_wheel_installs_it(tmp_path, monkeypatch):
    installed = tmp_path / "site-packages" / "fedsr_monai"
    (installed / "bundles" / "fedsr_site" / "configs").mkdir(parents=True)
    (installed / "bundles" / "fedsr_site" / "configs" / "train.json").write_text("{}")
    monkeypatch.setattr(fedsr_monai.bundle_path, "__file__", str(installed / "bundle_path.py"))
    assert bundle_path("fedsr_site") == installed / "bundles" / "fedsr_site"


def test_what_is_no_bundle_is_named(tmp_path):
    with pytest.raises(
        UserError,
        match=r"^bundle: found no fedsr_sight/configs/train.json, expected a bundle; give the folder of one, ",
    ):
        bundle_path("fedsr_sight")
    with pytest.raises(UserError, match=rf"^bundle: found no {tmp_path}/configs/train.json, expected a bundle"):
        bundle_path(tmp_path)
