"""The ``kproxy`` command, also as ``python -m kproxy``."""

from __future__ import annotations

import signal


def main() -> None:
    """Load the command line and run it."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:
        # Ctrl-C while modules load ends us as it ends any program: without a traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from kproxy.cli.main import main as run

    signal.signal(signal.SIGINT, handler)
    run()


if __name__ == "__main__":
    main()
