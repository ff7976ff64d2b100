"""/openapi.json and /docs."""
