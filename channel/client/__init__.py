"""The agent's side: pays what the policy allows, remembers what it signed, and trusts no server.

Import from the modules: `transport` for httpx, `policy` for the limits, `signer` for keys.
"""
