"""What roseinfer's server had: POST /generate, and its flags."""
