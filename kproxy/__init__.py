"""kproxy: kube-proxy rebuilt in Python and Cython, with a laboratory around it.

The data path is the folder list::

    objects -> tracker -> Snapshot -> render -> Desired -> diff(Actual) -> apply -> kernel
    sources    core       core        backends             backends        kernel
"""

__version__ = "0.1.0"
