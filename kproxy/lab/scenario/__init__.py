"""Scenarios: real packets against expectations, the same file in every mode.

::

    file ─► Scenario ─► Layout ─► namespaces, responders, proxy ─► Outcomes ─► Verdicts ─► report
         schema      build      stage !                         runner !    judge       report

``schema`` reads files, ``settings`` turns a scenario's short forms into the proxy's configuration,
``build`` decides on the network, ``judge`` compares what was seen with what is claimed, with the
``exceptions`` of a mode. These are pure. ``stage`` builds, ``zygote`` and ``proxy`` run the real
daemon, ``runner`` does the steps, ``explain`` shows what a failing flow's packets met.
"""
