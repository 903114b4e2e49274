"""Helpers of the width pruner: ranking, sizing, the latency table and the meter of whole models."""
