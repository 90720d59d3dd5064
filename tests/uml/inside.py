"""The pytest plugin inside user-mode Linux: says each report as one line of JSON on descriptor 3.

Standard output and error are the run's own words, for people.
"""

from __future__ import annotations

import json
import os

import pytest

_REPORTS = 3


class _Teller:
    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        left = json.dumps(data).encode() + b"\n"
        while left:
            left = left[os.write(_REPORTS, left) :]


def pytest_configure(config: pytest.Config) -> None:
    # Tools that tests start must not hold the descriptor, nor write to it.
    os.set_inheritable(_REPORTS, False)
    config.pluginmanager.register(_Teller(config))
