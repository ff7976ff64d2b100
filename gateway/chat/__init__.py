"""From messages to prompt token ids."""
