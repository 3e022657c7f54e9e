"""Checkpoints as signed notes: text that any tool for transparency logs reads (C2SP).

    mpp-session-trail-5c1d...
    1042
    CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=
    at 1790000000123
    after 9f2c...

    — mpp-session-trail-5c1d... Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q

The lines are the trail's name, its number of records, the root of their Merkle tree, Unix
milliseconds, and the SHA-256 of the note before (zeros for the first), so that the last signature
vouches for a whole file. The signature is Ed25519 over the lines above the empty one.
"""

import re
from base64 import b64decode, b64encode
from hashlib import sha256
from hmac import digest as hmac_digest
from typing import Final, Self

import msgspec

from channel.errors import ConfigError

__all__ = [
    "Checkpoint",
    "Note",
    "PublicKey",
    "SigningKey",
    "TornNotesError",
    "name_trail",
    "split_notes",
]

_ED25519: Final = b"\x01"
_PURPOSE: Final = b"mpp-session audit trail, checkpoints, version 1"
_NAME: Final = re.compile("mpp-session-trail-[0-9a-f]{32}")
_NOTE: Final = re.compile(
    rb"(?P<text>(?P<origin>[!-*,-~]+)\n(?P<size>[1-9][0-9]{0,15})\n(?P<root>[A-Za-z0-9+/]{43}=)\n"
    rb"at (?P<at>[0-9]{1,16})\nafter (?P<after>[0-9a-f]{64})\n)\n"
    rb"\xe2\x80\x94 (?P<signer>[!-*,-~]+) (?P<signature>[A-Za-z0-9+/]{91}=)\n"
)
_SIGNATURE_BYTES: Final = 64
_KEY_BYTES: Final = 32
_ID_BYTES: Final = 4


def name_trail(trail: str) -> str:
    """Return the name by which notes and keys call the trail with this id."""
    return f"mpp-session-trail-{trail}"


class Checkpoint(msgspec.Struct, frozen=True):
    """The state of a trail at one moment."""

    origin: str
    size: int
    root: bytes
    at: int
    """Unix milliseconds, by the clock of the wallet."""
    after: bytes = bytes(32)
    """The hash of the note before."""

    def text(self) -> bytes:
        """Return the lines that are signed."""
        root = b64encode(self.root).decode()
        lines = (self.origin, self.size, root, f"at {self.at}", f"after {self.after.hex()}")
        return "".join(f"{line}\n" for line in lines).encode()


class PublicKey(msgspec.Struct, frozen=True):
    """Verifies the notes of one trail."""

    name: str
    point: bytes

    @property
    def id(self) -> bytes:
        """The four bytes by which a note names its key."""
        return sha256(self.name.encode() + b"\n" + _ED25519 + self.point).digest()[:_ID_BYTES]

    def __str__(self) -> str:
        """Return the form of C2SP's signed notes: name, id and key."""
        return f"{self.name}+{self.id.hex()}+{b64encode(_ED25519 + self.point).decode()}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the key that `str` wrote.

        Raises:
            ConfigError: It is no such key.
        """
        name, _, rest = text.strip().partition("+")
        _, _, encoded = rest.partition("+")
        try:
            point = b64decode(encoded, validate=True)[1:]
            key = cls(name, point)
        except ValueError:
            key = None
        if key is None or _NAME.fullmatch(name) is None or str(key) != text.strip():
            raise ConfigError(
                "expected the public key of an audit trail, such as "
                f"mpp-session-trail-5c1d...+0a1b2c3d+AbC..., found {text[:80]!r}"
            )
        return key

    def verifies(self, note: "Note") -> bool:
        """Whether a note is of this trail, and this key signed it."""
        from Crypto.Signature import eddsa  # noqa: PLC0415 -- slow to import

        if note.signer != self.name or note.checkpoint.origin != self.name:
            return False
        if note.signature[:_ID_BYTES] != self.id:
            return False
        try:
            key = eddsa.import_public_key(self.point)
            eddsa.new(key, "rfc8032").verify(note.text, note.signature[_ID_BYTES:])
        except ValueError:
            return False
        return True


class SigningKey:
    """Signs the notes of one trail. It is derived from a secret that the wallet has anyway."""

    def __init__(self, secret: bytes, trail: str) -> None:
        """Derive the key: of the trail with this id, from a secret of at least 32 bytes."""
        from Crypto.Signature import eddsa  # noqa: PLC0415 -- slow to import

        if len(secret) < _KEY_BYTES:
            raise ConfigError(f"expected a secret of at least {_KEY_BYTES} bytes for checkpoints")
        seed = hmac_digest(secret, _PURPOSE, "sha256")
        self._key = eddsa.import_private_key(seed)
        point = self._key.public_key().export_key(format="raw")
        self.public = PublicKey(name_trail(trail), point)

    def sign(self, checkpoint: Checkpoint) -> bytes:
        """Return the note of a checkpoint, whole."""
        from Crypto.Signature import eddsa  # noqa: PLC0415 -- slow to import

        signature = eddsa.new(self._key, "rfc8032").sign(checkpoint.text())
        signed = b64encode(self.public.id + signature).decode()
        return checkpoint.text() + f"\n— {self.public.name} {signed}\n".encode()


class Note(msgspec.Struct, frozen=True):
    """A checkpoint as a file holds it; `PublicKey.verifies` says whether it is true."""

    checkpoint: Checkpoint
    text: bytes
    signer: str
    signature: bytes
    """The four bytes of the key's id, and the signature."""
    hash: bytes
    """Of the whole note: the next one holds it."""
    end: int
    """Where the next note begins in the file."""


class TornNotesError(ConfigError):
    """What follows the whole notes of a file is not one. `notes` are those before."""

    def __init__(self, notes: list[Note], rest: bytes) -> None:
        super().__init__(
            f"after {len(notes)} checkpoints, expected another one or the end, found {rest[:60]!r}"
        )
        self.notes = notes
        self.rest = rest


def split_notes(content: bytes) -> list[Note]:
    """Return the notes of a file, oldest first.

    Raises:
        TornNotesError: The file holds something else, too, or ends within a note.
    """
    notes: list[Note] = []
    place = 0
    while place < len(content):
        found = _NOTE.match(content, place)
        if found is None:
            raise TornNotesError(notes, content[place:])
        checkpoint = Checkpoint(
            origin=found["origin"].decode(),
            size=int(found["size"]),
            root=b64decode(found["root"]),
            at=int(found["at"]),
            after=bytes.fromhex(found["after"].decode()),
        )
        place = found.end()
        note = Note(
            checkpoint=checkpoint,
            text=found["text"],
            signer=found["signer"].decode(),
            signature=b64decode(found["signature"]),
            hash=sha256(found[0]).digest(),
            end=place,
        )
        notes.append(note)
    return notes
