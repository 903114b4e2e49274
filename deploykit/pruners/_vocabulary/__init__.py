"""Helpers of the vocabulary pruner: reducing a tokenizer, and a model along with it."""
