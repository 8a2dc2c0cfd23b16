"""Models as graphs that run without this package: ONNX files or exported programs of torch, and a manifest that says how."""
