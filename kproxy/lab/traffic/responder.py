"""Answers in many namespaces from one epoll loop; speaks the protocol of :mod:`.wire`.

A lab runs one in a process of its own (:meth:`Responder.serve`), the scenario runner one in a
thread (:meth:`Responder.start`). Listeners belong to an *owner* (a pod, an endpoint address), and
an :class:`~kproxy.lab.faults.Affliction` befalls an owner. What is slow or flaps costs timers of
the loop, no thread, and delays nobody else.
"""

from __future__ import annotations

import heapq
import itertools
import os
import select
import socket
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Self

from kproxy.core.objects import Family, Protocol, family_of
from kproxy.errors import LabError
from kproxy.kernel.netns import entered
from kproxy.lab.faults import HEALTHY, Affliction
from kproxy.lab.traffic import sockets
from kproxy.lab.traffic.handlers import Accepting, Connection, Datagrams, Handler, Later, Listener

__all__ = ["Listener", "Responder"]

_ANY = {Family.IPV4: "0.0.0.0", Family.IPV6: "::"}

_BACKLOG = 1024


class _Owner:
    """All that one owner has: how to listen again, what is open now, what it suffers from."""

    def __init__(self) -> None:
        self.listeners: list[tuple[int, Listener]] = []
        self.open: dict[int, Handler] = {}
        self.affliction = HEALTHY
        #: Nothing is open; a flapping owner is by turns.
        self.closed = False
        #: Counts afflictions, so that a timer of an earlier one is known for what it is.
        self.turn = 0
        #: Answers that wait by handler: how many, and when the last of them is due (the order of
        #: answers on a connection is that of its requests).
        self.waiting: dict[Handler, tuple[int, float]] = {}
        #: Answers that were due while the owner was hung.
        self.held: list[tuple[Handler, Callable[[], None]]] = []


