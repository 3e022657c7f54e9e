"""`/llms.txt` has a title, a quotation and sections, with prices by the million."""

from pathlib import Path

from mpp_session.discovery.llms import llms_text
from tests.mpp_session.discovery.describing import describe, gate


async def test_the_text_has_the_form_of_llms_txt(tmp_path: Path) -> None:
    async with gate(tmp_path) as sold:
        text = llms_text(
            describe(sold, title="A", description="B", url="https://a.example", contact="c@d.e")
        )
    lines = text.splitlines()
    assert lines[0] == "# A"
    assert lines[2] == "> B"
    sections = ["## Prices", "## Free", "## How to pay", "## Documents"]
    assert [line for line in lines if line.startswith("## ")] == sections
    assert (
        "- `POST /text`: A text; 0.40 USDC / 1M output tokens, 0.10 USDC / 1M input tokens, "
        "at least 0.000007 USDC a request" in lines
    )
    assert "(https://a.example/openapi.json)" in text
    assert "- Contact: c@d.e" in lines
