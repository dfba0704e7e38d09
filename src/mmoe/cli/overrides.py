"""Write overrides that Hydra reads back as the same text."""

import re

from hydra.core.hydra_config import HydraConfig

KEYWORDS = ("null", "true", "false", "inf", "nan")  # not text for Hydra, in upper or lower case
PLAIN = re.compile(r"[a-zA-Z_][\w./-]*|[a-zA-Z_./-]*/[\w./-]*", re.ASCII)


def quote_override(key: str, value: str) -> str:
    """Return `key=value`, with the value in quotes if it needs them."""
    is_plain = PLAIN.fullmatch(value) and value.lower() not in KEYWORDS
    return f"{key}={value}" if is_plain else f"{key}={quote_value(value)}"


def quote_value(value: str) -> str:
    """Put a value in quotes. A quote in it gets a backslash; backslashes before a quote are doubled."""
    escaped = re.sub(r"(\\*)('|$)", lambda m: 2 * m[1] + ("\\'" if m[2] else ""), value)
    return f"'{escaped}'"


def searchpath_override() -> list[str]:
    """The override with the folders of configurations that this command was given; empty without them."""
    sources = HydraConfig.get().runtime.config_sources
    own = [f"{one.schema}://{one.path}" for one in sources if one.provider not in ("hydra", "main", "schema")]
    return [f"hydra.searchpath=[{','.join(map(quote_value, own))}]"] if own else []
