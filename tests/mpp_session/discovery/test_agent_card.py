"""The agent card of A2A."""

from pathlib import Path

from mpp_session.discovery.agent_card import PAYMENT_EXTENSION, agent_card
from tests.mpp_session.discovery.describing import describe, gate

URL = "https://llm.example.com"


async def test_the_card_has_what_a2a_requires(tmp_path: Path) -> None:
    """Version 1.0 of the protocol, message `AgentCard`."""
    async with gate(tmp_path) as sold:
        card = agent_card(describe(sold, url=URL))
    assert {
        "name",
        "description",
        "version",
        "supportedInterfaces",
        "capabilities",
        "defaultInputModes",
        "defaultOutputModes",
        "skills",
    } <= {*card}
    (interface,) = card["supportedInterfaces"]
    assert {*interface} == {"url", "protocolBinding", "protocolVersion"}
    assert interface["url"] == URL
    ids = [one["id"] for one in card["skills"]]
    assert len(set(ids)) == len(ids) == 3
    for skill in card["skills"]:
        assert skill["name"]
        assert skill["description"]
        assert skill["tags"]


async def test_the_card_promises_no_binding_that_is_not_spoken(tmp_path: Path) -> None:
    """The service speaks HTTP with payments, not A2A's own bindings, and no x402 by itself."""
    async with gate(tmp_path) as sold:
        card = agent_card(describe(sold, url=URL))
    (interface,) = card["supportedInterfaces"]
    assert interface["protocolBinding"] not in {"JSONRPC", "GRPC", "HTTP+JSON"}
    (extension,) = card["capabilities"]["extensions"]
    assert extension["uri"] == PAYMENT_EXTENSION
    assert extension["required"] is True
    assert {*extension["params"]["offers"]} == {one["id"] for one in card["skills"]}
