"""Decides what to settle or close, sends it, and records the outcome."""
