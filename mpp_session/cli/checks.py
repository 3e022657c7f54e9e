"""Shows checks: one line each, and the remedy of each fault below it."""

from typing import TYPE_CHECKING, Final

from mpp_session.cli.output import count, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mpp_session.operator.doctor import Check

__all__ = ["conclude", "show_checks"]

_STYLES: Final = {"ok": "green", "advice": "yellow", "fault": "bold red", "skipped": "dim"}


def show_checks(checks: "Sequence[Check]", *, as_json: bool) -> None:
    """Show checks as they end; not for programs, which get one document."""
    if as_json:
        return
    for check in checks:
        style = _STYLES[check.verdict]
        say(f"{check.verdict:<8}{check.name}: {check.found}", style=style)
        if check.remedy:
            say(f"        > {check.remedy}")


def conclude(checks: "Sequence[Check]") -> None:
    """Say how many faults there are."""
    from mpp_session.operator.doctor import Verdict

    faults = sum(check.verdict is Verdict.FAULT for check in checks)
    say(
        count(faults, "fault") if faults else "no faults",
        style=_STYLES["fault" if faults else "ok"],
    )
