from __future__ import annotations

import pytest

import fedsr_monai.bundle_path
from fedsr_monai.bundle_overrides import check_overrides
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


def test_what_is_not_a_bundle_is_named(tmp_path):
    with pytest.raises(UserError, match=r"^bundle: found no fedsr_sight/configs/train.json") as error:
        bundle_path("fedsr_sight")
    assert "fedsr_encoder or fedsr_site" in error.value.fix
    with pytest.raises(UserError, match=rf"^bundle: found no {tmp_path}/configs/train.json"):
        bundle_path(tmp_path)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"epoch": 3}, r"^overrides: epoch: found no such id in .*train.json, .*'epochs'"),
        ({"zzz#1": 3}, r"^overrides: zzz#1: found no such id.*; choose one of .*epochs, "),
        ({"epochs": {1}}, "^overrides: found a value that is not plain JSON"),
    ],
)
def test_overrides_of_unknown_ids_and_of_objects_are_refused(overrides, message):
    file = bundle_path("fedsr_encoder") / "configs" / "train.json"
    check_overrides([file], {"epochs": 3, "train#trainer#max_epochs": 2})
    with pytest.raises(UserError, match=message):
        check_overrides([file], overrides)
