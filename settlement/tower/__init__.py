"""The watchtower: settles from another machine, with settles the payee signed ahead, no key."""
