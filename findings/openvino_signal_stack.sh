#!/usr/bin/env bash
# Expected: what a library sets for a thread goes when the library goes. OpenVINO's CPU plugin gives the
# thread that loads it a stack for signal handlers (on processors whose registers need a larger one),
# and frees it with its last object: in whatever thread that happens, the first keeps the address.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment openvino==2026.4.1 numpy==2.4.6
CI=true "$PYTHON" - <<'PYTHON'
import ctypes
import gc
import threading

import numpy as np
import openvino
from openvino import opset13 as ops

libc = ctypes.CDLL(None)


class Stack(ctypes.Structure):
    _fields_ = [("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]


def stack(what):
    """Whether this thread has a stack for signals, and whether its memory is there."""
    found = Stack()
    libc.sigaltstack(None, ctypes.byref(found))
    start = found.start or 0
    ranges = (line.split()[0].split("-") for line in open("/proc/self/maps"))
    is_there = any(int(a, 16) <= start < int(b, 16) for a, b in ranges)
    print(f"{what}: {'a stack' if start else 'none'}, {'in memory' if is_there else 'not in memory'}")
    return bool(start), is_there


def compiled():
    image = ops.parameter([1, 1], np.float32)
    return openvino.compile_model(openvino.Model([ops.add(image, image)], [image]), "CPU")


AT_MINSIGSTKSZ, MINSIGSTKSZ = 51, 2048
if libc.getauxval(AT_MINSIGSTKSZ) <= MINSIGSTKSZ:
    raise SystemExit("this processor needs no larger stack: nothing to see")
assert stack("at first") == (False, False)
models = [compiled()]
assert stack("with a model") == (True, True)
models.clear()
gc.collect()
assert stack("freed here") == (False, False)
models = [compiled()]
thread = threading.Thread(target=lambda: (models.clear(), gc.collect()))
thread.start()
thread.join()
assert stack("freed by another thread") == (True, False)
PYTHON
