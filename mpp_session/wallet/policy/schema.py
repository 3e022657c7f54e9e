"""The JSON schema of the policy file, for editors: `docs/reference/policy.schema.json`."""

from typing import Any

import msgspec

from mpp_session.wallet.policy.file import PolicyFile

__all__ = ["schema"]


def schema() -> dict[str, Any]:
    """Return the schema. TOML's own times and numbers are described as editors read them."""
    (document,), parts = msgspec.json.schema_components([PolicyFile], ref_template="#/$defs/{name}")
    shares = parts["EnvelopeTable"]["properties"]["warn_at"]
    shares["items"] = {"type": "number", "exclusiveMinimum": 0, "maximum": 1}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "mpp-session wallet policy",
        **document,
        "$defs": parts,
    }
