"""Masking of personal data, and the sampled records of texts."""
