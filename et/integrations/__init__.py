"""ET in other libraries: timm, PyTorch Geometric, ONNX, and the authors' published weights."""
