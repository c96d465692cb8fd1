"""HTTP/1.1 with clients that would rather speak something else."""

from __future__ import annotations

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class UnmovedProtocol(HttpToolsProtocol):
    """Ignores what an `Upgrade` header offers, as HTTP wants it of who cannot take it.

    Java's own client offers HTTP/2 with every request. The parser then takes the body for bytes of
    the other protocol, so such a request is read once more, without the offer.
    """

    _offers = False

    def data_received(self, data: bytes) -> None:
        """Read a request, or a part of one."""
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if self._offers:
                self._read_again(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self.send_400_response("This is no valid HTTP/1.1.")

    def on_headers_complete(self) -> None:
        """Begin to answer, unless the request is going to be read again."""
        self._offers = self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"
        if not self._offers:
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Tell the application that it has the whole request."""
        if not self._offers:
            super().on_message_complete()

    def _read_again(self, rest: bytes) -> None:
        """Read the request without its offer; what has come behind its head is `rest`."""
        version = self.parser.get_http_version().encode()
        line = b"%s %s HTTP/%s\r\n" % (self.parser.get_method(), self.url, version)
        kept = [b"%s: %s\r\n" % header for header in self.headers if header[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's
        UnmovedProtocol.data_received(self, b"".join((line, *kept, b"\r\n", rest)))
