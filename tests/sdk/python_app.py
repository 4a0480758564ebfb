"""An app with one of the Python SDKs: ``python_app.py SDK URL GZIP COUNT NAME``; SDK is ``segment`` or ``rudder``.

Makes COUNT calls of all kinds with message ids like NAME-track-1, says ``half`` in the middle, and at the end, as JSON,
which message ids were reported to it as failed.
"""

import json
import sys
import time

KINDS = ("identify", "track", "page", "screen", "group", "alias")


def main(sdk: str, url: str, gzip: str, count: int, name: str) -> None:
    if sdk == "segment":
        from segment.analytics.client import Client
    else:
        from rudderstack.analytics.client import Client
    failed: list[str] = []
    client = Client(
        "any",
        host=url,
        gzip=gzip == "gzip",
        upload_interval=0.05,
        on_error=lambda _error, items: failed.extend(item["messageId"] for item in items),
    )
    for number in range(count):
        call(client, KINDS[number % len(KINDS)], number, name)
        if number == count // 2:
            print("half", flush=True)
        if number % 20 == 0:
            time.sleep(0.02)
    client.flush()
    client.join()
    print(json.dumps(failed), flush=True)


def call(client: object, kind: str, number: int, name: str) -> None:
    user, message_id = f"u{number % 50}", f"{name}-{kind}-{number}"
    arguments = {
        "identify": (user, {"plan": "pro", "n": number}),
        "track": (user, "Feature Used", {"n": number}),
        "page": (user, "Docs", "Start", {"n": number}),
        "screen": (user, "Docs", "Start", {"n": number}),
        "group": (user, f"a{number % 10}", {"n": number}),
        "alias": (f"old{number}", user),
    }[kind]
    getattr(client, kind)(*arguments, message_id=message_id)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5])
