"""Recipes for common tasks: a configuration, and events that show its effect (``px-sidecar map --reference``)."""

from typing import Any

import msgspec

__all__ = ["RECIPES", "Recipe"]


class Recipe(msgspec.Struct, frozen=True):
    """A task, the configuration that solves it, and example events."""

    title: str
    text: str
    toml: str
    events: tuple[dict[str, Any], ...] = ()


def _track(event: str, **more: Any) -> dict[str, Any]:
    return {"type": "track", "event": event, "userId": "user-123", **more}


RECIPES = (
    Recipe(
        "Keep all names as they are",
        "No preset, no camel case.",
        '[mapping]\npreset = "none"\nattribute_case = "keep"',
        (_track("Products Searched", properties={"search_term": "export"}),),
    ),
    Recipe(
        "Send anonymous traffic",
        "`anonymousId` becomes `identifyId`, with the `userType` of a visitor (or `lead`).",
        '[mapping]\nanonymous = "visitor"',
        ({"type": "page", "anonymousId": "anon-7", "properties": {"url": "https://example.com/"}},),
    ),
    Recipe(
        "Several products",
        "Each app has its own write key; its events get the property key of its PX product.",
        '[px]\nproperty_key = "AP-XXXXXXXXXX-2"\n[[source]]\nwrite_key = "wk_web"\n'
        '[[source]]\nwrite_key = "wk_admin"\nproperty_key = "AP-YYYYYYYYYY-2"',
    ),
    Recipe(
        "Drop noise",
        "By name or by glob. With `unmapped`, only listed names are sent.",
        '[mapping]\nunmapped = "drop"\n[mapping.events]\n"Export *" = "Exported"\npage = ""',
        (_track("Export Finished"), _track("Mouse Moved"), {"type": "page", "userId": "user-123"}),
    ),
    Recipe(
        "Keep personal data here",
        "Dropped names leave this host in no form. Hashed values stay distinguishable in PX.",
        '[mapping.attributes]\ndrop = ["email"]\nhash = ["phone"]\nhash_salt = "long and random"',
        (_track("Signed Up", properties={"email": "a@b.test", "phone": "+1", "form": {"Email": "a@b.test", "step": 2}}),),
    ),
    Recipe(
        "An account id of your own",
        "The first path that has a value; else the account of the last identify or group.",
        '[mapping.fields]\naccountId = ["properties.workspace_id", "context.groupId"]',
        (_track("Feature Used", properties={"workspace_id": 42}),),
    ),
    Recipe(
        "One event with rules of its own",
        "They are merged over the general rules.",
        '[mapping.event."Subscription Started"]\npriority = "high"\n'
        '[mapping.event."Subscription Started".attributes]\nkeep = ["plan"]\nset = { source = "billing" }',
        (_track("Subscription Started", properties={"plan": "Pro", "coupon": "X"}),),
    ),
    Recipe(
        "Write users and accounts",
        "Unchanged traits are not sent again. Custom attributes must exist in PX; `keep` selects them.",
        '[people]\nusers = "upsert"\naccounts = "upsert"\n[mapping.traits]\nkeep = ["name", "email", "industry"]',
        (
            {"type": "identify", "userId": "user-123", "traits": {"name": "Jane Doe", "email": "j@x.test", "age": 40}},
            {"type": "group", "userId": "user-123", "groupId": "acct-987", "traits": {"name": "Acme", "industry": "Toys"}},
        ),
    ),
    Recipe(
        "The RudderStack way",
        "`anonymousId` as `identifyId` with `USER`, unchanged names, `groupId` as account, the session from the properties, "
        "no page and screen calls. Unlike in RudderStack, nulls are left out and `sessionId` is a text.",
        '[mapping]\npreset = "none"\nattribute_case = "keep"\n'
        "[mapping.fields]\n"
        'identifyId = ["userId", "traits.userId", "traits.id", "context.traits.userId", "context.traits.id", "anonymousId"]\n'
        'accountId = ["traits.groupId", "context.traits.groupId"]\n'
        'date = ["properties.date", "timestamp", "originalTimestamp"]\n'
        'sessionId = ["properties.sessionId", "context.sessionId"]\n'
        'userType = ["traits.type", "context.traits.type"]\n'
        'globalContext = "properties.globalContext"\n'
        '[mapping.events]\npage = ""\nscreen = ""\n'
        '[people]\nusers = "upsert"\naccounts = "upsert"',
        ({"type": "track", "event": "Searched", "anonymousId": "anon-7", "traits": {"groupId": "g1"},
          "properties": {"search_term": "x", "sessionId": 1679967592314}},),
    ),
    Recipe(
        "Test a mapping in your own CI",
        "Print the result once, review it, commit it. From then on a difference fails the build and is shown.\n\n"
        "    px-sidecar map --config config.toml --received 1717689600000 events.ndjson > golden.ndjson\n"
        "    px-sidecar map --config config.toml --received 1717689600000 events.ndjson --expect golden.ndjson",
        "",
    ),
)  # fmt: skip
