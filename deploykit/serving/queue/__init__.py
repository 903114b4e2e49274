"""What waits for the engine, in which order and in which batches."""
