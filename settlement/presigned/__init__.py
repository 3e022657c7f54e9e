"""Settles that the payee signs ahead, and the file that carries them to a watchtower."""
