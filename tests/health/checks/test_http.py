"""HTTP checks against servers that answer well, badly, or in every wrong way."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kproxy.core.health.values import Http, Pace
from kproxy.health.checks import Outcome, probe
from kproxy.health.checks.outcome import bad, own
from tests.health.checks.places import (
    BRIEF,
    NOWHERE,
    PATIENT,
    SILENT,
    Conversation,
    answering,
    endless,
    mute,
    run,
    scratch,
    serving,
    target,
    trickling,
)

pytestmark = pytest.mark.kernel

GOOD = Outcome(True, "status 200")
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n"
ONLY_200 = ((200, 299),)


@pytest.fixture(autouse=True)
def namespace() -> Iterator[None]:
    with scratch():
        yield


def answer(status: int, *headers: str, body: bytes = b"") -> bytes:
    lines = [f"HTTP/1.1 {status} Words", *headers, f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body


def judged(of: Http, talk: Conversation, *, tls: ssl.SSLContext | None = None) -> Outcome:
    found = []

    async def work() -> None:
        async with serving(talk, tls=tls) as port:
            found.append(await probe(target(of, port)))

    run(work())
    return found[0]


@pytest.mark.parametrize(
    ("of", "raw", "expected"),
    [
        (Http(), OK, GOOD),
        (Http(body="ok"), OK, GOOD),
        (Http(body="fine"), OK, bad('body lacks "fine"')),
        (Http(), answer(204), Outcome(True, "status 204")),
        (Http(statuses=((200, 200), (404, 404))), answer(404), Outcome(True, "status 404")),
        (Http(statuses=ONLY_200), answer(503), bad("status 503, want 200-299")),
        (
            Http(statuses=((200, 200), (300, 302))),
            answer(500),
            bad("status 500, want 200 or 300-302"),
        ),
        (
            Http(statuses=ONLY_200),
            answer(302, "Location: https://elsewhere/\x1b[31m"),
            bad("status 302, redirect to https://elsewhere/\\x1b[31m"),
        ),
        (Http(), answer(301, "Location: http://192.0.2.1/"), Outcome(True, "status 301")),
        (Http(statuses=ONLY_200), answer(304), bad("status 304, want 200-299")),
        (Http(body="ok"), answer(200, "Content-Encoding: gzip", body=b"ok"), GOOD),
        (Http(), b"", bad("closed without an answer")),
        (Http(), b"HTTP/1.1 200 OK\r\nConte", bad("closed without an answer")),
        (
            Http(body="ok"),
            b"HTTP/1.1 200 OK\r\nContent-Length: 30\r\n\r\nabc",
            bad("closed before the answer was whole"),
        ),
        (Http(), b"SSH-2.0-OpenSSH\r\n", bad("no valid HTTP answer: bad status line")),
        (
            Http(),
            b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000,
            bad("no valid HTTP answer: a line or header of more than 8190 bytes"),
        ),
        (
            Http(),
            b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 10_000 + b"\r\n",
            bad("no valid HTTP answer: too many headers received"),
        ),
        (
            Http(scheme="https"),
            OK,
            bad("no TLS there"),
        ),
    ],
)
def test_answers(of: Http, raw: bytes, expected: Outcome) -> None:
    """What is sent decides, and the reason says what was wrong."""
    # A server that is spoken TLS to sees no end of a request.
    until = b"" if of.scheme == "https" else b"\r\n\r\n"
    assert judged(of, answering(raw, until=until)) == expected


def test_the_request() -> None:
    """Path with its query, Host and other headers; nobody's cookies or proxies; no keep-alive."""
    seen = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append((await reader.readuntil(b"\r\n\r\n")).decode())
        writer.write(answer(200, "Set-Cookie: a=b"))

    async def work() -> None:
        of = Http(path="/ready?x=%2F&y=1", host="shop.example", headers=(("X-Probe", "1"),))
        async with serving(talk) as port:
            for _ in range(2):
                assert await probe(target(of, port)) == GOOD

    run(work())
    first, *lines = seen[1].split("\r\n")
    assert first == "GET /ready?x=%2F&y=1 HTTP/1.1"
    assert {line.partition(":")[0].lower(): line.partition(": ")[2] for line in lines if line} == {
        "host": "shop.example",
        "x-probe": "1",
        "user-agent": "kproxy-health-check",
        "accept": "*/*",
        "accept-encoding": "identity",
        "connection": "close",
    }


def test_a_proxy_of_the_environment_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Endpoints are spoken to directly, whatever the daemon's environment says."""
    monkeypatch.setenv("http_proxy", f"http://{NOWHERE}:3128")
    assert judged(Http(), answering(OK)) == GOOD


@pytest.mark.parametrize(
    ("of", "expected"),
    [
        (Http(), GOOD),
        (Http(body="beginning"), GOOD),
        (Http(body="never"), bad('first 64 kB of body lacks "never"')),
    ],
)
def test_an_endless_body_is_cut_off(of: Http, expected: Outcome) -> None:
    """Only the beginning is read; the server's writing fails soon after, which ends its task."""
    ended = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await endless(b"HTTP/1.1 200 OK\r\n\r\nthe beginning")(reader, writer)
        finally:
            ended.set()

    async def work() -> None:
        async with serving(talk) as port:
            assert await probe(target(of, port)) == expected
            await ended.wait()

    run(work())


