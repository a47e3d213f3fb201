"""Reading ahead: in order, bounded, each error where it belongs."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import weakref
from unittest.mock import Mock

import pytest

from lmms_flexselect.video.prefetch import Prefetcher, ReaderDied
from tests.support.hearing import hear_ctrl_c

PATIENCE = 10.0


class Value:
    """Something that can be watched while it lives."""

    def __init__(self, key):
        self.key = key


class Shelf:
    """Reads values and notes which, when each is let to; `alive` counts those not let go of."""

    def __init__(self, held_up=()):
        self.read: list[str] = []
        self.threads: set[str] = set()
        self.made: list[weakref.ref] = []
        self.gates = {key: threading.Event() for key in held_up}
        self.begun = {key: threading.Event() for key in "abcdefgh"}

    def __call__(self, key):
        self.read.append(key)
        self.threads.add(threading.current_thread().name)
        self.begun[key].set()
        if key in self.gates:
            assert self.gates[key].wait(PATIENCE)
        value = Value(key)
        self.made.append(weakref.ref(value))
        return value

    @property
    def alive(self):
        return sum(made() is not None for made in self.made)


@pytest.fixture
def started():
    """Makes prefetchers that are closed in the end."""
    made = []

    def start(read, keys, ahead):
        made.append(Prefetcher(read, ahead))
        made[-1].plan(keys)
        return made[-1]

    yield start
    for prefetcher in made:
        prefetcher.close()


@pytest.mark.parametrize("ahead", [0, 1, 2, 5])
def test_values_come_in_order_and_are_read_once_for_questions_in_a_row(started, ahead):
    shelf = Shelf()
    keys = "aaabccdea"
    prefetcher = started(shelf, keys, ahead)
    assert [prefetcher.get(key).key for key in keys] == list(keys)
    # The last one is asked for again after it was let go, unless everything fits.
    assert sorted(shelf.read) == sorted("abcde" + "a" * (ahead < 4))
    assert shelf.threads == {"prefetch"}  # also with nothing read ahead: a native decoder would not hear Ctrl-C


@pytest.mark.parametrize("ahead", [1, 2])
def test_the_next_are_begun_before_their_turn_and_no_more(started, ahead):
    shelf = Shelf(held_up="bc")
    prefetcher = started(shelf, "abcdef", ahead)
    assert prefetcher.get("a").key == "a"
    assert shelf.begun["abc"[ahead]].wait(PATIENCE)
    assert set(shelf.read) == set("abcdef"[: ahead + 1])
    for gate in shelf.gates.values():
        gate.set()
    assert prefetcher.get("b").key == "b"
    assert shelf.begun["abcdef"[ahead + 1]].wait(PATIENCE)
    assert "abcdef"[ahead + 2] not in shelf.read


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_no_more_are_held_than_said(started, ahead):
    shelf = Shelf()
    prefetcher = started(shelf, "abcdefgh", ahead)
    for key in "abcdefgh":
        prefetcher.get(key)
        assert shelf.alive <= ahead + 1
    prefetcher.close()
    for future in threading.enumerate():
        if future.name.startswith("prefetch"):
            future.join(PATIENCE)
    assert shelf.alive == 0


def test_a_question_about_two_videos_reads_them_once(started):
    shelf = Shelf()
    prefetcher = started(shelf, "ababab", 1)
    assert "".join(prefetcher.get(key).key for key in "ababab") == "ababab"
    assert sorted(shelf.read) == ["a", "b"]


def test_keys_may_be_left_out_and_others_asked_for(started):
    shelf = Shelf()
    prefetcher = started(shelf, "abcd", 1)
    assert [prefetcher.get(key).key for key in "cgdb"] == list("cgdb")
    assert shelf.read.count("g") == shelf.read.count("d") == shelf.read.count("c") == 1


def test_what_is_not_needed_is_not_read_ahead_but_still_to_be_had():
    shelf = Shelf()
    prefetcher = Prefetcher(shelf, 2, needed=lambda key: key != "b")
    prefetcher.plan("abcd")
    assert [prefetcher.get(key).key for key in "acd"] == ["a", "c", "d"]
    assert "b" not in shelf.read
    prefetcher.plan("abc")
    assert [prefetcher.get(key).key for key in "abc"] == ["a", "b", "c"]
    prefetcher.close()


class Odd(BaseException):
    """Ends a thread."""


@pytest.mark.parametrize(
    ("error", "seen"),
    [(ValueError("cut off"), "cut off"), (Odd(), "ended by Odd"), (MemoryError(), "ended by MemoryError")],
    ids=["error", "died", "memory"],
)
@pytest.mark.parametrize("ahead", [1, 2])
def test_an_error_is_told_where_its_value_is_asked_for(started, error, seen, ahead):
    def read(key):
        if key == "b":
            raise error
        return key

    prefetcher = started(read, "abbcd", ahead)
    assert prefetcher.get("a") == "a"
    for _ in "bb":
        with pytest.raises(ValueError if "cut" in seen else ReaderDied, match=seen):
            prefetcher.get("b")
    assert [prefetcher.get(key) for key in "cd"] == ["c", "d"]


def test_without_threads_to_be_had_values_are_read_in_turn(started, monkeypatch):
    def no_more(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", no_more)
    shelf = Shelf()
    prefetcher = started(shelf, "abc", 2)
    assert [prefetcher.get(key).key for key in "abc"] == list("abc")
    assert shelf.read == list("abc")
    assert shelf.threads == {"MainThread"}


def test_without_threads_ctrl_c_stops_the_run_and_not_the_video(started, monkeypatch):
    def read(key):
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", Mock(side_effect=RuntimeError("can't start new thread")))
    with pytest.raises(KeyboardInterrupt):
        started(read, "ab", 2).get("a")


# A decoder in native code that never comes back: it lets go of the interpreter's lock, and hears no signal.
_STUCK = """
import ctypes, sys
from lmms_flexselect.video.prefetch import Prefetcher

def read(key):
    print("reading", flush=True)
    ctypes.CDLL(None).sleep(600)

prefetcher = Prefetcher(read, int(sys.argv[1]))
prefetcher.plan("ab")
try:
    prefetcher.get("a")
finally:
    prefetcher.close()
"""


@pytest.mark.parametrize("ahead", [0, 2])
def test_ctrl_c_ends_a_process_while_a_decoder_is_stuck(ahead):
    process = subprocess.Popen(
        [sys.executable, "-c", _STUCK, str(ahead)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hear_ctrl_c,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "reading\n"
    process.send_signal(signal.SIGINT)
    try:
        _, said = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == -signal.SIGINT
    assert said.rstrip().endswith("KeyboardInterrupt")


def test_after_an_early_stop_nothing_else_is_begun(started):
    shelf = Shelf(held_up="ab")
    prefetcher = started(shelf, "abcdef", 2)
    assert shelf.begun["b"].wait(PATIENCE)
    prefetcher.close()
    for gate in shelf.gates.values():
        gate.set()
    for thread in threading.enumerate():
        if thread.name.startswith("prefetch"):
            thread.join(PATIENCE)
            assert not thread.is_alive()
    assert set(shelf.read) <= {"a", "b"}
    assert prefetcher.get("c").key == "c"  # still to be had, in its own time


def test_a_new_plan_forgets_the_old_one(started):
    shelf = Shelf()
    prefetcher = started(shelf, "ab", 1)
    prefetcher.get("a")
    prefetcher.plan("cd")
    assert [prefetcher.get(key).key for key in "cd"] == ["c", "d"]
