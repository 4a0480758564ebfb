"""Restarts of a real daemon whose sockets are inherited, under clients that open a connection for each event."""

import json
import socket
import threading
import time

import pytest
from stage import Stage

CLIENTS = 4
RESTARTS = 3


class Client(threading.Thread):
    """Like PHP's SDK: a connection for each request, and what is refused once is lost."""

    def __init__(self, stage: Stage, name: int, enough: threading.Event) -> None:
        super().__init__(daemon=True)
        self.address = (stage.http.split(":")[0], int(stage.http.split(":")[1]))
        self.number = name
        self.enough = enough
        self.answered = 0
        self.failures: list[str] = []

    def run(self) -> None:
        while not self.enough.is_set():
            body = json.dumps({"event": "E", "userId": "u", "messageId": f"{self.number}-{self.answered}"}).encode()
            request = b"POST /v1/track HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
            try:
                with socket.create_connection(self.address, 30) as connection:
                    connection.sendall(request)
                    answer = connection.recv(4096)
                if answer.startswith(b"HTTP/1.1 200 "):
                    self.answered += 1
                else:
                    self.failures.append(repr(answer))
            except OSError as error:
                self.failures.append(repr(error))


def restart_under_load(stage: Stage, restarts: int) -> list[Client]:
    host, port = stage.http.split(":")
    stage.write_config()
    enough = threading.Event()
    clients = [Client(stage, number, enough) for number in range(CLIENTS)]
    with socket.create_server((host, int(port)), backlog=512) as listener:
        daemon = stage.start_daemon(http=listener)
        for client in clients:
            client.start()
        for _ in range(restarts):
            time.sleep(0.3)
            assert stage.stop(daemon) == 0
            daemon = stage.start_daemon(http=listener)
        enough.set()
        for client in clients:
            client.join(40)
            assert not client.is_alive()
        assert stage.status()["accepted"] == sum(client.answered for client in clients)
    return clients


def test_no_connection_is_refused_or_cut_by_a_restart(stage: Stage):
    clients = restart_under_load(stage, RESTARTS)
    assert [client.failures for client in clients] == [[]] * CLIENTS
    assert min(client.answered for client in clients) > RESTARTS


@pytest.mark.slow
def test_no_connection_is_refused_or_cut_by_many_restarts(stage: Stage):
    assert [client.failures for client in restart_under_load(stage, 30)] == [[]] * CLIENTS
