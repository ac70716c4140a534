#!/usr/bin/env bash
# Expected: importing torch, torchvision or timm loads nothing of torch's compiler, which nobody has
# asked for. torch does not, but torchvision does for one function of its box pooling, and timm does.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment torch==2.14.1 torchvision==0.29.1 timm==1.0.31
for module in torch torchvision timm; do
	"$PYTHON" - "$module" <<'PYTHON'
import importlib
import sys

name = sys.argv[1]
importlib.import_module("torch")
before = len(sys.modules)
importlib.import_module(name)
loads = "torch._dynamo" in sys.modules
print(f"import {name}: torch._dynamo {'loaded' if loads else 'not loaded'}, "
      f"{len(sys.modules) - before} modules more than torch's")
assert loads == (name != "torch")
PYTHON
done
# timm imports torchvision; without that it would load the compiler, too.
"$PYTHON" - <<'PYTHON'
import sys
import types

stand_in = types.ModuleType("torch._dynamo.utils")
stand_in.is_compile_supported = None
sys.modules["torch._dynamo.utils"] = stand_in
import torchvision

assert "torch._dynamo" not in sys.modules
del sys.modules["torch._dynamo.utils"]
print("torchvision wants no more of it than is_compile_supported")
import timm

assert "torch._dynamo" in sys.modules
print("timm loads it by itself")
PYTHON