@pytest.mark.parametrize(
    ("of", "talk", "reason"),
    [
        (Http(), mute, "no answer in 1s"),
        (Http(), trickling(OK), "no answer in 1s"),
        (Http(scheme="https"), mute, "no TLS connection in 1s"),
        (
            Http(body="q"),
            answering(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n" + b"x" * 9, until=b""),
            None,
        ),
    ],
    ids=["mute", "trickle", "mute-tls", "half"],
)
def test_out_of_time(of: Http, talk: Conversation, reason: str | None) -> None:
    """The time-out is for all of it, and the reason says how far it came."""

    async def holding(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await talk(reader, writer)
        await mute(reader, writer)

    async def work() -> None:
        async with serving(holding) as port:
            # Long enough to come that far on a busy machine.
            found = await probe(target(of, port, pace=Pace(timeout=1.0)))
            assert found == bad(reason or "no whole answer in 1s")

    run(work())


@pytest.mark.parametrize(
    ("ip", "pace", "expected"),
    [
        ("127.0.0.1", PATIENT, bad("connection refused")),
        ("::1", PATIENT, bad("connection refused")),
        (SILENT, BRIEF, bad("no connection in 0.2s")),
        (NOWHERE, PATIENT, own("this node has no route there")),
    ],
)
def test_no_connection(ip: str, pace: object, expected: Outcome) -> None:
    """As TCP checks say it."""

    async def work() -> None:
        assert await probe(target(Http(), 9, ip, pace)) == expected  # type: ignore[arg-type]

    run(work())


def test_it_leaves_no_time_wait() -> None:
    """Connections end by a reset, who ever closes first."""

    async def work() -> None:
        async with serving(answering(OK)) as port:
            for _ in range(5):
                assert await probe(target(Http(), port)) == GOOD
            states = [
                row.split()[3]
                for row in Path("/proc/thread-self/net/tcp").read_text().splitlines()[1:]
            ]
            assert "06" not in states

    run(work())


# --- certificates ---------------------------------------------------------------------------------

NAMES = "subjectAltName=DNS:shop.example,IP:127.0.0.1"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, and what it signed: good.pem, expired.pem (certificate and key)."""
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=ca",
            "-days", "3650")  # fmt: skip
    (folder / "names").write_text(NAMES)
    (folder / "index").write_text("")
    (folder / "ca.conf").write_text(
        "[ca]\ndefault_ca=a\n[a]\ndatabase=index\nnew_certs_dir=.\nrand_serial=yes\n"
        "default_md=sha256\npolicy=p\nunique_subject=no\n[p]\ncommonName=supplied\n"
    )
    for name, start, end in (
        ("good", "20200101000000Z", "20991231000000Z"),
        ("expired", "20200101000000Z", "20200201000000Z"),
        ("early", "20990101000000Z", "20991231000000Z"),
    ):
        openssl(
            "req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}"
        )
        openssl("ca", "-batch", "-notext", "-config", "ca.conf", "-cert", "ca.pem", "-keyfile",
                "ca.key", "-in", f"{name}.csr", "-out", f"{name}.crt", "-startdate", start,
                "-enddate", end, "-extfile", "names")  # fmt: skip
        both = (folder / f"{name}.crt").read_text() + (folder / f"{name}.key").read_text()
        (folder / f"{name}.pem").write_text(both)
    return folder


@pytest.mark.parametrize(
    ("name", "host", "trusted", "verify", "expected"),
    [
        ("good", "shop.example", True, True, GOOD),
        ("good", "", True, True, GOOD),
        (
            "good",
            "other.example",
            True,
            True,
            bad("certificate is not valid for 'other.example'"),
        ),
        ("good", "", False, True, bad("unable to get local issuer certificate")),
        ("expired", "", True, True, bad("certificate has expired")),
        ("early", "", True, True, bad("certificate is not yet valid")),
        ("expired", "other.example", False, False, GOOD),
    ],
)
def test_certificates(
    certificates: Path, name: str, host: str, trusted: bool, verify: bool, expected: Outcome
) -> None:
    """Verified against what the check trusts and the name it asks for, or not at all."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / f"{name}.pem")
    ca = (certificates / "ca.pem").read_text() if trusted else ""
    of = Http(scheme="https", host=host, verify=verify, ca=ca)
    assert judged(of, answering(OK), tls=context) == expected


def test_a_self_signed_certificate(certificates: Path) -> None:
    """It vouches for itself alone."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "ca.pem", certificates / "ca.key")
    of = Http(scheme="https")
    assert judged(of, answering(OK), tls=context) == bad("self-signed certificate")


def test_the_name_goes_into_the_greeting(certificates: Path) -> None:
    """The Host header is the name that TLS asks for, too, without its port; an address is not
    sent."""
    names: list[str | None] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "good.pem")
    context.sni_callback = lambda its, name, old: names.append(name)
    for host in ("shop.example", "shop.example:8443", "", "[::1]:80"):
        judged(Http(scheme="https", host=host, verify=False), answering(OK), tls=context)
    assert names == ["shop.example", "shop.example", None, None]


def test_a_ca_that_is_none() -> None:
    """The check is wrong, not the endpoint."""
    of = Http(scheme="https", ca="no certificate")
    assert judged(of, mute) == own("the check's ca holds no certificate in PEM")


INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"


def test_interim_answers_before_the_final_one() -> None:
    """They are read over."""
    assert judged(Http(body="ok"), answering(INTERIM * 2000 + OK)) == GOOD


@pytest.mark.parametrize("secure", [False, True])
def test_endless_interim_answers_are_cut_off(certificates: Path, secure: bool) -> None:
    """At a number of bytes, not at the time-out: reading them keeps other checks waiting."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "good.pem")
    ended = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        try:
            while True:
                writer.write(INTERIM * 1000)
                await writer.drain()
        finally:
            ended.set()

    async def work() -> None:
        async with serving(talk, tls=context if secure else None) as port:
            of = Http(scheme="https", verify=False) if secure else Http()
            assert await probe(target(of, port)) == bad("no final status in 64 kB")
            await ended.wait()

    run(work())
