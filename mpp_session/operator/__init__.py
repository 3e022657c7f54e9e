"""What an operator runs: status of the books and the chain, recovery from an export."""
