"""The server's engine, texts and checks for Python programs, without HTTP in between."""
