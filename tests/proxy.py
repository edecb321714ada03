"""A broker that fails, without a change to the server that the tests share."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

from kombu.utils.url import url_to_parts

__all__ = ["Proxy"]


class Proxy:
    """A TCP proxy between the processes of a study and its broker.

    Args:
        url: URL of the broker, on this machine.

    Attributes:
        url: URL of the proxy.
    """

    def __init__(self, url: str) -> None:
        self._target = url_to_parts(url).port
        self._frozen = threading.Event()
        self._sockets: list[socket.socket] = []
        # A socket that does not listen: connections are refused while nothing else does, and nobody else takes the port.
        self._place = socket.socket()
        self._place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._place.bind(("127.0.0.1", 0))
        self._port = self._place.getsockname()[1]
        self._listen()
        self.url = url.replace(f":{self._target}", f":{self._port}")

    def _listen(self) -> None:
        listener = socket.create_server(("127.0.0.1", self._port))
        self._sockets.append(listener)
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def freeze(self) -> None:
        """Forward nothing more on the connections of now, without an end of them, as a firewall does; new ones work."""
        frozen, self._frozen = self._frozen, threading.Event()
        frozen.set()

    def go_away(self, seconds: float) -> None:
        """End all connections and refuse new ones for some seconds, as a broker that restarts and keeps its data."""
        self._end()
        time.sleep(seconds)
        self._listen()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # the listener is closed
            while True:
                client, _ = listener.accept()
                self._sockets.append(client)
                try:
                    server = socket.create_connection(("127.0.0.1", self._target))
                except OSError:  # the next client may have more luck
                    client.close()
                    continue
                self._sockets.append(server)
                for ends in ((client, server), (server, client)):
                    threading.Thread(target=self._forward, args=(*ends, self._frozen), daemon=True).start()

    @staticmethod
    def _forward(source: socket.socket, sink: socket.socket, frozen: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if frozen.is_set():
                    return
                sink.sendall(data)
            if not frozen.is_set():
                sink.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """End all connections, and refuse new ones."""
        self._end()
        self._place.close()

    def _end(self) -> None:
        sockets, self._sockets = self._sockets, []
        for one in sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)  # ends the threads that wait for it
            one.close()
