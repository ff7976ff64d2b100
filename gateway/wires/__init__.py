"""The forms of an answer: one module an API."""
