"""From a request's bytes to what the engine is asked."""
