"""The chat page: files that anybody may have. What it shows it asks of the API, as any client does."""
