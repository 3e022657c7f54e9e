"""Parses and formats everything the protocol writes: strict when reading, canonical when writing.

Import from the modules: `challenge`, `credential`, `payload`, `receipt`, `problem`, `sse`,
`accept_payment`, and `encoding` and `auth_params` below them. Wire names (camelCase) appear in
this package only.
"""
