"""Freed memory is used again."""

import subprocess
import sys

_HEAP_BEFORE_AND_AFTER = """
import sys
import torch
from pipeline.training.memory import keep_freed_memory

def heap():
    lines = open("/proc/self/maps").read().splitlines()
    spans = [line.split()[0].split("-") for line in lines if line.endswith("[heap]")]
    return sum(int(end, 16) - int(start, 16) for start, end in spans) >> 20

assert keep_freed_memory()
held = [torch.empty(31 << 18) for _ in range(8)]
print(heap())
del held[:]
print(heap())
"""


def test_large_blocks_stay_with_the_process_when_freed() -> None:
    command = [sys.executable, "-c", _HEAP_BEFORE_AND_AFTER]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    held, freed = (int(megabytes) for megabytes in done.stdout.split())
    assert held >= 8 * 31
    assert freed >= 8 * 31
