"""The provider's dashboard: pages on the admin port, behind a log-in token.

Pages are written by the server, and a little JavaScript keeps figures current. `reading` collects
what the pages show, `feed` listens to the gate's hooks, `actions` changes something.
"""
