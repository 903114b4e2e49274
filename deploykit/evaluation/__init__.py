"""How good a model is, and whether another one is as good: metrics, intervals, parity, gates."""
