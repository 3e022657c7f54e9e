"""The paid reverse proxy in front of an inference server."""
