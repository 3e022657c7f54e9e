"""The conformance adapter answers the operations of tempoxyz/mpp-tools, and our own vectors.

What the harness's vectors state (version 2.0.0) is repeated here as facts: inputs and the answer.
"""

import importlib.util
import json
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from session_vectors import published

ADAPTER = Path(__file__).parents[2] / "conformance" / "adapters" / "mpp-session"
OURS = json.loads((resources.files("channel") / "vectors" / "evm-session.json").read_text())
SECRET = "test-vector-secret-minimum-32-byte-secret"  # noqa: S105 -- published
CHARGE = {"realm": "api.example.com", "method": "tempo", "intent": "charge"}
MILLION = {"amount": "1000000"}
REQUIRED_ID = "6QDs0BmhrI_v67iWeCMvGqQJEFQ6ErWKlk7zi5xL6t0"
DIGEST = "sha-256=X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE"


def load() -> Any:
    spec = importlib.util.spec_from_file_location("adapter", ADAPTER / "adapter.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


answer = load().answer


def ask(op: str, **given: Any) -> Any:
    return answer({"schema": 1, "op": op, "input": given})


def value(op: str, **given: Any) -> Any:
    answered = ask(op, **given)
    assert answered["ok"], answered
    return answered["value"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, REQUIRED_ID),
        ({"expires": "2025-01-06T12:00:00Z"}, "ZcHgfEi5_Qyda9NQwUzamsCgCcWXw6N6EH2NLyaSTlg"),
        ({"digest": DIGEST}, "vwnOtW2kwdujK9_uC_taI2e6Jwq86Jwogvq9m--i8eQ"),
        (
            {"expires": "2025-01-06T12:00:00Z", "digest": DIGEST},
            "HSUJV7QH1E135PSDPlrZ5cLoozV3bv5T4vfVdS3Xyzk",
        ),
        ({"opaque": "trace-123"}, "1XJ-Ti0DACNe3E1zHvwH6OdnKlhUx6xKxDbhJyexng4"),
        ({"header": "Payment-Authorization"}, "re8MIMJYpIJ0r_aiizscg6ghtipQM8IpOa_NtpwIU8E"),
        ({"header": "Authorization"}, REQUIRED_ID),
        ({"description": "API access payment required"}, REQUIRED_ID),
        ({"request": {}}, "SMpxo_gPWGquX9vAZ-b_OIPsHO3kfdY2s73946Mnwc0"),
        ({"realm": "payments.other.com"}, "NiwWsOUeZDNPegltJVbOHVKR4hHbZR5tnoQ80DVrqyY"),
        ({"method": "stripe"}, "IPY59YD2ZWmf3yXnZxbQgYoYejrVB9Nh_rpSkrOeSG0"),
        ({"intent": "session"}, "3bUB3LSxOG-lexqNCMGiV-p_j1UeibqWlA-saIiwo5A"),
        (
            {"request": MILLION | {"currency": "0x1234", "methodDetails": {"chainId": 42431}}},
            "W8sYOWDDrcuRcku27vjJoqLX0uAnBmql7qAOuQwdmPo",
        ),
        (
            {
                "secretKey": "unicode-test-key-minimum-32-byte-secret",
                "request": {
                    "amount": "100",
                    "currency": "EUR",
                    "recipient": "0x" + "1" * 40,
                    "description": "Payment for café \u2615",
                },
            },
            "-UB9jxfPEvTmFw7qvLmqJhDZ-lJ-noCp15ROxPHC4BE",
        ),
    ],
)
def test_ids_are_those_of_the_other_implementations(changes: Any, expected: str) -> None:
    """CHAL-05: also of `header`, which the vectors put before `opaque`."""
    given = {"secretKey": SECRET, **CHARGE, "request": MILLION, **changes}
    assert value("challenge.id", **given) == {"id": expected}


def test_a_short_secret_makes_no_id() -> None:
    """F-102."""
    refused = ask("challenge.id", secretKey="short", **CHARGE, request={})
    assert refused["error"]["type"] == "generation_error"


BARE = {"id": "ch", "realm": "api", "method": "tempo", "intent": "charge"}
LINE = 'Payment id="ch", realm="api", method="tempo", intent="charge", request="e30"'


@pytest.mark.parametrize(
    ("line", "more"),
    [
        (LINE, {}),
        (LINE.replace("Payment", "payment"), {}),
        (LINE.replace(", ", " ,  "), {}),
        (f'{LINE}, foo="bar", baz="qux"', {}),
        (LINE.replace('"api"', '"contact Payment support"'), {"realm": "contact Payment support"}),
        (
            f'{LINE}, description="Pay with the Payment scheme"',
            {"description": "Pay with the Payment scheme"},
        ),
        (f'{LINE}, description="Pay \\"premium\\" API"', {"description": 'Pay "premium" API'}),
        (f'{LINE}, description="Path C:\\\\tempo\\\\api"', {"description": "Path C:\\tempo\\api"}),
        (f'{LINE}, expires="2026-01-29T12:05:00Z"', {"expires": "2026-01-29T12:05:00Z"}),
        (f'{LINE}, header="Payment-Authorization"', {"header": "Payment-Authorization"}),
    ],
)
def test_challenges_are_read_and_written_as_others_do(line: str, more: Any) -> None:
    """F-08."""
    read = value("challenge.parse", header=line)
    assert read == {**BARE, "request": {}, **more}
    written = value("challenge.format", **read)["header"]
    assert value("challenge.parse", header=written) == read


