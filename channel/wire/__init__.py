"""Bytes to values and back: everything the protocol writes, read strictly and written canonically.

Import from the modules: `challenge`, `credential`, `payload`, `receipt`, `problem`, `sse`,
`accept_payment`, and `encoding` and `auth_params` below them. Wire names (camelCase) stay in here.
"""
