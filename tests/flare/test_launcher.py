"""Job processes that are killed: which of them are started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from nvflare.apis.job_launcher_spec import JobReturnCode
from nvflare.app_common.job_launcher.process_launcher import ProcessHandle

from fedsr_monai.flare.launcher import RestartingHandle

SLEEP = "import time; time.sleep(60)"


@pytest.fixture
def launch(tmp_path):
    """Handles of Python processes, by the code that each start runs; processes that are left over are killed."""
    processes: list[subprocess.Popen] = []

    def make(*codes: str, restarts: int = 3) -> RestartingHandle:
        left = list(codes)

        def start() -> ProcessHandle:
            processes.append(subprocess.Popen([sys.executable, "-c", left.pop(0)], start_new_session=True))
            return ProcessHandle(process=processes[-1])

        handle = RestartingHandle(start, tmp_path / "_process_rc.txt", restarts, delay=0.01)
        handle.started = processes
        return handle

    yield make
    for process in processes:
        process.kill()
        process.wait()


def kill(process: subprocess.Popen) -> None:
    os.kill(process.pid, signal.SIGKILL)


def killer(code: str) -> str:
    return f"import os, signal; {code}; os.kill(os.getpid(), signal.SIGKILL)"


def test_a_killed_process_is_started_again_and_ends_as_the_last_one_did(launch):
    handle = launch(killer("pass"), killer("pass"), "pass")
    handle.wait()
    assert handle.poll() == JobReturnCode.SUCCESS and len(handle.started) == 3


def test_a_process_that_is_always_killed_is_not_reported_as_the_failure_of_the_job(launch):
    handle = launch(*[killer("pass")] * 3, restarts=2)
    handle.wait()
    assert handle.poll() == JobReturnCode.UNKNOWN and len(handle.started) == 3


@pytest.mark.parametrize("code", [0, 1, 101])
def test_a_process_that_ends_by_itself_is_not_started_again(launch, code):
    handle = launch(f"raise SystemExit({code})")
    handle.wait()
    assert handle.poll() == (JobReturnCode.SUCCESS if code == 0 else JobReturnCode.EXECUTION_ERROR)
    assert len(handle.started) == 1


def test_a_process_that_has_left_its_exit_code_before_it_killed_itself_is_not_started_again(launch, tmp_path):
    """FLARE 2.7's processes end so when a thread of theirs is still running."""
    handle = launch(killer(f"open({str(tmp_path / '_process_rc.txt')!r}, 'w').write('0')"))
    handle.wait()
    assert len(handle.started) == 1


def test_what_flare_terminates_is_not_started_again(launch):
    handle = launch(SLEEP, SLEEP)
    waiter = threading.Thread(target=handle.wait)
    waiter.start()
    assert handle.poll() == JobReturnCode.UNKNOWN  # running
    handle.terminate()
    waiter.join(10)
    assert not waiter.is_alive() and len(handle.started) == 1


def test_a_restarted_process_is_the_one_that_is_terminated(launch):
    handle = launch(SLEEP, SLEEP)
    waiter = threading.Thread(target=handle.wait)
    waiter.start()
    kill(handle.started[0])
    for _ in range(100):
        if len(handle.started) == 2:
            break
        time.sleep(0.05)
    handle.terminate()
    waiter.join(10)
    assert not waiter.is_alive() and len(handle.started) == 2 and handle.started[1].poll() == -signal.SIGKILL
