"""The annotation kproxy/health-check: every form of it, and every fault by its field."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy.core.decode import decode_objects
from kproxy.core.decode.health_check import MAX_BYTES, read_text
from kproxy.core.health.values import (
    Check,
    Exec,
    Grpc,
    Http,
    Pace,
    Passive,
    Policy,
    Tcp,
    Udp,
)

CERTIFICATE = """-----BEGIN CERTIFICATE-----
MIIBcDCCARWgAwIBAgIUEQRYGtR+3g2va80UpZOUtS9MTp0wCgYIKoZIzj0EAwIw
DDEKMAgGA1UEAwwBYTAgFw0yNjExMjExMjQ1MDNaGA8yMTI2MTAyODEyNDUwM1ow
DDEKMAgGA1UEAwwBYTBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABIYnKMnVcHiQ
dVdGefEKtn1oQJu1llweECV6F1V+up9/SRtlwfHNzJCXmD9zbtP0pQig8OSREIKw
HzNfh9FbYKqjUzBRMB0GA1UdDgQWBBTxHLkn+ZwWkEmFmg/hq+QdV9vVqzAfBgNV
HSMEGDAWgBTxHLkn+ZwWkEmFmg/hq+QdV9vVqzAPBgNVHRMBAf8EBTADAQH/MAoG
CCqGSM49BAMCA0kAMEYCIQD4BsbtLKy6+EetmCD2B5xXUuLlF5r21JF6p/Vy1M3I
BwIhAMZQvuL3I0FlmqVzOZkJMu10eAmaZpaivwpYrXMexJEt
-----END CERTIFICATE-----
"""


def manifest(annotation, **meta):
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": "svc1",
            "namespace": "ns1",
            "annotations": {"kproxy/health-check": annotation, "kproxy/other": "x"},
            **meta,
        },
        "spec": {"clusterIP": "172.30.0.41", "ports": [{"port": 80}]},
    }


def active(probe, **pace):
    return Policy(Check(probe, Pace(**pace)), Passive())


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("none", Policy()),
        ("tcp", active(Tcp())),
        ("http", active(Http())),
        ("https", active(Http(scheme="https"))),
        ("grpc", active(Grpc())),
        ("{tcp: {}}", active(Tcp())),
        ("tcp:", active(Tcp())),
        ('{"tcp": {"port": 8080}}', active(Tcp(port=8080))),
        ("http: {path: /healthz?full=1}", active(Http(path="/healthz?full=1"))),
        (
            "http: {host: example.org, headers: {X-A: b}, body: fine}",
            active(Http(host="example.org", headers=(("X-A", "b"),), body="fine")),
        ),
        ("http: {host: 'a_b.example:8080'}", active(Http(host="a_b.example:8080"))),
        ("http: {host: '[fd00::1]:80'}", active(Http(host="[fd00::1]:80"))),
        ("http: {host: 'fd00::1'}", active(Http(host="fd00::1"))),
        ("http: {status: 204}", active(Http(statuses=((204, 204),)))),
        (
            "http: {status: [200-299, 401]}",
            active(Http(statuses=((200, 299), (401, 401)))),
        ),
        ("https: {verify: false}", active(Http(scheme="https", verify=False))),
        (
            "https:\n  ca: |\n    " + CERTIFICATE.replace("\n", "\n    "),
            active(Http(scheme="https", ca=CERTIFICATE)),
        ),
        ("udp: {send: ping, expect: pong}", active(Udp(send=b"ping", expect=b"pong"))),
        ("udp: {sendHex: 00ff, expectHex: '01'}", active(Udp(send=b"\0\xff", expect=b"\1"))),
        ("grpc: {service: a.B, port: 90}", active(Grpc(port=90, service="a.B"))),
        ("exec: {command: [test, -e, /x]}", active(Exec(command=("test", "-e", "/x")))),
        (
            "{tcp: {}, interval: 10s, timeout: 500ms, rise: 1, fall: 5}",
            active(Tcp(), interval=10.0, timeout=0.5, rise=1, fall=5, fast_interval=2.5),
        ),
        (
            "{tcp: {}, jitter: 0%, fastInterval: 1s, initial: down}",
            active(Tcp(), jitter=0.0, fast_interval=1.0, initial=False),
        ),
        (
            "{tcp: {}, slowStart: 30s, panic: 50%}",
            Policy(Check(Tcp()), Passive(), panic=0.5, slow_start=30.0),
        ),
        ("{tcp: {}, interval: 100ms}", active(Tcp(), interval=0.1, fast_interval=0.05)),
        ("{tcp: {}, passive: false}", Policy(Check(Tcp()))),
        ("{tcp: {}, passive: null, interval: null}", active(Tcp())),
        ("passive: true", Policy(None, Passive())),
        (
            "passive: {failures: 1, base: 1s, max: 9s, share: 100%}",
            Policy(None, Passive(1, 1.0, 9.0, 1.0)),
        ),
        ("passive: {base: 10m}", Policy(None, Passive(base=600.0, most=600.0))),
    ],
)
def test_what_may_be_asked_for(text, policy):
    """Every field of every form, in YAML or JSON, with its defaults."""
    assert read_text(text) == (policy, ())


@pytest.mark.parametrize(
    ("text", "field", "told"),
    [
        ("", "", "is empty"),
        ("udp", "", "must be none, tcp, http, https, grpc or a map"),
        ("whatever", "", "must be none"),
        ("{}", "", "must be none"),
        ("[tcp]", "", "must be none"),
        ("7", "", "must be none"),
        ("passive: false", "", "asks for nothing"),
        ("panic: 50%", "", "asks for nothing"),
        ("interval: 2s", "interval", "no check to pace"),
        ("{tcp: {}, http: {}}", "http", "second check beside tcp"),
        ("tcp: 80", "tcp", "must be a map"),
        ("tcp: {port: 0}", "tcp.port", "1 to 65535"),
        ("tcp: {port: http}", "tcp.port", "1 to 65535"),
        ("tcp: {path: /}", "tcp.path", "is unknown; use port"),
        ("{tcp: {}, Interval: 2s}", "Interval", "did you mean interval?"),
        ("{tcp: {}, fastinterval: 2s}", "fastinterval", "did you mean fastInterval?"),
        ("http: {path: healthz}", "http.path", "must begin with /"),
        ('http: {path: "/a b"}', "http.path", "no spaces"),
        ('http: {path: "/a\\r\\nX: y"}', "http.path", "control characters"),
        ('http: {host: "a\\nb"}', "http.host", "control characters"),
        ("http: {host: a/b}", "http.host", "no host name"),
        ("https: {host: a..b}", "https.host", "no host name"),
        (f"https: {{host: {'a' * 64}.org}}", "https.host", "no host name"),
        ("https: {host: '[['}", "https.host", "no host name"),
        ("http: {headers: [a]}", "http.headers", "map of names"),
        ('http: {headers: {"a b": c}}', "http.headers", "no name of a header"),
        ('http: {headers: {a: "b\\r\\nc: d"}}', "http.headers", "control characters"),
        ("http: {headers: {a: 1}}", "http.headers", "in quotes"),
        ("http: {headers: {a: ü}}", "http.headers", "ASCII"),
        ("http: {headers: {Host: b}}", "http.headers", "use host"),
        ("http: {headers: {Content-Length: '9'}}", "http.headers", "by the check itself"),
        ("http: {status: 99}", "http.status", "no status"),
        ("http: {status: 299-200}", "http.status", "no status"),
        ("http: {status: []}", "http.status", "no status"),
        ("http: {status: true}", "http.status", "no status"),
        ("http: {verify: false}", "http.verify", "is unknown"),
        ("https: {verify: maybe}", "https.verify", "true or false"),
        ("https: {ca: /etc/ca.pem}", "https.ca", "PEM"),
        ("https: {ca: '-----BEGIN CERTIFICATE-----'}", "https.ca", "PEM"),
        (
            "https: {ca: '-----BEGIN CERTIFICATE-----\n\nMAo=\n\n-----END CERTIFICATE-----'}",
            "https.ca",
            "PEM",
        ),
        ("udp: {expect: x}", "udp.send", "is missing"),
        ("udp: {send: a, sendHex: 'b0'}", "udp.sendHex", "keep one"),
        ("udp: {sendHex: xyz}", "udp.sendHex", "hexadecimal"),
        ("exec: {}", "exec.command", "is missing"),
        ("exec: {command: rm}", "exec.command", "list of texts"),
        ("exec: {command: []}", "exec.command", "list of texts"),
        ("exec: {command: ['']}", "exec.command", "is empty"),
        ("{tcp: {}, interval: 2}", "interval", "write it like 2s"),
        ("{tcp: {}, interval: soon}", "interval", "no duration"),
        ("{tcp: {}, interval: 1ms}", "interval", "must be from 100ms"),
        ("{tcp: {}, timeout: 1h}", "timeout", "to 5m0s"),
        ("{tcp: {}, rise: 0}", "rise", "from 1 to 100"),
        ("{tcp: {}, fall: true}", "fall", "from 1 to 100"),
        ("{tcp: {}, jitter: 60%}", "jitter", "at most 50%"),
        ("{tcp: {}, jitter: 0.1}", "jitter", "write it like 50%"),
        ("{tcp: {}, fastInterval: 3s}", "fastInterval", "must not exceed interval"),
        ("{tcp: {}, initial: true}", "initial", "up or down"),
        ("{tcp: {}, panic: -1%}", "panic", "write it like 50%"),
        ("{tcp: {}, slowStart: 2h}", "slowStart", "to 1h0m0s"),
        ("passive: 3", "passive", "true, false or a map"),
        ("passive: {failures: 0}", "passive.failures", "from 1"),
        ("passive: {share: 0%}", "passive.share", "more than 0%"),
        ("passive: {base: 9s, max: 5s}", "passive.max", "less than base"),
        ("passive: {times: 2}", "passive.times", "is unknown"),
        ("{tcp: {}", "", "neither YAML nor JSON"),
        ("tcp: {}\ntcp: {}", "", "twice"),
        ("a: &x {}\nb: *x", "", "alias"),
        ("{[a]: b}", "", "key that is no text"),
        ("a: !!python/name:os.system x", "", "neither YAML nor JSON"),
        ("tcp: {port: 2001-13-45}", "", "cannot be read"),
        ("tcp: {port: !!bool zz}", "", "cannot be read"),
        ("tcp: {port: !!int ''}", "", "cannot be read"),
        ("tcp: {port: !!timestamp zz}", "", "cannot be read"),
        ("\ud800", "", "cannot be read"),
        ("[" * 4000, "", "nested too deeply"),
        ("-  " * 1300, "", "nested too deeply"),
        ("{a: " * 500 + "1" + "}" * 500, "", "nested too deeply"),
        ("x" * (MAX_BYTES + 1), "", "larger than"),
        ("ü" * (MAX_BYTES // 2 + 1), "", "larger than"),
    ],
)
def test_faults_are_named(text, field, told):
    """Each fault by its field, with what may stand there; nothing is asked for then."""
    policy, faults = read_text(text)
    assert policy == Policy()
    assert [name for name, _ in faults] == [field]
    assert told in faults[0][1]


def test_all_faults_come_at_once():
    """Three faults in three places."""
    _, faults = read_text("{http: {path: x, status: 1}, interval: 0s}")
    assert [field for field, _ in faults] == ["http.path", "http.status", "interval"]


def test_a_service_has_its_policy():
    """The annotation becomes the policy and stands in no plan; other annotations stay."""
    (service,), refusals = decode_objects([manifest("tcp")])
    assert service.health == active(Tcp())
    assert service.annotations == (("kproxy/other", "x"),)
    assert refusals == []


@pytest.mark.parametrize(
    ("annotations", "health"),
    [(None, None), ({}, None), ({"kproxy/health-check": "none"}, Policy())],
)
def test_saying_nothing_is_not_saying_none(annotations, health):
    """Without the annotation the configuration's default may hold; ``none`` keeps it away."""
    (service,), _ = decode_objects([manifest("", annotations=annotations)])
    assert service.health == health


