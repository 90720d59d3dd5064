"""One scenario's live lab: namespaces, responders, the proxy, and what steps do to them."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from kproxy.backends.registry import Choice
from kproxy.core.objects import Protocol, family_of
from kproxy.errors import LabError
from kproxy.health.journal import Event
from kproxy.health.tail import Tail
from kproxy.kernel import sysctl
from kproxy.kernel.command import run
from kproxy.kernel.netns import entered
from kproxy.lab import faults
from kproxy.lab.apply import Builder
from kproxy.lab.faults import Fault
from kproxy.lab.loss import lose
from kproxy.lab.plan import plan
from kproxy.lab.scenario.actions import Action, Health
from kproxy.lab.scenario.build import CONTROL_PORT, NODE, Layout, build, node_spots
from kproxy.lab.scenario.proxy import Manifests, Proxy
from kproxy.lab.scenario.schema import Flow, Scenario, Step
from kproxy.lab.scenario.settings import configuration, node_manifest
from kproxy.lab.scenario.workspace import Workspace
from kproxy.lab.scenario.zygote import Zygote
from kproxy.lab.traffic.probe import Probe
from kproxy.lab.traffic.responder import Listener, Responder
from kproxy.lab.traffic.sockets import kernel_has

#: Owner of the runner's listeners on the node's own addresses.
_NODE_LISTENERS = "node listeners"

_BRIDGE_SYSCTLS = (
    "net/bridge/bridge-nf-call-iptables",
    "net/bridge/bridge-nf-call-ip6tables",
)

#: Seconds of silence that count as none coming: a refusal or an answer takes well under 10 ms, and
#: the control flow sent after it shows that the machine was not just slow.
SILENCE = 0.25


class Stage:
    """Built on entry and taken down on exit. ``choice`` None: there is no proxy."""

    def __init__(
        self,
        scenario: Scenario,
        choice: Choice | None,
        workspace: Workspace,
        responder: Responder,
        zygote: Zygote | None,
    ) -> None:
        self.scenario = scenario
        self.choice = choice
        lab, self.home = workspace.next()
        self.layout: Layout = build(scenario, lab)
        self.builder = Builder(lab, on_namespace=workspace.record)
        self.proxy: Proxy | None = None
        self.manifests = Manifests(self.home / "manifests")
        #: Tools of steps and the proxy share a lock of their own, not the host's one file.
        self.environment = {
            "XTABLES_LOCKFILE": str(self.home / "xtables.lock"),
            "KPROXY_RECORDS": str(self.home / "records"),
        }
        self._workspace = workspace
        self._responder = responder
        self._zygote = zygote
        self._owners: list[str] = []
        self._faults: dict[str, tuple[Fault, ...]] = {}
        self._undo = ExitStack()
        self._mark = 0
        self._journal: Tail | None = None

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            undo.callback(self._workspace.remove_namespaces)
            undo.callback(self.builder.close)
            undo.callback(self._release)
            self.builder.apply(plan(None, self.layout.network))
            self._leave_bridges_alone()
            for address, host, listener in self.layout.listeners:
                if kernel_has(listener.protocol):  # else crafted packets stand for it
                    self._listen(address, host, listener)
            if self.choice is not None and self._zygote is not None:
                config = configuration(self.scenario, self.choice)
                self._journal = Tail(self.home / "state")
                undo.callback(self._journal.close)
                self.proxy = undo.enter_context(
                    Proxy(
                        self._zygote,
                        self.fd(NODE),
                        self.home,
                        self.manifests,
                        config,
                        self.choice,
                        self.environment,
                    )
                )
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._undo.close()

    def fd(self, host: str) -> int:
        """Namespace of a host; the descriptor belongs to the stage."""
        return self.builder.fd(host)

    def _leave_bridges_alone(self) -> None:
        """With br_netfilter a pod's packet is translated before it is routed, inside the bridge,
        and cannot leave by the port it came from (hairpin): here the node routes between pods."""
        with entered(self.fd(NODE)):
            for name in _BRIDGE_SYSCTLS:
                if sysctl.read(name) not in (None, "0"):
                    sysctl.write(name, "0")

    def _owner(self, address: str) -> str:
        return f"{self.home} {address}"

    def _listen(self, address: str, host: str, listener: Listener) -> None:
        owner = self._owner(address)
        if owner not in self._owners:
            self._owners.append(owner)
        self._responder.listen(owner, self.fd(host), listener)

    def _release(self) -> None:
        for owner in self._owners:
            self._responder.release(owner)
        self._owners.clear()

    def events(self) -> list[Event]:
        """What the daemon has journalled about endpoints since the step began."""
        return self._journal.read() if self._journal is not None else []

    def perform(self, number: int, step: Step) -> None:
        """Do, apply, delete, and wait until it is in force. Step 0 starts the proxy."""
        # The proxy may want a port that the runner's listener holds: it comes first.
        self._responder.release(self._owner(_NODE_LISTENERS))
        if self.proxy is not None:
            self._mark = self.proxy.syncs
        self.events()
        for action in step.do:
            self._act(action)
        self.manifests.put(step.apply)
        self.manifests.delete(step.delete)
        if number == 0:
            self._begin()
        elif self.proxy is not None and self.proxy.running:
            self.proxy.wait_in_force()
        self._listen_on_node(step.flows)

    def _begin(self) -> None:
        node = node_manifest(self.scenario)
        if node not in self.manifests:
            self.manifests.put([node])
        if self.proxy is not None:
            self.proxy.start()
            self.proxy.wait_in_force()

    def _listen_on_node(self, flows: Iterable[Flow]) -> None:
        """Answer on the node's own addresses wherever the proxy holds no port."""
        for address, port, protocol in node_spots(self.scenario, flows):
            try:
                self._listen(_NODE_LISTENERS, NODE, Listener(NODE, port, protocol, address))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise

    def _act(self, action: Action) -> None:
        if action.proxy:
            self._verb(action.proxy)
        elif action.exec:
            host = NODE if action.place == NODE else self._home_of(action.place)
            argv = in_variant(action.exec, self.choice.variant if self.choice else "")
            run(
                argv,
                stdin=action.stdin.encode() or None,
                namespace=self.fd(host),
                env=self.environment,
                timeout=30,
            )
        elif action.fault:
            self._fault(action.fault, action.kind)
        elif self.proxy is not None and self.proxy.running:
            if isinstance(action.wait_for, Health):
                self.proxy.wait_judged(action.wait_for)
            else:
                self.proxy.wait_synced(self._mark)
                self.proxy.wait_in_force()

    def _verb(self, verb: str) -> None:
        if self.proxy is None:
            return
        verbs: dict[str, Callable[[], None]] = {
            "start": self.proxy.start,
            "stop": self.proxy.stop,
            "kill": self.proxy.kill,
            "restart": self.proxy.restart,
        }
        verbs[verb]()
        # A new process counts its syncs from nothing.
        self._mark = 0
        if self.proxy.running:
            self.proxy.wait_in_force()

    def _home_of(self, address: str) -> str:
        host = self.layout.homes.get(address)
        if host is None:
            raise LabError(f"nobody lives at {address}", hint="name a pod, an endpoint or node")
        return host

    def _fault(self, address: str, kind: str) -> None:
        """The same faults as ``kproxy lab fault`` has, of the pod of an endpoint address."""
        before = self._faults.get(address, ())
        now = self._faults[address] = faults.added(before, [faults.parse(kind)])
        share = faults.loss_of(now)
        if share != faults.loss_of(before):
            lose(self.layout.network, self._home_of(address), share)
        self._responder.afflict(self._owner(address), faults.affliction(now))

    def probe(self, flow: Flow, *, timeout: float | None = None) -> Probe:
        """The probe of a flow whose packets a socket can send."""
        host = self.layout.sender(flow)
        more = {} if timeout is None else {"timeout": timeout}
        return Probe(
            flow.to,
            flow.port,
            flow.proto,
            self.fd(host),
            flow.source,
            flow.source_port,
            control=None if timeout is None else self.control(flow),
            path=flow.expect.http.path if flow.expect and flow.expect.http else "",
            **more,
        )

    def control(self, flow: Flow) -> Probe:
        """A flow from the same sender that is answered whatever the proxy does."""
        return Probe(
            self.layout.control[family_of(flow.to)],
            CONTROL_PORT,
            Protocol.UDP if flow.proto is Protocol.UDP else Protocol.TCP,
            self.fd(self.layout.sender(flow)),
            "" if self.layout.crafted(flow) or _loopback(flow.source) else flow.source,
        )

    def enter_commands(self) -> list[str]:
        """How a person gets into the namespaces."""
        network = self.layout.network
        return [f"ip netns exec {network.namespace(host.name)} bash" for host in network.hosts]

    @property
    def where(self) -> Path:
        return self.home


def in_variant(argv: Sequence[str], variant: str) -> tuple[str, ...]:
    """``argv`` with the tool of the variant that runs: the other one has tables of its own."""
    family, dash, rest = argv[0].partition("-")
    if variant and family in ("iptables", "ip6tables") and rest in ("", "save", "restore"):
        return (f"{family}-{variant}{dash}{rest}", *argv[1:])
    return tuple(argv)


def _loopback(address: str) -> bool:
    """A loopback source cannot leave the node; its control flow goes from any other address."""
    return address == "::1" or address.startswith("127.")
