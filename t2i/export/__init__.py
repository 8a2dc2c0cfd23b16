"""Exports models as graphs that run without this package: ONNX files or torch.export programs, with a manifest."""
