"""How a process leaves its group."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lmms_flexselect.runtime.processes import ended_by_signals
from tests.support.hearing import hear_ctrl_c

# Exit functions run last first: what is registered before is called after. Linux names gloo's threads.
_LEAVING = """
import atexit, sys
from pathlib import Path
import torch.distributed as dist
from lmms_flexselect.runtime.processes import Processes

def threads():
    return sum("gloo" in name.read_text() for name in Path("/proc/self/task").glob("*/comm"))

atexit.register(lambda: print("left", dist.is_initialized(), threads()))
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=0, world_size=1)
processes = Processes()
if sys.argv[1] == "leaving":
    processes.leave_group_at_exit()
    Processes().leave_group_at_exit()
processes._group = dist.new_group(backend="gloo")
dist.all_gather_object([None], {"said": 1}, group=processes._group)
print("in", dist.is_initialized(), threads() > 0)
"""


def _ended(how: str, folder: Path) -> tuple[int, list[list[str]]]:
    done = subprocess.run(
        [sys.executable, "-c", _LEAVING, how, str(folder / "store")],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return done.returncode, [line.split() for line in done.stdout.splitlines()]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="gloo's threads are counted in /proc")
def test_no_thread_of_gloo_is_left_when_the_interpreter_goes(tmp_path):
    status, (joined, left) = _ended("leaving", tmp_path)
    assert status == 0
    assert joined == ["in", "True", "True"]
    assert left == ["left", "False", "0"]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="gloo's threads are counted in /proc")
def test_torch_leaves_them_by_itself(tmp_path):
    """If this fails, torch has mended it, and `Processes.leave_group_at_exit` can go."""
    status, (_, left) = _ended("as torch does", tmp_path)
    assert status in (0, -signal.SIGABRT)  # once in a while
    assert left[:2] == ["left", "True"]
    assert int(left[2]) > 0


_WAITING = """
import sys, time
import torch.distributed as dist
from lmms_flexselect.errors import FlexSelectError
from lmms_flexselect.runtime.processes import Processes

rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
processes = Processes(timeout=float(sys.argv[3]) / 3600)
print(processes.gather(rank), flush=True)
try:
    if rank == 1:
        time.sleep(600)
    processes.gather(rank)
except FlexSelectError as error:
    print(error, flush=True)
"""


def test_a_process_that_hangs_is_not_waited_for_longer_than_the_time_out(tmp_path):
    started = [
        subprocess.Popen(
            [sys.executable, "-c", _WAITING, str(rank), str(tmp_path / "store"), "20"],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        said, _ = started[0].communicate(timeout=120)
    finally:
        for process in started:
            process.kill()
    first, last = said.splitlines()
    assert first == "[0, 1]"
    assert last.startswith("process_timeout=0.00555556: process 0 waited so many hours for another one")


# A lock that is never let go of, in native code that signals do not wake.
_SIGNALLED = """
import ctypes, sys, threading
from lmms_flexselect.runtime.processes import ended_by_signals

def wait(lock):
    ctypes.CDLL(None).pthread_mutex_lock(lock)
    print("waiting", flush=True)
    ctypes.CDLL(None).pthread_mutex_lock(lock)

try:
    with ended_by_signals(patience=0.5):
        lock = ctypes.create_string_buffer(64)
        if sys.argv[1] == "main":
            wait(lock)
        else:
            threading.Thread(target=wait, args=[lock], daemon=True).start()
            threading.Event().wait()
finally:
    print("kept", flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="zeros are an unlocked lock there")
@pytest.mark.parametrize(
    ("where", "number", "status", "kept"),
    [
        ("thread", signal.SIGINT, -signal.SIGINT, True),
        ("thread", signal.SIGTERM, 128 + signal.SIGTERM, True),
        ("main", signal.SIGINT, 128 + signal.SIGINT, False),
        ("main", signal.SIGTERM, 128 + signal.SIGTERM, False),
    ],
)
def test_a_signal_ends_a_process_whatever_waits_in_it(where, number, status, kept):
    process = subprocess.Popen(
        [sys.executable, "-c", _SIGNALLED, where], stdout=subprocess.PIPE, text=True, preexec_fn=hear_ctrl_c
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    time.sleep(1)  # from the word to the lock it is Python, which a signal would wake
    process.send_signal(number)
    try:
        said, _ = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == status
    assert said == ("kept\n" if kept else "")


def test_what_handled_signals_before_does_so_again():
    before = signal.getsignal(signal.SIGTERM)
    with ended_by_signals():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
    assert signal.set_wakeup_fd(-1) == -1
    in_thread: list[None] = []
    thread = threading.Thread(target=lambda: in_thread.append(ended_by_signals().__enter__()))
    thread.start()
    thread.join()
    assert in_thread == [None]
