"""A conversation with a model in a terminal. A client: it knows nothing of the server but its API and command line."""
