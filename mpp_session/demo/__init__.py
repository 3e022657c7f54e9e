"""The demo: a local chain, a real model, a gateway, and an agent that pays it."""
