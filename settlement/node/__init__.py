"""JSON-RPC nodes: transport, endpoints, quorum, blocks and the chain's clock."""
