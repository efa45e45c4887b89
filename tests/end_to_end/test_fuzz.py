"""A small run of benchmarks/fuzz.py, and that it notices what it looks for."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path

import pytest

from fedsr_monai.errors import UserError

SPEC = importlib.util.spec_from_file_location("fuzz", Path(__file__).parents[2] / "benchmarks" / "fuzz.py")
fuzz = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(fuzz)


@pytest.mark.slow
def test_damaged_files_are_refused():
    bad = []

    def report(target: str, mutation: str, ended: str, words: str) -> None:
        if ended not in ("refused", "read"):
            bad.append((target, mutation, ended, words))

    found = fuzz.fuzz(120, 7, report)
    assert bad == [] and sum(found.values()) == 120
    assert sum(count for (_, _, ended), count in found.items() if ended == "refused") > 60


def test_every_outcome_is_told_apart():
    def wrapped() -> None:
        try:
            raise UserError("site.json", "nothing", "a site")
        except UserError as error:
            raise RuntimeError("while instantiating") from error

    assert fuzz.outcome(wrapped, True)[0] == "refused"
    assert fuzz.outcome(lambda: {}["defect"], True)[0] == "traceback"
    assert fuzz.outcome(lambda: time.sleep(30), True, seconds=1)[0] == "hang"
    assert fuzz.outcome(lambda: None, may_be_valid=False)[0] == "silent"
    assert fuzz.outcome(lambda: None, may_be_valid=True)[0] == "read"
