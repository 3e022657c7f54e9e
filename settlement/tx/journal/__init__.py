"""Transactions made durable before they are broadcast, and who may write them."""
