"""The price table: what each model costs under each endpoint.

Everything that shows or charges a price reads it from here.
"""
