from __future__ import annotations

import subprocess
import sys

import pytest

from fedsr_monai.device import bfloat16_pays, cpu_info, find_device, keep_freed_memory
from fedsr_monai.errors import UserError

FAULTS = """
import resource, torch
from fedsr_monai.device import keep_freed_memory
{call}
for _ in range(40):  # it takes a few for the heap to have room at the right place
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not keep_freed_memory(), reason="not on glibc")
def test_a_large_tensor_that_is_made_again_touches_no_new_pages():
    faults = {}
    for call in ("", "keep_freed_memory()"):
        answer = subprocess.run(
            [sys.executable, "-c", FAULTS.format(call=call)], capture_output=True, text=True, check=True
        )
        # the least of the last ten: where the heap has its room depends on what else it holds
        faults[call] = min(int(count) for count in answer.stdout.split()[-10:])
    assert faults["keep_freed_memory()"] < 0.5 * faults[""]


KEPT = """
import torch
from pathlib import Path
from fedsr_monai.device import keep_freed_memory, release_freed_memory
keep_freed_memory()
def resident():
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
tensors = [torch.ones(2**20) for _ in range(100)]  # 400 MB
del tensors
before = resident()
release_freed_memory()
print(before - resident())
"""


@pytest.mark.skipif(not keep_freed_memory(), reason="not on glibc")
def test_freed_memory_is_released_when_asked_for():
    answer = subprocess.run([sys.executable, "-c", KEPT], capture_output=True, text=True, check=True)
    assert int(answer.stdout) > 300_000  # kilobytes


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "cpu:x"])
def test_a_device_that_does_not_exist_is_named(name):
    with pytest.raises(UserError, match=f"^device: found '{name}' and .*cpu, cuda or cuda:N"):
        find_device(name)


@pytest.mark.parametrize(
    ("avx512_bf16", "amx", "vendor", "pays"),
    [
        (False, False, "GenuineIntel", False),
        (True, False, "GenuineIntel", False),  # a virtual machine that hides AMX
        (True, True, "GenuineIntel", True),
        (True, False, "AuthenticAMD", True),
        (False, False, "AuthenticAMD", False),
        (False, False, "", False),
    ],
)
def test_bfloat16_pays_on_a_cpu_where_it_was_measured_to(monkeypatch, avx512_bf16, amx, vendor, pays):
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: avx512_bf16)
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr("fedsr_monai.device.cpu_info", {"vendor_id": vendor}.get)
    assert bfloat16_pays("cpu") == pays


def test_facts_of_the_cpu_are_read_from_cpuinfo(tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: EPYC: 2\n")
    assert cpu_info("vendor_id", cpuinfo) == "AuthenticAMD"
    assert cpu_info("model name", cpuinfo) == "EPYC: 2"
    cpuinfo.write_text("processor\t: 0\nCPU implementer\t: 0x41\n")  # ARM
    assert cpu_info("vendor_id", cpuinfo) == ""
    assert cpu_info("vendor_id", tmp_path / "absent") == ""
