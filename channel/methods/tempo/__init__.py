"""Method `tempo`: sessions of version 1 in Tempo's escrow contract (draft-tempo-session-00)."""
