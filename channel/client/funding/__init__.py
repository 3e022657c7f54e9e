"""Deposits: opening a channel, topping it up, and the signatures for both."""
