from __future__ import annotations

import importlib.util

import pytest

from fedsr_monai.cli import main

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("none --out x", "none: found no such folder, expected scans"),
        (
            "a --out x --atlas_image b",
            "--atlas_image and --atlas_label: found one without the other, expected both or none",
        ),
        ("a --out x --processes 0", "--processes: found 0, expected a whole number of at least 1"),
        ("a", "--out"),
    ],
)
def test_mistakes(capsys, monkeypatch, tmp_path, words, message):
    monkeypatch.chdir(tmp_path)
    assert main(["prepare", *words.split()]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and len(error.splitlines()) == 1
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("command", ["prepare a --out x", "segment scan.nii.gz --raw --out x"])
def test_without_itk(capsys, monkeypatch, tmp_path, command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scan.nii.gz").touch()
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "SimpleITK" else found(name, *rest)
    )
    assert main(command.split()) == 2
    error = capsys.readouterr().err.strip()
    assert (
        error.startswith("fedsr: package SimpleITK: found no installation")
        and "pip install 'fedsr-monai[itk]'" in error
    )
