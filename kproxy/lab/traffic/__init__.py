"""Real traffic inside lab namespaces: who answers, who asks, and what can be seen on the way.

``wire`` is the echo protocol as values, ``responder`` answers in many namespaces from one loop
(``handlers`` are its sockets; :mod:`kproxy.lab.faults` says what may befall it),
``probe`` sends many flows in parallel and names what came of each, ``crafted`` sends first packets
that no socket would send, ``capture`` watches interfaces.

A socket stays for life in the namespace in which it was made, so one process serves and probes
every namespace of a lab; nothing is ever sent in the namespace of the caller.
"""

from kproxy.lab.traffic.probe import Held, Holding, Probe, probe_all
from kproxy.lab.traffic.responder import Listener, Responder
from kproxy.lab.traffic.wire import Answer, Outcome, Reach, join_host_port, split_host_port

__all__ = [
    "Answer",
    "Held",
    "Holding",
    "Listener",
    "Outcome",
    "Probe",
    "Reach",
    "Responder",
    "join_host_port",
    "probe_all",
    "split_host_port",
]
