"""How the vocabulary is reduced."""
