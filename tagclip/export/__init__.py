"""Export of a model, its vocabulary baked in or an input, and what runs the files."""

import os
import sys

# Both runtimes report their use, to Microsoft and to Google, unless told so before their import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
sys.modules.setdefault("openvino_telemetry", None)
