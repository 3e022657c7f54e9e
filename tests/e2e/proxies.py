"""The proxies of docs/deploy, with the very files, in front of a server of a test."""

import asyncio
import contextlib
import os
import re
import signal
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

from tests.e2e.gateways import free_port
from tests.programs import require_program
from tests.waiting import PATIENCE_S

__all__ = ["DEPLOY", "PROXIES", "Proxy", "run_proxy"]

DEPLOY = Path(__file__).parents[2] / "docs" / "deploy"

_NGINX_CONF = """
daemon off;
pid {folder}/pid;
error_log stderr info;
events {{ worker_connections 512; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/site.conf;
}}
"""
_CADDY_OPTIONS = """
{{
	admin off
	auto_https disable_redirects
	skip_install_trust
	local_certs
	storage file_system {folder}/storage
	http_port {port}
}}
"""


class Proxy(NamedTuple):
    """Where a running proxy answers, and what a client trusts it by."""

    url: str
    verify: ssl.SSLContext
    root: Path


def _changed(text: str, changes: dict[str, str]) -> str:
    for old, new in changes.items():
        assert old in text, f"the file of docs/deploy no longer says {old!r}"
        text = text.replace(old, new)
    return text


async def _nginx(
    folder: Path, port: int, server: str, faults: dict[str, str]
) -> tuple[list[str], Path]:
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    await _make_certificate(certificate, key)
    site = _changed(
        (DEPLOY / "nginx.conf").read_text(),
        {
            "server 127.0.0.1:8402;": f"server {server};",
            "listen 443 ssl": f"listen 127.0.0.1:{port} ssl",
            "server_name api.example.com;": "server_name localhost;",
            "/etc/ssl/api.example.com.pem": str(certificate),
            "/etc/ssl/private/api.example.com.key": str(key),
        },
    )
    for name, value in faults.items():
        site, count = re.subn(rf"(?m)^( *){name} .*", rf"\1{value}", site)
        assert count == 1
    (folder / "site.conf").write_text(site)
    (folder / "nginx.conf").write_text(_NGINX_CONF.format(folder=folder))
    nginx = str(require_program("nginx"))
    return [nginx, "-p", str(folder), "-e", "stderr", "-c", str(folder / "nginx.conf")], certificate


async def _caddy(folder: Path, port: int, server: str, _: dict[str, str]) -> tuple[list[str], Path]:
    site = _changed(
        (DEPLOY / "Caddyfile").read_text(),
        {"api.example.com {": f"https://localhost:{port} {{", "127.0.0.1:8402": server},
    )
    options = _CADDY_OPTIONS.format(folder=folder, port=free_port())
    (folder / "Caddyfile").write_text(options + site)
    caddy = str(require_program("caddy"))
    root = folder / "storage" / "pki" / "authorities" / "local" / "root.crt"
    return [caddy, "run", "--adapter", "caddyfile", "--config", str(folder / "Caddyfile")], root


PROXIES = {"nginx": _nginx, "caddy": _caddy}


@contextlib.asynccontextmanager
async def run_proxy(
    name: str, folder: Path, server_url: str, **faults: str
) -> AsyncIterator[Proxy]:
    """Run a proxy with its file of docs/deploy; only names, ports and certificates are changed.

    A test of a fault gives the directives that nginx has instead, by name.

    The certificate is made here, and the context trusts it alone.
    """
    await asyncio.to_thread(folder.mkdir)
    port, server = free_port(), server_url.removeprefix("http://")
    command, root = await PROXIES[name](folder, port, server, faults)
    log = folder / "log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *command, stdout=output, stderr=output, env={**os.environ, "HOME": str(folder)}
        )
    try:
        trust: ssl.SSLContext | None = None
        async with asyncio.timeout(PATIENCE_S):
            while trust is None:
                assert process.returncode is None, log.read_text()
                await asyncio.sleep(0.02)
                trust = await _connect(port, root)
        yield Proxy(f"https://localhost:{port}", trust, root)
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        await process.wait()
    assert not re.search(r"\[(emerg|alert|crit)\]|panic", log.read_text()), log.read_text()


async def _connect(port: int, root: Path) -> ssl.SSLContext | None:
    """Return what trusts the server on `port`; None if it is not ready."""
    try:
        trust = ssl.create_default_context(cafile=str(root))
        _, writer = await asyncio.open_connection("localhost", port, ssl=trust)
    except OSError:
        return None
    writer.close()
    return trust


async def _make_certificate(certificate: Path, key: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
        *("-nodes", "-days", "2", "-subj", "/CN=localhost"),
        *("-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert await process.wait() == 0
