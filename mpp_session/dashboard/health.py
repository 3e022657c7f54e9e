"""Turns a provider's status into what the overview shows of its health (pure)."""

from typing import Final

from mpp_session.dashboard.pages.overview import Health
from mpp_session.dashboard.show import ago, count
from mpp_session.operator.doctor import Check, Verdict
from mpp_session.operator.status import Level, Status

__all__ = ["judge_health", "judge_model"]

_KINDS: Final = {Level.FINE: "good", Level.WARNING: "warn", Level.CRITICAL: "bad"}
_TOWERS: Final = {
    Verdict.OK: ("supplied", "good"),
    Verdict.SKIPPED: ("none", ""),
    Verdict.ADVICE: ("none", "warn"),
    Verdict.FAULT: ("behind", "bad"),
}
_OLD_LOOK_S: Final = 120


def judge_model(fault: str | None) -> Health:
    """Return the health of a model server from why it does not answer; None if it does."""
    if fault is None:
        return Health(name="Model server", state="answers", kind="good")
    return Health(name="Model server", state="away", kind="bad", detail=fault)


def judge_health(
    status: Status | str, model: Health | None, tower: Check
) -> tuple[tuple[tuple[str, str], ...], tuple[Health, ...]]:
    """Return the findings, by kind and text, and the parts that must work.

    `status` is a text where it could not be read; `model` is the model server's, if there is one;
    `tower` is what the doctor finds of the watchtower.
    """
    models = () if model is None else (model,)
    if isinstance(status, str):
        database = Health(name="Database", state="away", kind="bad", detail=status)
        return (("bad", status),), (database, *models)
    findings = tuple((_KINDS[each.level], each.text) for each in status.findings)
    database = Health(name="Database", state="answers", kind="good")
    return findings, (
        _settler(status),
        _chain(status),
        database,
        *models,
        _tower(tower),
    )


def _settler(status: Status) -> Health:
    holder, look = status.journal.holder, status.journal.look
    if holder is None:
        return Health(
            name="Settler",
            state="absent",
            kind="bad" if status.books.at_risk else "warn",
            detail="nothing is settled or closed until one runs",
        )
    pending = count(len(status.journal.pending), "transaction") + " under way"
    if look is None:
        return Health(name="Settler", state="running", kind="good", detail=pending)
    age_s = status.asked_at - look.looked_at
    is_old = age_s > _OLD_LOOK_S
    return Health(
        name="Settler",
        state="blind" if is_old else "running",
        kind="warn" if is_old else "good",
        detail=f"looked at block {look.block_number:,} {ago(age_s)}, {pending}",
    )


def _chain(status: Status) -> Health:
    chain = status.chain
    if chain is None:
        return Health(name="Chain", state="away", kind="bad", detail="no node answers")
    answering = sum(node.head is not None for node in chain.nodes)
    is_whole = answering == len(chain.nodes)
    return Health(
        name="Chain",
        state="answers" if is_whole else "partly",
        kind="good" if is_whole else "warn",
        detail=f"chain {chain.chain_id}, block {chain.head.number:,}, "
        f"{answering} of {count(len(chain.nodes), 'node')}",
    )


def _tower(found: Check) -> Health:
    state, kind = _TOWERS[found.verdict]
    detail = ": ".join(filter(None, (found.found, found.remedy)))
    return Health(name="Watchtower", state=state, kind=kind, detail=detail)
