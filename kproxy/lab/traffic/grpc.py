"""The health service of gRPC (grpc.health.v1) on a responder's port, as a pure exchange of bytes.

Every service is SERVING: a responder that is not well does not answer at all.
"""

from __future__ import annotations

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, StreamEnded
from h2.exceptions import ProtocolError

#: How HTTP/2 over a bare connection begins (RFC 9113, section 3.4).
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

#: A message of two bytes, not compressed: field 1, status, is 1 (SERVING).
_SERVING = b"\x00\x00\x00\x00\x02\x08\x01"

_HEAD = ((":status", "200"), ("content-type", "application/grpc"))
_TAIL = (("grpc-status", "0"),)


class Exchange:
    """One connection. ``greeting`` are the bytes to send first."""

    def __init__(self) -> None:
        self._h2 = H2Connection(H2Configuration(client_side=False))
        self._h2.initiate_connection()
        self.greeting = self._h2.data_to_send()

    def heard(self, data: bytes) -> bytes:
        """The answer to what has come; ValueError for what is no HTTP/2."""
        try:
            for event in self._h2.receive_data(data):
                if isinstance(event, StreamEnded):
                    self._answer(event.stream_id)
                elif isinstance(event, DataReceived):
                    self._h2.acknowledge_received_data(
                        event.flow_controlled_length, event.stream_id
                    )
        except ProtocolError as wrong:
            raise ValueError(str(wrong)) from wrong
        return self._h2.data_to_send()

    def _answer(self, stream: int) -> None:
        self._h2.send_headers(stream, _HEAD)
        self._h2.send_data(stream, _SERVING)
        self._h2.send_headers(stream, _TAIL, end_stream=True)
