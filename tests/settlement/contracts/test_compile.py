"""The committed artifacts are what the sources give, byte for byte."""

import runpy
from pathlib import Path

import pytest

import solidity

SCRIPT = Path(solidity.__file__).with_name("compile")


@pytest.mark.timeout(300)
def test_artifacts_are_what_the_sources_compile_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recompiles contracts/src and contracts/dev from nothing, and compares whole files."""
    monkeypatch.setattr(solidity, "CACHE", tmp_path)
    script = runpy.run_path(str(SCRIPT))
    outputs = solidity.compile_contracts(script["SOURCES"].values())
    for name in script["SOURCES"]:
        committed = (script["ARTIFACTS"] / f"{name}.json").read_text(encoding="utf-8")
        assert committed == script["render"](name, outputs[name]), f"{name}: run scripts/compile"
