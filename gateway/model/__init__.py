"""The model as the gateway knows it: files, names, no weights."""
