"""OpenAI's Responses API: translated into a chat, its answer back, and kept for what comes after it."""
