"""Restarts of a real daemon with an inherited socket, under clients that open a connection for each event."""

import json
import socket
import threading
import time

import pytest
from process_harness import ProcessHarness

CLIENTS = 4
RESTARTS = 3


class Client(threading.Thread):
    """Like PHP's SDK: a connection for each request, and an event is lost if its connection is refused."""

    def __init__(self, harness: ProcessHarness, name: int, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.address = (harness.http.split(":")[0], int(harness.http.split(":")[1]))
        self.number = name
        self.stop = stop
        self.answered = 0
        self.failures: list[str] = []

    def run(self) -> None:
        while not self.stop.is_set():
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


def restart_under_load(harness: ProcessHarness, restarts: int) -> list[Client]:
    host, port = harness.http.split(":")
    harness.write_config()
    stop = threading.Event()
    clients = [Client(harness, number, stop) for number in range(CLIENTS)]
    with socket.create_server((host, int(port)), backlog=512) as listener:
        daemon = harness.start_daemon(http=listener)
        for client in clients:
            client.start()
        for _ in range(restarts):
            time.sleep(0.3)
            assert harness.stop(daemon) == 0
            daemon = harness.start_daemon(http=listener)
        stop.set()
        for client in clients:
            client.join(40)
            assert not client.is_alive()
        assert harness.status()["accepted"] == sum(client.answered for client in clients)
    return clients


def test_restart_refuses_and_cuts_no_connection(harness: ProcessHarness):
    clients = restart_under_load(harness, RESTARTS)
    assert [client.failures for client in clients] == [[]] * CLIENTS
    assert min(client.answered for client in clients) > RESTARTS


@pytest.mark.slow
def test_many_restarts_refuse_and_cut_no_connection(harness: ProcessHarness):
    assert [client.failures for client in restart_under_load(harness, 30)] == [[]] * CLIENTS
