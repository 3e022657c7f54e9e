"""The command `mpp-session`: one file a group, each as thin as it can be."""

from mpp_session.cli.app import main

__all__ = ["main"]
