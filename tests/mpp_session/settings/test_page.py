"""The page on configuration is what the program takes, no more and no less."""

import tomllib
from pathlib import Path

from mpp_session.settings.config import list_settings, load_config
from mpp_session.settings.page import EXAMPLE, render_settings

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "configuration.md"


def test_the_page_is_current() -> None:
    """Written by `python -m mpp_session.settings.page > docs/reference/configuration.md`."""
    assert PAGE.read_text() == render_settings()


def test_every_setting_and_its_variable_are_on_the_page() -> None:
    page = render_settings()
    for setting in list_settings().values():
        assert f"`{setting.environment_name}`" in page
        assert setting.description in " ".join(page.split())


def test_the_pages_example_is_a_gateway(tmp_path: Path) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text(EXAMPLE)
    config = load_config(path, environment={"MPP_SESSION_PAYMENT_SECRETS": "s" * 32})
    assert config.chain.id == tomllib.loads(EXAMPLE)["chain"]["id"]
