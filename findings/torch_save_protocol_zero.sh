#!/usr/bin/env bash
# Expected: torch.load(weights_only=False) reads what torch.save wrote, whatever its pickle_protocol.
# With protocol 0 the tensors' persistent ids become text, and the file cannot be loaded at all, in
# neither format; protocols 1 to 5 can.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment torch==2.14.1 numpy==2.4.6
"$PYTHON" - <<'PYTHON'
import torch

content = {"weight": torch.arange(3.0)}
for protocol in range(6):
    for is_zip in (True, False):
        torch.save(content, "x.pt", pickle_protocol=protocol, _use_new_zipfile_serialization=is_zip)
        try:
            found = torch.load("x.pt", weights_only=False)["weight"].tolist()
        except (AssertionError, RuntimeError) as error:
            found = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        print("protocol", protocol, "zip" if is_zip else "legacy", found)
        assert (found == [0.0, 1.0, 2.0]) == (protocol > 0)
PYTHON
