"""An app with one of the Python SDKs: ``matrix.py SCENARIO``; the page beside says what a scenario is."""

import json
import sys
import threading
import time
from datetime import datetime
from pathlib import Path


def main(scenario: dict) -> None:
    if scenario["sdk"] == "segment":
        from segment.analytics.client import Client
    else:
        from rudderstack.analytics.client import Client
    failed: set[str] = set()
    refused: set[str] = set()

    def client(url: str):
        return Client(
            scenario["key"],
            host=url,
            gzip=scenario["gzip"],
            upload_size=scenario["batch"],
            upload_interval=0.05,
            on_error=lambda _error, items: failed.update(item["messageId"] for item in items),
        )

    clients = [client(url) for url in scenario["urls"]]
    calls = scenario["calls"]
    made = threading.Semaphore(0)

    def work(share: list) -> None:
        for call in share:
            for one in clients:
                if not make(one, call):
                    refused.add(call["messageId"])
            made.release()
            time.sleep(scenario["pause_s"])

    threads = [
        threading.Thread(target=work, args=(calls[k :: scenario["threads"]],)) for k in range(scenario["threads"])
    ]
    for thread in threads:
        thread.start()
    for _ in range((len(calls) + 1) // 2):
        made.acquire()
    print("half", flush=True)
    for thread in threads:
        thread.join()
    time.sleep(scenario["linger_s"])
    began = time.monotonic()
    for one in clients:
        one.flush()
        one.join()
    print(json.dumps({"failed": sorted(failed), "refused": sorted(refused), "shutdown_s": time.monotonic() - began}))


def make(client, call: dict) -> bool:
    """Make a call; return whether the SDK took it."""
    more = {
        "message_id": call["messageId"],
        "context": call.get("context"),
        "timestamp": datetime.fromisoformat(call["timestamp"].replace("Z", "+00:00")),
    }
    user, properties, traits = call["userId"], call.get("properties"), call.get("traits")
    kinds = {
        "identify": lambda: client.identify(user, traits, **more),
        "track": lambda: client.track(user, call["event"], properties, **more),
        "page": lambda: client.page(user, call.get("category"), call["name"], properties, **more),
        "screen": lambda: client.screen(user, call.get("category"), call["name"], properties, **more),
        "group": lambda: client.group(user, call["groupId"], traits, **more),
        "alias": lambda: client.alias(call["previousId"], user, **more),
    }
    try:
        taken, _ = kinds[call["type"]]()
    except Exception as error:
        print(f"{call['messageId']}: {error}"[:300], file=sys.stderr)
        return False
    return bool(taken)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