@pytest.mark.parametrize(
    "line",
    [
        "Bearer token123",
        "",
        "Payment",
        *(LINE.replace(f'{name}="{text}"', "") for name, text in BARE.items()),
        LINE.replace('request="e30"', ""),
        LINE.replace("e30", "not-valid!!!"),
        LINE.replace("e30", "bm90IGpzb24"),
        LINE.replace('id="ch"', 'id=""'),
        f'{LINE}, id="b"',
    ],
)
def test_what_others_refuse_to_parse_is_a_parse_error(line: str) -> None:
    """F-08, CHAL-01."""
    assert ask("challenge.parse", header=line)["error"]["type"] == "parse_error"


def test_a_quote_within_a_quoted_text_is_refused() -> None:
    """F-08: the harness's own parsers cut the text at the quote and ignore what follows."""
    line = f'{LINE}, description="Payment for "Premium" service"'
    assert ask("challenge.parse", header=line)["error"]["type"] == "parse_error"


def test_a_line_break_is_not_written_into_a_header() -> None:
    """F-09."""
    refused = ask("challenge.format", **BARE, request={}, description="one\r\ntwo")
    assert refused["error"]["type"] == "format_error"


def test_credentials_of_any_method_are_read_and_written() -> None:
    """CRED-01: the payload is not understood, so it stays as it is."""
    credential = {
        "challenge": {**BARE, "request": MILLION, "expires": "2026-01-29T12:30:00Z"},
        "payload": {"type": "transaction", "signature": "0xabcd"},
        "source": "did:pkh:eip155:42431:0x1234567890abcdef1234567890abcdef12345678",
    }
    header = value("credential.format", **credential)["header"]
    assert value("credential.parse", header=header) == credential
    for wrong in ("Bearer e30", "Payment not-valid!!!", "Payment W10", "Payment e30"):
        assert ask("credential.parse", header=wrong)["error"]["type"] == "parse_error"


@pytest.mark.parametrize(
    ("text", "coded"),
    [
        ("", ""),
        ("Hello, World!", "SGVsbG8sIFdvcmxkIQ"),
        ("a", "YQ"),
        ("ab", "YWI"),
        (">>>???", "Pj4-Pz8_"),
        ("tabs\tand\nnewlines", "dGFicwlhbmQKbmV3bGluZXM"),
    ],
)
def test_base64url_is_that_of_the_others(text: str, coded: str) -> None:
    assert value("base64url.encode", text=text) == {"text": coded}
    assert value("base64url.decode", text=coded) == {"text": text}


@pytest.mark.parametrize("coded", ["not-valid!!!", "_w"])
def test_what_is_no_text_is_an_encoding_error(coded: str) -> None:
    """F-04."""
    assert ask("base64url.decode", text=coded)["error"]["type"] == "encoding_error"


@pytest.mark.parametrize("scenario", OURS["scenarios"], ids=lambda scenario: scenario["name"])
def test_our_vectors_hold(scenario: Any) -> None:
    """OPEN-01, ENC-02, RCPT-02: they were made by viem and mppx, and the adapter agrees."""
    answered = value(scenario["op"], **scenario["input"])
    assert fold(answered) == fold(scenario["expected"])


def fold(found: Any) -> Any:
    """Return hexadecimal in one case: addresses are compared by their bytes."""
    if isinstance(found, dict):
        return {name: fold(inner) for name, inner in found.items()}
    return found.lower() if isinstance(found, str) and found.startswith("0x") else found


def test_the_published_vectors_are_those_of_the_tests() -> None:
    assert (
        Path(__file__).parents[2] / "channel/vectors/evm-session.json"
    ).read_text() == published()


def test_the_manifest_names_every_operation() -> None:
    manifest = json.loads((ADAPTER / "adapter.json").read_text())
    assert manifest["capabilities"] == list(load().OPERATIONS)
    assert {scenario["op"] for scenario in OURS["scenarios"]} <= set(manifest["capabilities"])
    assert ask("tempo.proof.typed_data")["error"]["type"] == "unsupported_operation"


def test_the_program_reads_one_request_and_writes_one_answer() -> None:
    asked = json.dumps({"schema": 1, "op": "base64url.encode", "input": {"text": "a"}})
    done = subprocess.run(  # noqa: S603 -- our own program
        [sys.executable, str(ADAPTER / "adapter.py")],
        input=asked,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == {"ok": True, "value": {"text": "YQ"}}
