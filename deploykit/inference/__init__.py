"""What runs a packaged model: predictor, float fallback, golden set, drift. It imports no torch."""
