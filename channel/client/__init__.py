"""The agent's side: pay what the policy allows, remember what was signed, believe nobody.

Import from the modules: `transport` for httpx, `policy` for the limits, `signer` for keys.
"""
