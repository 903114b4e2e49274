"""The stages, each from artifact to artifact: training, pruning, exporting, quantization, packaging; and retuning."""
