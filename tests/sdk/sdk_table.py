"""The table of README.md, from what ran: ``sdk_table.py`` writes it, ``render`` returns it.

``PX_SDK_RESULTS=tests/sdk/results.json .venv/bin/pytest -m sdk tests/sdk`` writes the results first.
"""

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
BEGIN, END = "<!-- made by tests/sdk/sdk_table.py -->", "<!-- end -->"
VENDORS = {"segment": "Segment", "rudder": "RudderStack"}


def row(name: str, facts: dict[str, Any]) -> str:
    vendor, language = name.split("-")
    answers = [facts["answers"][status] for status in ("503", "429", "413", "400")]
    cells = [
        f"{VENDORS[vendor]}, {language.capitalize()} {facts['version']}",
        f"`{facts['setting']}`",
        *answers,
        facts["exit_away"],
        facts["full"],
        facts["too_large"],
        f"{facts['kill_lost']} / {facts['kill_reported']} / {facts['kill_twice']}",
    ]
    return "| " + " | ".join(cells) + " |"


def render(results: dict[str, Any]) -> str:
    titles = [
        "SDK", "setting", "503", "429", "413", "400", "exit, nothing listens", "full outbox", "event of 40 KB",
        "`kill -9`: lost / reported / twice of 2,000",
    ]  # fmt: skip
    lines = ["| " + " | ".join(titles) + " |", "|" + " --- |" * len(titles)]
    return "\n".join(lines + [row(name, facts) for name, facts in sorted(results.items())])


def main() -> None:
    page = HERE / "README.md"
    text = page.read_text(encoding="utf-8")
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    table = render(json.loads((HERE / "results.json").read_text(encoding="utf-8")))
    page.write_text(f"{head}{BEGIN}\n\n{table}\n\n{END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
