"""What the operator sees: metrics, logs, traces, and the watchdog."""
