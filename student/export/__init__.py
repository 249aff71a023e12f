"""Shipping a student: as ONNX, GGUF or small safetensors, each run and compared before it appears."""
