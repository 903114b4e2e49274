"""Requests and responses: this service's own, the Open Inference Protocol, Hugging Face's, and the page."""
