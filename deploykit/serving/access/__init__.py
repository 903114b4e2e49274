"""Access: keys, tokens of identity providers, rate limits."""
