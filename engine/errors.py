"""Why an engine cannot start. Each is told to the gateway as one line."""


class ModelRefused(Exception):
    """The model cannot be served; starting again cannot help. Names what and why."""


class OutOfMemory(Exception):
    """The model or the smallest useful cache does not fit. Names the remedy."""
