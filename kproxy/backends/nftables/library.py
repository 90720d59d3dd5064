"""libnftables in this process: rules as text, without a program that has to be started for it.

A context's socket is of the namespace of the thread that made it. The library aborts the process on
some statements (see docs/nftables.md); only the mode's own rules are given to it.
"""

from __future__ import annotations

import ctypes
import threading
from functools import cache
from typing import Any

from kproxy.errors import ApplyError, MachineError

NAME = "libnftables.so.1"

#: Contexts are apart, but nobody promises that for all that the library keeps.
_lock = threading.Lock()


@cache
def _library() -> Any:
    try:
        library = ctypes.CDLL(NAME)
    except OSError as missing:
        raise MachineError(
            f"no {NAME}: {missing}", hint="apt-get install libnftables1"
        ) from missing
    library.nft_ctx_new.restype = ctypes.c_void_p
    library.nft_ctx_new.argtypes = [ctypes.c_uint32]
    library.nft_ctx_free.argtypes = [ctypes.c_void_p]
    library.nft_ctx_free.restype = None
    for name in ("output", "error"):
        buffer = getattr(library, f"nft_ctx_buffer_{name}")
        buffer.argtypes = [ctypes.c_void_p]
        text = getattr(library, f"nft_ctx_get_{name}_buffer")
        text.argtypes, text.restype = [ctypes.c_void_p], ctypes.c_char_p
    library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    return library


def require() -> None:
    """MachineError unless the library is there."""
    _library()


class Nft:
    """A context, for one thread at a time."""

    def __init__(self) -> None:
        self._library = _library()
        with _lock:
            self._context = self._library.nft_ctx_new(0)
        if not self._context:
            raise MachineError(f"{NAME} gives no context", hint="a kernel with CONFIG_NF_TABLES")
        self._library.nft_ctx_buffer_output(self._context)
        self._library.nft_ctx_buffer_error(self._context)

    def run(self, script: str) -> None:
        """One transaction. ApplyError when it is refused; nothing has changed then."""
        with _lock:
            status = self._library.nft_run_cmd_from_buffer(self._context, script.encode())
            said = self._library.nft_ctx_get_error_buffer(self._context)
            self._library.nft_ctx_get_output_buffer(self._context)
        if status != 0:
            lines = (said or b"").decode(errors="replace").strip().splitlines()
            raise ApplyError(f"nft refuses rules: {' '.join(map(str.strip, lines[:2]))}")

    def close(self) -> None:
        context, self._context = self._context, None
        if context:
            with _lock:
                self._library.nft_ctx_free(context)
