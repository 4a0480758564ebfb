"""An app with the real Segment SDK that tracks events until its standard input ends: ``storm_app.py URL USERS``.

It then prints, as JSON, the number of events (message ids ``sdk-0``, ``sdk-1`` …) and those the SDK reported as failed.
"""

import json
import sys
import threading

from segment.analytics.client import Client

PAUSE_S = 0.02


def main(url: str, users: int) -> None:
    failed: list[str] = []
    client = Client(
        "any",
        host=url,
        upload_interval=0.05,
        max_queue_size=1_000_000,
        max_retries=50,
        on_error=lambda _error, items: failed.extend(item["messageId"] for item in items),
    )
    ending = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ending.set()), daemon=True).start()
    made = 0
    while not ending.wait(PAUSE_S):
        client.track(f"s{made % users}", "Feature Used", {"n": made}, message_id=f"sdk-{made}")
        made += 1
    client.flush()
    client.join()
    print(json.dumps({"made": made, "failed": failed}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
