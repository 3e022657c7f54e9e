"""Watches the chain by events and by sweeps, and checks what settling depends on."""
