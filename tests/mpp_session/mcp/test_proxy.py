"""A host that knows nothing of payments gets what a paid server has, through the bridge."""

from pathlib import Path

import pytest
from mcp import Client, MCPError, StdioServerParameters
from mcp_types import PromptReference, ResourceTemplateReference, TextResourceContents

from mpp_session.errors import CommandError
from mpp_session.mcp.proxy import build_proxy, connect, server_of
from tests.mpp_session.mcp.foreign import Stranger, open_tools
from tests.mpp_session.mcp.shop import text


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_a_host_sees_the_server_and_no_payment(tmp_path: Path, mode: str) -> None:
    stranger = Stranger()
    async with (
        open_tools(stranger, tmp_path) as tools,
        Client(build_proxy(tools), mode=mode) as host,
    ):
        assert [tool.name for tool in (await host.list_tools()).tools] == ["search"]
        assert text(await host.call_tool("search", {"query": "why"})) == "because"
        assert (await host.list_resources()).resources == []
        (template,) = (await host.list_resource_templates()).resource_templates
        assert template.uri_template == "data://free/{name}"
        (content,) = (await host.read_resource("data://free/a")).contents
        assert isinstance(content, TextResourceContents)
        assert content.text == "page a"
        (prompt,) = (await host.list_prompts()).prompts
        assert (await host.get_prompt(prompt.name, {"about": "low"})).messages
        reference = ResourceTemplateReference(uri=template.uri_template)
        for ref in (reference, PromptReference(name=prompt.name)):
            completed = await host.complete(ref, {"name": "name", "value": "b"})
            assert completed.completion.values == ["bonds"]
        (record,) = await tools.payments.channels()
        assert record.spent == 10


async def test_a_refusal_to_pay_is_a_tools_error_in_words(tmp_path: Path) -> None:
    """The model can tell its user, and nothing was signed."""
    stranger = Stranger()
    stranger.provider.offer = {"unit_price": 51}
    async with open_tools(stranger, tmp_path) as tools, Client(build_proxy(tools)) as host:
        refused = await host.call_tool("search", {"query": "why"})
        assert refused.is_error
        assert text(refused).startswith("Not paid for: ")
        assert "51" in text(refused)
        stranger.sells = "resources/read"
        with pytest.raises(MCPError, match=r"Not paid for: .*51"):
            await host.read_resource("data://free/a")
    assert stranger.chain.deposited == []


async def test_an_error_of_the_server_stays_its_own(tmp_path: Path) -> None:
    stranger = Stranger()
    stranger.fails = MCPError(-32077, "the tool broke")
    async with open_tools(stranger, tmp_path) as tools, Client(build_proxy(tools)) as host:
        with pytest.raises(MCPError, match="the tool broke") as raised:
            await host.call_tool("search", {"query": "why"})
        assert raised.value.code == -32077


def test_a_server_is_a_url_or_a_command() -> None:
    assert server_of(["https://a.example/mcp"]) == "https://a.example/mcp"
    command = server_of(["npx", "server", "--flag"])
    assert isinstance(command, StdioServerParameters)
    assert (command.command, command.args) == ("npx", ["server", "--flag"])
    with pytest.raises(CommandError, match="name a server"):
        server_of([])


@pytest.mark.parametrize("words", [["http://127.0.0.1:9/mcp"], ["no-such-command"]])
async def test_a_server_that_cannot_be_reached_is_named(words: list[str]) -> None:
    with pytest.raises(CommandError, match=words[0]):
        async with connect(server_of(words)):
            pytest.fail("connected")
