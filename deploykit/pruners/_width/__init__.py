"""Helpers of the width pruner: ranking, sizing, the latency table, and the timing of models end to end."""
