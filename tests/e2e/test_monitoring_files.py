"""The alert rules and the dashboard of docs/monitoring hold against a gateway as it is."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest

from settlement.dev.devnet import Devnet
from tests.e2e.customers import Customer
from tests.e2e.test_operator_port import build
from tests.mpp_session.model_server import model_server
from tests.programs import require_program
from tests.waiting import PATIENCE_S, until

pytestmark = pytest.mark.timeout(180)

ROOT = Path(__file__).parents[2]
ALERTS = ROOT / "docs" / "monitoring" / "alerts.yml"
DASHBOARD = ROOT / "docs" / "monitoring" / "grafana.json"
PAGE = ROOT / "docs" / "guide" / "monitoring.md"
UNIT_TESTS = ROOT / "tests" / "mpp_session" / "observe" / "alerts_test.yml"
METRIC = re.compile(r"\b(?:mpp_session|gen_ai)_[a-z0-9_]+\b")
LABELS = {
    "gen_ai_operation_name",
    "gen_ai_request_model",
    "gen_ai_token_type",
    "mpp_session_bucket",
}
ENDS = {"counter": ("",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count", "")}


def queries() -> list[str]:
    """Return every query of the dashboard."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel.get("targets", ())]


def promtool(folder: Path, *arguments: str, text: str | None = None) -> str:
    done = subprocess.run(  # noqa: S603 -- ours
        [require_program("promtool"), *arguments],
        cwd=folder,
        input=text,
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return said


def test_each_alert_rings_at_what_it_is_for(tmp_path: Path) -> None:
    for path in (ALERTS, UNIT_TESTS):
        shutil.copy(path, tmp_path)
    assert "SUCCESS" in promtool(tmp_path, "check", "rules", "alerts.yml")
    assert "SUCCESS" in promtool(tmp_path, "test", "rules", UNIT_TESTS.name)
    tested = UNIT_TESTS.read_text()
    assert [name for name in alert_names() if f"alertname: {name}" not in tested] == []


def test_each_query_of_the_dashboard_is_one(tmp_path: Path) -> None:
    """As rules that record: Prometheus has no other way to check a query."""
    rules = [
        {"record": f"query:{number}", "expr": re.sub(r"\$__(rate_interval|range)", "5m", query)}
        for number, query in enumerate(queries())
    ]
    assert len(rules) > 30
    groups = {"groups": [{"name": "dashboard", "rules": rules}]}
    (tmp_path / "queries.yml").write_text(json.dumps(groups))  # JSON is YAML
    promtool(tmp_path, "check", "rules", "queries.yml")


def alert_names() -> list[str]:
    return re.findall(r"- alert: (\w+)", ALERTS.read_text())


def test_the_guide_says_what_each_alert_means() -> None:
    page = PAGE.read_text()
    assert [name for name in alert_names() if f"| `{name}` |" not in page] == []


async def test_each_metric_that_they_name_is_in_a_real_scrape(
    chain: Devnet, tmp_path: Path
) -> None:
    """And in the guide; the scrape holds to the conventions of Prometheus."""
    async with (
        httpx.AsyncClient(timeout=PATIENCE_S, trust_env=False) as client,
        model_server() as (model),
    ):
        seen = build(Customer(chain, client), model, tmp_path, EXPOSURE_TOTAL_MAX="100000000")
        async with seen.gateway.running():
            for name in ("value_at_risk_base_units", "settler_look_age_seconds", "gas_balance_wei"):

                async def is_known(name: str = name) -> bool:
                    return await seen.value(name) is not None

                await until(is_known)
            text = (await client.get(f"{seen.admin_url}/metrics")).text
    types = re.findall(r"^# TYPE (\S+) (counter|gauge|histogram)$", text, re.MULTILINE)
    known = {name + end for name, kind in types for end in ENDS[kind]}
    named = {
        where: set(METRIC.findall(written)) - LABELS
        for where, written in (
            ("alerts", ALERTS.read_text()),
            ("dashboard", "\n".join(queries())),
            ("guide", PAGE.read_text()),
        )
    }
    unknown = {where: sorted(names - known) for where, names in named.items()}
    assert unknown == {"alerts": [], "dashboard": [], "guide": []}
    families = {name for name, _ in types if not name.endswith("_created")}
    assert sorted(families - named["guide"] - {"mpp_session_token_info"}) == []
    promtool(tmp_path, "check", "metrics", text=text)
