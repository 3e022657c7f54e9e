"""Defence from another machine, with settles that the payee has signed ahead and no key of its."""
