"""The verbs from artifact to artifact: training, pruning, exporting, quantization, packaging, and retuning."""
