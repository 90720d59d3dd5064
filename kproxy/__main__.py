"""``python -m kproxy`` is the ``kproxy`` command."""

from kproxy.cli.main import main

main()
