"""``kproxy lab``: the group of commands about labs; each one's module is imported when it runs."""

from __future__ import annotations

import click

from kproxy.cli.main import LazyGroup

#: command -> (module with an attribute ``command``, one-line help), in the order of --help.
COMMANDS: dict[str, tuple[str, str]] = {
    "up": ("kproxy.cli.lab_up", "Build a lab and start kproxy on its nodes."),
    "down": ("kproxy.cli.lab_down", "Take a lab down, crashed ones too."),
    "ls": ("kproxy.cli.lab_ls", "List labs with their nodes, proxies and pods."),
    "exec": ("kproxy.cli.lab_exec", "Run a command in a node, client or pod."),
    "shell": ("kproxy.cli.lab_shell", "Open a shell in a node, client or pod."),
    "graph": ("kproxy.cli.lab_graph", "Draw a lab and its services."),
    "ping": ("kproxy.cli.lab_ping", "Try all pairs and all services; print a matrix."),
    "capture": ("kproxy.cli.lab_capture", "Show or store the packets of a node, client or pod."),
    "get": ("kproxy.cli.lab_get", "Show services, endpoints, pods or nodes."),
    "apply": ("kproxy.cli.lab_apply", "Create or replace objects from manifests, live."),
    "delete": ("kproxy.cli.lab_delete", "Delete objects named by manifests, live."),
    "scale": ("kproxy.cli.lab_scale", "Change the number of a workload's pods, live."),
    "roll": ("kproxy.cli.lab_roll", "Replace a workload's pods one by one, live."),
    "fault": ("kproxy.cli.lab_fault", "Let something go wrong with pods, and heal them."),
    "kill": ("kproxy.cli.lab_kill", "End the kproxy of nodes as a crash does."),
    "restart": ("kproxy.cli.lab_restart", "Start a new kproxy on nodes, live."),
    "switch": ("kproxy.cli.lab_switch", "Put nodes into another mode, live."),
    "tour": ("kproxy.cli.lab_tour", "Try every mode of this kernel with real traffic."),
}


#: Commands that see for themselves where a lab is, or make labs of their own.
_ON_THE_HOST = ("up", "down", "ls", "tour")


class LabGroup(LazyGroup):
    """Commands that go to where the lab is."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        found = super().get_command(ctx, cmd_name)
        if found is None or cmd_name in _ON_THE_HOST:
            return found
        from kproxy.cli.lab_carry import wherever

        return wherever(cmd_name, found)


@click.command(cls=LabGroup, table=COMMANDS)
def command() -> None:
    """Nodes, pods and clients as network namespaces, with a kproxy on every node.

    Commands act on the one lab that is up; with several, --name or $KPROXY_LAB says which.
    """