@pytest.mark.parametrize(
    ("annotation", "field"),
    [("nine", ""), (None, ""), ("{tcp: {port: 0}}", ".tcp.port")],
)
def test_a_broken_one_costs_the_checks_only(annotation, field):
    """The service is served unchecked, and a refusal names the field."""
    (service,), (refusal,) = decode_objects([manifest(annotation)])
    assert service.health == Policy()
    assert service.ports
    assert refusal.field == f"metadata.annotations.kproxy/health-check{field}"
    assert not refusal.whole
    assert refusal.message.endswith("it is served unchecked")


@given(st.text(max_size=200) | st.text("{}[]:,-&*!?|>'\"# \n\tatcp0", max_size=200))
def test_any_text_is_read(text):
    """Whatever stands there is a policy or named faults, never an exception."""
    policy, faults = read_text(text)
    assert not faults or policy == Policy()


@pytest.mark.parametrize(
    ("annotation", "protocols", "told"),
    [
        ("tcp", ["UDP"], "a tcp check cannot speak UDP"),
        ("http: {}", ["UDP", "SCTP"], "a http check cannot speak SCTP or UDP"),
        ("udp: {send: x}", ["TCP"], "a udp check cannot speak TCP"),
        ("tcp", ["UDP", "TCP"], None),
        ("tcp: {port: 8080}", ["UDP"], None),
        ("exec: {command: [a]}", ["SCTP"], None),
        ("passive: true", ["UDP"], None),
        ("tcp", [], None),
    ],
)
def test_a_check_that_can_speak_to_no_port(annotation, protocols, told):
    """It is refused and left out, and one that can speak to a port is not."""
    ports = [{"name": f"p{n}", "port": n, "protocol": p} for n, p in enumerate(protocols, 1)]
    obj = manifest(annotation)
    obj["spec"]["ports"] = ports
    (service,), refusals = decode_objects([obj])
    if told is None:
        assert refusals == []
        assert service.health == read_text(annotation)[0]
        return
    (refusal,) = refusals
    assert refusal.field == "metadata.annotations.kproxy/health-check"
    assert refusal.message.startswith(told)
    assert not refusal.whole
    assert service.health is not None
    assert service.health.check is None
    assert len(service.ports) == len(ports)
