"""The examples in the docstrings of the public names, as doctests in one folder, in the order of a user's path."""

from __future__ import annotations

import doctest

import pytest

import fedsr_monai as fm
from fedsr_monai import checks, errors

PATH = (
    "simulate_sites",
    "check_site",
    "federate",
    "personalise",
    "evaluate",
    "write_report",
    "segment",
    "prepare_site",
    "FedSRNet",
)


def run(item: object, name: str) -> int:
    """Run the examples of one docstring and return their number; members of classes are left out."""
    (found,) = [test for test in doctest.DocTestFinder(recurse=False).find(item, name) if test.examples]
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    output: list[str] = []
    assert runner.run(found, out=output.append).failed == 0, "".join(output)
    return len(found.examples)


def test_every_public_name_is_in_the_path():
    assert sorted(PATH) == sorted(fm.__all__)


@pytest.mark.slow
def test_the_examples_of_the_public_names(tmp_path, monkeypatch):
    pytest.importorskip("itk")
    from tests.helpers.raw_scans import atlas, raw_scan, save

    monkeypatch.chdir(tmp_path)
    volume, _, grid, _ = raw_scan(0, source=atlas(3.0, (64, 72, 64)))
    save(tmp_path / "scans" / "ann.nii.gz", volume, grid.affine)
    for name in PATH:
        assert run(getattr(fm, name), name) >= 2


@pytest.mark.parametrize("item", [fm, errors.UserError, checks.check_whole_number], ids=lambda item: item.__name__)
def test_the_examples_of_smaller_things(item):
    assert run(item, item.__name__) >= 1
