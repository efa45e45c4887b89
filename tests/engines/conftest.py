from __future__ import annotations

import pytest

from fedsr_monai.networks.fedsr_net import PRESETS


@pytest.fixture(autouse=True)
def tiny(monkeypatch) -> None:
    """A preset that steps in a fifth of a second."""
    monkeypatch.setitem(PRESETS, "tiny", {"widths": (4, 8, 8, 12, 12), "channels": (8, 12, 12, 12)})
