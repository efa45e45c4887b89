from __future__ import annotations

from tests.engines.conftest import tiny  # noqa: F401
