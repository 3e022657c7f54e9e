"""Generates `docs/reference/configuration.md` from the settings.

python -m mpp_session.settings.page > docs/reference/configuration.md
"""

import inspect
import sys
from datetime import datetime
from textwrap import fill
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec

from mpp_session.settings import Config, Money, PriceRow, Secret
from mpp_session.settings.config import Setting, list_row_fields, list_settings, section_type

__all__ = ["render_settings"]

_HEAD = """\
# Settings

Write a file such as this one, then run `mpp-session gateway --config gateway.toml`:

```toml
{example}```

A gateway reads one TOML file, then the environment, then its flags; a later source overrides an
earlier one. Each section below is a table of the file. An unknown name is refused in every source.
Prices of `[price]` in quotes are in whole tokens, such as dollars. All other amounts are whole
numbers in base units of the token: 1 dollar of a 6-decimal token is 1000000.
Lists in the environment are separated by commas.

The gateway refuses to start on a setting that would lose money later, and names the setting.

*Generated from `mpp_session/settings` by `python -m mpp_session.settings.page`; do not edit.*
"""

EXAMPLE = """\
[upstream]
url = "http://127.0.0.1:8080"

[price]
input = "0.10"                     # dollars for a million tokens of the prompt
output = "0.40"                    # and of the answer

[payment]
realm = "llm.example.com"
suggested_deposit = 1000000
# secrets: from MPP_SESSION_PAYMENT_SECRETS

[chain]
rpc_url = "https://node.example.com"
id = 8453
escrow = "0x0000000000000000000000000000000000000001"
token = "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913"
confirmations = 2

[payee]
address = "0x0000000000000000000000000000000000000002"
keystore_file = "/etc/mpp-session/payee.json"
password_file = "/etc/mpp-session/payee.password"

[ledger]
url = "sqlite:////var/lib/mpp-session/ledger.db"
"""


def render_settings() -> str:
    """Return the page."""
    parts = [_HEAD.format(example=EXAMPLE)]
    settings = list_settings()
    sections = {section.name: section for section in msgspec.structs.fields(Config)}
    for section in [sections[name] for name in dict.fromkeys(s.section for s in settings.values())]:
        purpose = inspect.cleandoc(section_type(section.type).__doc__ or "")
        parts.append(f"\n## [{section.name}]\n\n{purpose}\n")
        prefix = f"{section.name}."
        parts += [_row(setting) for name, setting in settings.items() if name.startswith(prefix)]
        if section.name == "prices":
            parts.append(f"\n## [[prices]]\n\n{inspect.cleandoc(PriceRow.__doc__ or '')}\n\n")
            parts.append("The fields of `[price]`, and:\n")
            parts += [_row(field, has_variable=False) for field in list_row_fields()]
    return "".join(parts)


def _row(setting: Setting, *, has_variable: bool = True) -> str:
    name = setting.name.partition(".")[2]
    default = "required" if setting.is_required else f"default {_literal(setting.default)}"
    variable = f"; `{setting.environment_name}`" if has_variable else ""
    return (
        f"\n### `{name}`\n\n{_type_name(setting.type)}, {default}{variable}\n\n"
        f"{fill(setting.description, 100)}\n"
    )


def _literal(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, dict):
        return "`{}`"
    if isinstance(value, tuple):
        return "`[" + ", ".join(f'"{part}"' for part in value) + "]`"
    return f'`"{value}"`' if isinstance(value, str) else f"`{value}`"


def _type_name(hint: Any) -> str:
    """Return the name of a type for readers of TOML, with its bounds."""
    if get_origin(hint) is Annotated:
        bare, *extras = get_args(hint)
        return _type_name(bare) + "".join(map(_bounds, extras))
    if get_origin(hint) in {Union, UnionType}:
        return _type_name(next(part for part in get_args(hint) if part is not NoneType))
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(f'`"{choice}"`' for choice in get_args(hint))
    if get_origin(hint) is tuple and get_origin(get_args(hint)[0]) is Literal:
        return "list of " + ", ".join(f'`"{choice}"`' for choice in get_args(get_args(hint)[0]))
    if get_origin(hint) is tuple:
        return "list of " + _type_name(get_args(hint)[0]) + "s"
    names = {
        dict: "table",
        str: "text",
        Secret: "text",
        Money: "amount in quotes",
        int: "whole number",
        float: "number",
        bool: "true or false",
        datetime: "time",
    }
    return names[get_origin(hint) or hint]


def _bounds(meta: msgspec.Meta) -> str:
    parts = []
    if meta.ge is not None:
        parts.append(f"from {meta.ge}")
    if meta.gt is not None:
        parts.append(f"above {meta.gt}")
    if meta.le is not None:
        parts.append(f"up to {meta.le}")
    return " " + " ".join(parts) if parts else ""


if __name__ == "__main__":
    sys.stdout.write(render_settings())
