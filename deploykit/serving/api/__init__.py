"""What the routes accept and answer: our own, the Open Inference Protocol, Hugging Face's, the page."""
