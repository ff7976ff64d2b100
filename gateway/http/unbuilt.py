"""Paths of features that are known and not built: refused by name, as fields are. Others are not found."""

from __future__ import annotations

_OPENAI = (
    *("agents", "assistants", "audio", "batches", "chatkit", "compliance", "containers", "content_provenance_checks"),
    *("conversations", "decisions", "evals", "files", "fine_tuning", "images", "live", "moderations", "organization"),
    *("projects", "realtime", "safety", "skills", "threads", "uploads", "vaults", "vector_stores", "videos"),
    *("webhook_endpoints", "webhook_event_types"),
)
_ANTHROPIC = (
    *("deployment_runs", "deployments", "dreams", "environments", "memory_stores", "messages/batches"),
    *("organizations", "sessions", "tunnels", "user_profiles"),
)
_OF_OTHER_SERVERS = ("classify", "generate", "pooling", "rerank", "score")
_BELOW_V1 = frozenset((*_OPENAI, *_ANTHROPIC, *_OF_OTHER_SERVERS))
_AT_ROOT = frozenset(_OF_OTHER_SERVERS)
_STORED_CHAT = "/v1/chat/completions/chatcmpl-"  # no other id: most such paths are a base URL with too much in it


def unbuilt_path(path: str) -> str | None:
    """The part of an unknown path that names such a feature."""
    if path.startswith(_STORED_CHAT):
        return "/v1/chat/completions/{id}"
    parts = path.split("/")[1:]
    if parts[0] != "v1":
        return f"/{parts[0]}" if parts[0] in _AT_ROOT else None
    for length in (2, 1):
        name = "/".join(parts[1 : 1 + length])
        if name in _BELOW_V1:
            return f"/v1/{name}"
    return None
