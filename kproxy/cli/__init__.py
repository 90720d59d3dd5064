"""The ``kproxy`` command: one module for each command, imported when it is used."""
