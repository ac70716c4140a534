#!/usr/bin/env bash
# Expected: of a file with one flipped bit in a weight, torch.load and safetensors both say that it is
# damaged. Neither does: safetensors has no checksum, torch.load does not look at the archive's CRC.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment safetensors==0.8.0 torch==2.14.1 numpy==2.4.6
"$PYTHON" - <<'PYTHON'
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

state = {"weight": torch.full((8,), 1.5)}
save_file(state, "w.safetensors")
torch.save(state, "w.pth")
for name, load in (("w.pth", torch.load), ("w.safetensors", load_file)):
    content = bytearray(Path(name).read_bytes())
    content[content.index(state["weight"].numpy().tobytes()) + 3] ^= 0x40
    Path(name).write_bytes(content)
    found = load(name)["weight"].tolist()
    print(f"{name}: read, {found[:2]}")
    assert found != state["weight"].tolist()
PYTHON
