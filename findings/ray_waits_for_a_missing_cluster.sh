#!/usr/bin/env bash
# Expected: ray.init says at once that nobody listens at an address of this machine, where the
# connection is refused. It tries for minutes, and only its C++ part writes lines to stderr.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment ray==2.60.0
export RAY_USAGE_STATS_ENABLED=0
port=$("$PYTHON" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
"$PYTHON" - "$port" <<'PYTHON'
import socket
import sys

try:
    socket.create_connection(("127.0.0.1", int(sys.argv[1])))
except ConnectionRefusedError as error:
    print("socket:", error)
PYTHON
code=0
timeout 120 "$PYTHON" -c "import ray; ray.init(address='127.0.0.1:$port')" 2>stderr || code=$?
tail -2 stderr | cut -c1-150
echo "ray.init: exit code $code after 120 seconds (124: it was still at it)"
[ "$code" = 124 ]
