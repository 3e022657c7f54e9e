"""Charges: single payments by EIP-3009 authorization, taken by the settler for a web worker."""
