"""Graphs for ONNX Runtime."""
