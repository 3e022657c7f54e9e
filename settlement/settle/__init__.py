"""What to settle or close, when, and how it ends."""