class Responder:
    """Serves listeners of any number of namespaces; methods may be called from any thread."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._owners: dict[str, _Owner] = {}
        self._owner_of: dict[int, str] = {}
        #: (due, serial, what to do), of time.monotonic().
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = itertools.count()
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._stopping = False

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def listen(self, owner: str, namespace: int | None, listener: Listener) -> None:
        """Start answering for ``owner`` in a namespace (a descriptor that stays open as long as
        the owner may be healed). OSError with EADDRINUSE when the port is taken."""
        with self._lock:
            state = self._owners.setdefault(owner, _Owner())
            if not state.closed:
                self._open(owner, state, namespace, listener)
            state.listeners.append((-1 if namespace is None else namespace, listener))

    def _open(self, owner: str, state: _Owner, namespace: int | None, listener: Listener) -> None:
        families = (family_of(listener.address),) if listener.address else tuple(Family)
        with entered(namespace):
            sockets = [_listening(listener, family) for family in families]
        for sock in sockets:
            if listener.protocol is Protocol.UDP:
                self._watch(owner, state, sock, Datagrams(sock, listener))
            else:
                self._watch(owner, state, sock, Accepting(sock, listener))

    def _watch(self, owner: str, state: _Owner, sock: socket.socket, handler: Handler) -> None:
        fd = sock.fileno()
        state.open[fd] = handler
        self._owner_of[fd] = owner
        if not state.affliction.hung:
            self._epoll.register(fd, select.EPOLLIN)

    def release(self, owner: str) -> None:
        """Stop answering for ``owner`` for good; fine when there is no such owner."""
        with self._lock:
            state = self._owners.pop(owner, None)
            if state is not None:
                state.turn += 1
                self._shut(state)

    def _shut(self, state: _Owner) -> None:
        for fd, handler in list(state.open.items()):
            self._drop(state, fd, handler)
        state.held.clear()

    def _drop(self, state: _Owner, fd: int, handler: Handler) -> None:
        state.open.pop(fd, None)
        state.waiting.pop(handler, None)
        self._owner_of.pop(fd, None)
        handler.sock.close()

    # --- what befalls an owner ----------------------------------------------------------------

    def afflict(self, owner: str, affliction: Affliction) -> None:
        """From now on ``owner`` suffers from this and nothing else. LabError for one unknown, and
        OSError when it cannot listen again."""
        with self._lock:
            state = self._known(owner)
            hung, state.affliction = state.affliction.hung, affliction
            state.turn += 1
            if affliction.hung != hung:
                self._set_hung(state)
            self._set_closed(owner, state, affliction.closed)
            if affliction.flap is not None:
                self._flap(owner, state, state.turn, closing=True)

    def restart(self, owner: str) -> None:
        """What happens when a process ends and another one takes its place at once."""
        with self._lock:
            state = self._known(owner)
            if not state.closed:
                self._set_closed(owner, state, True)
                self._set_closed(owner, state, False)

    def _known(self, owner: str) -> _Owner:
        state = self._owners.get(owner)
        if state is None:
            raise LabError(f"nothing answers for {owner}", hint="name an endpoint address")
        return state

    def _set_hung(self, state: _Owner) -> None:
        if state.affliction.hung:
            for fd in self._watched(state):
                self._epoll.unregister(fd)
            return
        for fd in self._watched(state):
            self._epoll.register(fd, select.EPOLLIN)
        held, state.held = state.held, []
        for handler, send in held:
            self._at(time.monotonic(), partial(self._due, state, handler, send))

    @staticmethod
    def _watched(state: _Owner) -> list[int]:
        """What is waited for: nothing more comes on connections whose clients have ended."""
        ended = (fd for fd, one in state.open.items() if isinstance(one, Connection) and one.ended)
        return list(state.open.keys() - set(ended))

    def _set_closed(self, owner: str, state: _Owner, closed: bool) -> None:
        if closed:
            self._shut(state)
        elif state.closed:
            for namespace, listener in state.listeners:
                self._open(owner, state, None if namespace < 0 else namespace, listener)
        state.closed = closed

    def _flap(self, owner: str, state: _Owner, turn: int, *, closing: bool) -> None:
        """Set the timer of the next change."""
        assert state.affliction.flap is not None
        up, down = state.affliction.flap

        def change() -> None:
            if state.turn != turn:
                return
            try:
                self._set_closed(owner, state, closing)
            except OSError as wrong:
                # Its turn comes again; until then it is as closed as it was.
                sys.stderr.write(f"{owner} cannot listen again: {wrong.strerror}\n")
            self._flap(owner, state, turn, closing=not closing)

        self._at(time.monotonic() + (up if closing else down), change)

    # --- timers -------------------------------------------------------------------------------

    def _at(self, due: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (due, next(self._serial), action))
        if self._timers[0][2] is action and threading.current_thread() is not self._thread:
            os.eventfd_write(self._wake, 1)

    def _patience(self) -> float | None:
        """Seconds until the next timer is due."""
        with self._lock:
            return max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None

    def _act(self) -> None:
        """Do what is due."""
        with self._lock:
            now = time.monotonic()
            while self._timers and self._timers[0][0] <= now:
                heapq.heappop(self._timers)[2]()

    def _later(self, state: _Owner, handler: Handler) -> Later | None:
        """How this handler's answers leave; None: at once."""
        slow = state.affliction.slow
        if not slow and handler not in state.waiting:
            return None

        def later(send: Callable[[], None]) -> None:
            count, last = state.waiting.get(handler, (0, 0.0))
            due = max(time.monotonic() + slow, last)
            state.waiting[handler] = count + 1, due
            self._at(due, partial(self._due, state, handler, send))

        return later

    def _due(self, state: _Owner, handler: Handler, send: Callable[[], None]) -> None:
        """One answer's time has come, unless what it would leave by is gone."""
        if handler not in state.waiting:
            return
        if state.affliction.hung:
            state.held.append((handler, send))
            return
        count, last = state.waiting[handler]
        state.waiting[handler] = count - 1, last
        if count == 1:
            del state.waiting[handler]
        try:
            send()
        except OSError:
            self._drop(state, handler.sock.fileno(), handler)
            return
        if count == 1 and isinstance(handler, Connection) and handler.ended:
            self._drop(state, handler.sock.fileno(), handler)

    # --- the loop -----------------------------------------------------------------------------

    def start(self) -> None:
        """Serve in a thread of this process until :meth:`close`."""
        self._thread = threading.Thread(target=self.serve, name="responder", daemon=True)
        self._thread.start()

    def serve(self) -> None:
        """Serve until :meth:`close` is called (from a signal handler or another thread)."""
        while not self._stopping:
            for fd, _ in self._epoll.poll(self._patience()):
                if fd == self._wake:
                    os.eventfd_read(fd)
                else:
                    self._dispatch(fd)
            self._act()

    def _dispatch(self, fd: int) -> None:
        with self._lock:
            owner = self._owner_of.get(fd)
            if owner is None:
                return
            state = self._owners[owner]
            if state.affliction.hung:
                return  # since it was seen to be ready
            handler = state.open[fd]
            match handler:
                case Accepting():
                    while (connection := handler.accept()) is not None:
                        self._watch(owner, state, connection.sock, connection)
                case Connection():
                    if not handler.ready(self._later(state, handler)):
                        self._over(state, fd, handler)
                case Datagrams():
                    handler.ready(self._later(state, handler))

    def _over(self, state: _Owner, fd: int, handler: Connection) -> None:
        """Nothing more comes; what was asked before is still answered."""
        if handler.ended and handler in state.waiting:
            self._epoll.unregister(fd)
        else:
            self._drop(state, fd, handler)

    def close(self) -> None:
        """Stop serving and close everything."""
        self._stopping = True
        os.eventfd_write(self._wake, 1)
        if self._thread is not None:
            self._thread.join()
        with self._lock:
            for owner in list(self._owners):
                self.release(owner)
            if not self._epoll.closed:
                self._epoll.close()
                os.close(self._wake)


def _listening(listener: Listener, family: Family) -> socket.socket:
    sock = sockets.make(family, listener.protocol)
    try:
        sock.setblocking(False)
        if family is Family.IPV6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if listener.protocol in sockets.STREAMS:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((listener.address or _ANY[family], listener.port))
        if listener.protocol in sockets.STREAMS:
            sock.listen(_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock
