"""How long single layers take on a runtime: small ONNX graphs, timed in turns, remembered on disk."""
