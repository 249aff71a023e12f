"""Students as ONNX graphs, also with 8-bit weights."""
