"""The search for the fastest graph, precision and engine that passes every gate."""
