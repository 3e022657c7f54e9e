"""The operator's port: a second socket of the gateway that only this machine reaches."""
