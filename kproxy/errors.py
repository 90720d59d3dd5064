"""Every exception of kproxy, in one tree.

::

    KproxyError                 exit status 1
    ├── UsageError              2   a wrong flag, file or value: the caller can mend it
    │   ├── ConfigError             kube-proxy flags, KubeProxyConfiguration
    │   ├── SourceError             a manifest path that is missing or unreadable
    │   ├── TopologyError           a lab topology
    │   └── ScenarioError           a scenario file
    ├── MachineError            3   this machine or kernel cannot do it (root, tool, feature)
    ├── KernelError             1   the kernel, or a tool that speaks to it, said no
    │   ├── CommandError            a process ended with a status other than 0
    │   ├── NetlinkError            a netlink request was answered with an errno
    │   │   └── MemberError             … about one member of a set
    │   └── ApplyError              a transaction was refused; nothing of it is in force
    │       └── ContentError            … for what it says: it would be refused again
    ├── OccupiedError           1   another process is the proxy here
    ├── LabError                1   the lab is not in the state that the command needs
    └── CheckFailed             1   a check that the user asked for did not pass

A *bad object* in a manifest is no exception: one bad object never stops the others, so it
travels as a value, :class:`kproxy.core.objects.Refusal`.

Every message names three things: what was wrong, where, and what to do about it.
"""

from __future__ import annotations

from collections.abc import Sequence


class KproxyError(Exception):
    """Root of the tree.

    ``what`` is the fault, ``where`` the file, object or field (may be empty), ``hint`` the next
    thing to try (may be empty). ``str()`` gives all three in one line.
    """

    exit_status = 1

    def __init__(self, what: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}; {self.hint}" if self.hint else text


class UsageError(KproxyError):
    """The caller asked for something that makes no sense; asking differently helps."""

    exit_status = 2


class ConfigError(UsageError):
    """A flag or a field of KubeProxyConfiguration is wrong."""


class SourceError(UsageError):
    """A manifest path that cannot be read at all (missing, no permission)."""


class TopologyError(UsageError):
    """A topology file or value that describes no lab."""


class ScenarioError(UsageError):
    """A scenario file with an unknown key or an impossible value."""


class MachineError(KproxyError):
    """This machine cannot: not root, a tool or a kernel feature is missing."""

    exit_status = 3


class KernelError(KproxyError):
    """The kernel, or a tool that speaks to it, refused."""


class CommandError(KernelError):
    """A process ended with a status other than 0.

    ``argv`` is what ran, ``status`` its exit status (negative: the signal), ``stderr`` its words.
    """

    def __init__(
        self, argv: Sequence[str], status: int, stderr: str, *, where: str = "", hint: str = ""
    ) -> None:
        self.argv = tuple(argv)
        self.status = status
        self.stderr = stderr
        said = stderr.strip().splitlines()
        super().__init__(
            f"{' '.join(self.argv)} ended with {status}: {said[0] if said else 'no message'}",
            where=where,
            hint=hint,
        )


class NetlinkError(KernelError):
    """A netlink request was answered with ``errno``."""

    def __init__(self, what: str, errno: int, *, where: str = "", hint: str = "") -> None:
        self.errno = errno
        super().__init__(what, where=where, hint=hint)


class MemberError(NetlinkError):
    """The kernel refused to put a member into a set, or to take it out.

    ``set_name`` is the set, ``member`` the packed member (:mod:`kproxy.core.members`).
    """

    def __init__(self, what: str, errno: int, *, set_name: str, member: bytes) -> None:
        self.set_name = set_name
        self.member = member
        super().__init__(what, errno)


class ApplyError(KernelError):
    """A transaction was refused as a whole; what was in force before still is."""


class ContentError(ApplyError):
    """A transaction was refused for what it says, and would be again.

    ``suspects`` are the members of it (service ports) that the refusal speaks of, () when it does
    not say.
    """

    def __init__(
        self, what: str, *, suspects: Sequence[object] = (), where: str = "", hint: str = ""
    ) -> None:
        self.suspects = tuple(suspects)
        super().__init__(what, where=where, hint=hint)


class OccupiedError(KproxyError):
    """Another process is this node's proxy; two would undo each other's work."""


class LabError(KproxyError):
    """The lab is not in the state that the command needs (not up, unknown name)."""


class CheckFailed(KproxyError):
    """A check that the user asked for did not pass; what failed was printed before."""
