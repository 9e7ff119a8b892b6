"""Signals to a driver: a flag first, an interruption at the second Ctrl-C, an end in time."""

import os
import signal
import subprocess
import sys
import time

import pytest

from pipeline.cluster.stopping import RunStopped, StopSignals


def send(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_raises_a_flag_and_starts_the_time(number: int) -> None:
    before = signal.getsignal(number)
    with StopSignals(30.0, lambda: 3) as signals:
        assert not signals.requested.is_set()
        assert signals.seconds_left == 30.0
        send(number)
        assert signals.requested.is_set()
        assert 28.0 < signals.seconds_left < 30.0
        send(signal.SIGTERM)  # a scheduler may repeat itself
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
    assert signal.getsignal(number) is before


def test_the_process_ends_in_time_with_the_given_status() -> None:
    script = """
import os, signal, time
from pipeline.cluster.stopping import StopSignals
with StopSignals(0.5, lambda: print("last words") or 3):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
"""
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    assert done.stdout == "last words\n"
    assert time.monotonic() - began < 20


def test_exit_status_says_whether_a_checkpoint_stands() -> None:
    assert RunStopped("stopped", saved=True).exit_status == 3
    assert RunStopped("stopped", saved=False).exit_status == 130
