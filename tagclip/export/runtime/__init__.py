"""What running an export takes: the standard library, numpy, Pillow, onnxruntime or OpenVINO."""
