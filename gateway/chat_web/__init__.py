"""The protocol of nanochat's web server: POST /chat/completions, /health and /stats, and its command."""
