"""The HTTP server: what surrounds every request."""
