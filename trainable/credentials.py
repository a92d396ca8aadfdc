"""Credentials come from the environment and go nowhere else: into no results URI, no record and no message."""

from __future__ import annotations

import os
import re
from urllib.parse import parse_qsl

_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|_KEY(_|$)", re.I)
_PLACE_NAME = re.compile(r"(FILE|PATH|DIR|GOOGLE_APPLICATION_CREDENTIALS)$", re.I)
"""Variables that say where a secret lies."""
_SECRET_OPTION = re.compile(r"token|secret|passw|credential|key|signature|^sig$|sas", re.I)
_IN_ADDRESS = re.compile(r"(\b[a-z][a-z0-9+.-]*://)(?:[^/\s@]+|[^/\s@]*:[^\s@]+)@", re.I)
"""A secret key may hold a slash, so what stands before the @ need not end at one."""
_SHORTEST = 8
"""Shorter values are words such as "test"; replacing them everywhere would garble text and hide nothing."""
HIDDEN = "***"


def redacted(text: str) -> str:
    """A text without the values of environment variables that are named like secrets, and without what stands before
    the @ of an address."""
    text = _IN_ADDRESS.sub(rf"\1{HIDDEN}@", text)
    for value in sorted(_secrets(), key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    return text


def is_secret(name: str) -> bool:
    """Whether an environment variable is named like one that holds a secret."""
    return bool(_SECRET_NAME.search(name)) and not _PLACE_NAME.search(name)


def _secrets() -> set[str]:
    return {value for name, value in os.environ.items() if is_secret(name) and len(value) >= _SHORTEST}


def credentials_in(uri: str) -> bool:
    """Whether a URI carries credentials: a password, an S3 key before the @, or an option that is named like one."""
    scheme, _, rest = uri.partition("://")
    place, _, options = rest.partition("?")
    user, at, _ = place.rpartition("@")
    if at and (":" in user or (scheme.lower().startswith("s3") and "/" not in user)):
        return True
    return any(
        _SECRET_OPTION.search(name) or "@" in value for name, value in parse_qsl(options, keep_blank_values=True)
    )
