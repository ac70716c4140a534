"""What running an exported model takes: Python's own library, numpy, Pillow and onnxruntime."""
