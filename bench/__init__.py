"""A load generator for OpenAI-compatible servers: headrace bench. Knows nothing of the server next to it."""
