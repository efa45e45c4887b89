from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif("FEDSR_POC" not in os.environ, reason="takes minutes and needs Linux namespaces: set FEDSR_POC=1")
def test_real_processes_over_mutual_tls(tmp_path):
    command = [sys.executable, str(Path(__file__).parents[1] / "helpers" / "poc.py"), "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (
        "0 differ from fedsr federate" in done.stdout
        and "9 of 9 results ok" in done.stdout
        and "7 of 9 results ok" in done.stdout
    )
