"""The ONNX side: export, MatMuls of a graph, variants of a graph, rewrites."""
