"""One module a page: data in, HTML out (pure)."""
