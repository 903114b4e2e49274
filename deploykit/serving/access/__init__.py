"""Who may ask, and how much: keys, tokens of identity providers, rate limits."""
