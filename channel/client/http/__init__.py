"""The httpx side: transport, request and response bodies, event streams, management requests."""
