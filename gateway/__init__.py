"""The HTTP side: OpenAI API, templates, tokens, streams, supervision of engines. Never imports torch or engine."""
