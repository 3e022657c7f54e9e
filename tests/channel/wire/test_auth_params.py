"""The tokenizer of `WWW-Authenticate` and the writer of quoted parameters."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from channel.errors import WireError
from channel.wire.auth_params import AuthChallenge, format_auth_params, parse_auth_challenges

NAMES = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_", min_size=1, max_size=8)
PRINTABLE = st.text(st.characters(exclude_categories=("Cc", "Cs")), max_size=20)


def only(line: str) -> AuthChallenge:
    (challenge,) = parse_auth_challenges(line)
    return challenge


@given(st.dictionaries(NAMES, PRINTABLE, min_size=1, max_size=5))
@example({"a": 'Pay "per token" \\ now'})
@example({"a": "caf\u00e9 \u2615 \U0001f600"})
@example({"a": "\\u0041 is not A"})
@example({"a": ", Payment b=c"})
def test_parameters_come_back(params: dict[str, str]) -> None:
    """0.2, F-09: quotes, backslashes and every character beyond Latin-1 survive."""
    text = format_auth_params(params)
    assert text.encode("latin-1")
    assert only(f"Payment {text}") == AuthChallenge("payment", params)


def test_what_latin1_lacks_is_written_as_utf16_escapes() -> None:
    """0.2: each UTF-16 unit one escape; U+0080 to U+00FF stand as they are."""
    assert format_auth_params({"d": "\u00e9\u2014\U0001f600"}) == 'd="\u00e9\\u2014\\ud83d\\ude00"'


@pytest.mark.parametrize("character", ["\r", "\n", "\0", "\t", "\x1f", "\x7f", "\x85", "\x9f"])
def test_a_control_character_cannot_enter_a_header(character: str) -> None:
    """F-09: no line of our own making ends where a value says so."""
    with pytest.raises(WireError, match="control"):
        format_auth_params({"description": f"a{character}b"})


def test_a_lone_surrogate_can_neither_be_written_nor_read() -> None:
    """F-11."""
    with pytest.raises(WireError, match="surrogate"):
        format_auth_params({"a": "\ud800"})
    with pytest.raises(WireError, match="surrogate"):
        parse_auth_challenges('Payment a="\\ud83d"')
    with pytest.raises(WireError):
        parse_auth_challenges('Payment a="\ud83d"')


@pytest.mark.parametrize(
    "escape", ["\\u000a", "\\u000d", "\\u001b", "\\u0000", "\\u007f", "\\u009b"]
)
def test_an_escape_cannot_smuggle_a_control_character_in(escape: str) -> None:
    """F-09: what a log or a terminal would obey is refused on the way in, too."""
    with pytest.raises(WireError, match="control"):
        parse_auth_challenges(f'Payment realm="a{escape}b"')
    assert only('Payment realm="a\tb\\u0009"').params == {"realm": "a\tb\t"}


def test_names_and_schemes_are_read_in_any_case() -> None:
    """CORE-08."""
    assert only('PAYMENT ID="x", Realm="R"') == AuthChallenge("payment", {"id": "x", "realm": "R"})


@pytest.mark.parametrize(
    "line",
    [
        'Payment a = "1",b="2"',
        'Payment  a="1" , b="2"',
        'Payment ,, a="1",\t,b=2',
        ",Payment a=1,b=2,",
    ],
)
def test_blanks_and_empty_elements_are_allowed(line: str) -> None:
    """CORE-08: BWS around `=` and `,`, tokens or quoted strings, empty list elements."""
    assert only(line).params == {"a": "1", "b": "2"}


def test_a_quoted_pair_stands_for_its_second_character() -> None:
    assert only(r'Payment a="\"\\\x\u12"').params == {"a": '"\\xu12'}


def test_schemes_mixed_on_one_line_are_separated() -> None:
    """CORE-09, F-08: commas separate challenges, parameters, and stand in quoted strings."""
    line = (
        'Bearer realm="contact Payment support, please", error="x", Payment id="1", realm="a,b",'
        " Negotiate, Basic dGVzdA==, Payment id=2, NTLM"
    )
    assert parse_auth_challenges(line) == (
        AuthChallenge("bearer", {"realm": "contact Payment support, please", "error": "x"}),
        AuthChallenge("payment", {"id": "1", "realm": "a,b"}),
        AuthChallenge("negotiate", {}),
        AuthChallenge("basic", {}, "dGVzdA=="),
        AuthChallenge("payment", {"id": "2"}),
        AuthChallenge("ntlm", {}),
    )


@pytest.mark.parametrize(
    "line",
    [
        'Payment id="1", id="2"',
        'Payment id="1", ID="2"',
        'Payment id="1',
        'Payment id="1\\"',
        'Payment id="1" realm="2"',
        'Payment id="\x00"',
        "Payment id= =x",
        "Payment id=1 x",
        "Payment a b",
        "Payment =x",
        'Payment "x"',
        "=",
        '"',
        "Pay\u00e9ment id=1",
    ],
)
def test_a_line_that_is_not_the_grammar_is_refused(line: str) -> None:
    """CORE-08, F-08: duplicates, unterminated quotes, missing commas."""
    with pytest.raises(WireError):
        parse_auth_challenges(line)


def test_an_empty_line_holds_no_challenge() -> None:
    assert parse_auth_challenges("") == parse_auth_challenges(" , ,") == ()
