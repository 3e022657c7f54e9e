"""A proxy on this machine that pays for what passes through it: any program pays by a base URL."""
