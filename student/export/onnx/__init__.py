"""Students as ONNX graphs, with float32 or 8-bit weights."""
