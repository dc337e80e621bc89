"""Seeded damage: to values of JSON, to lines of text, to bytes, to the headers of safetensors."""

import json
import random
import struct
from typing import Any

CODE = "marked"
"""Name of a module beside the user that leaves a mark when it runs."""
NASTY: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 0.5, 10**12, 2**63, -(2**64), 1e308, float("nan"), float("inf"), "", "x", "0",
    "a" * 5000, "../../x", "/etc/passwd", "\0", "\ud800", f"{CODE}.Marked", f"/tmp/{CODE}--{CODE}.Marked",
    f"package:{CODE}.x/y", [], [0], [-1], [3, 3], [10**12, 10**12], ["x"], [[[]]], {}, {"a": 1}, {"__class__": 1},
    "__class__", "../" * 50,
)  # fmt: skip
SCALARS = (
    "2001-99-99", "9" * 5000, "!!bool maybe", "!!int abc", "!!float abc", "!!timestamp abc", "[" * 3000, "{a: " * 200,
    "*a", "&a [*a]", "{a: 1, a: 2}", '"\\0"', '"\\ud800"', "!!binary x", "!!set {a, b}", "1_0", "1:30", "0x10", ".nan",
    "1e400", "? [a]", "- ", "|", ">", "%YAML 9.9", "---", "...", "\t", "{<<: 3}", "{[1]: 2}", "'", '"', "@x", "`x`",
    f"!!python/object/apply:{CODE}.run []", f"!!python/name:{CODE}.Marked ''", f"!!python/module:{CODE} ''",
)  # fmt: skip


def value(draw: random.Random, whole: Any, times: int) -> Any:
    """Return a copy of JSON values with some of them replaced, dropped, doubled or renamed."""
    damaged = json.loads(json.dumps(whole))
    for _ in range(times):
        places = list(_places(damaged))
        if not places:
            break
        owner, key = draw.choice(places)
        act = draw.randrange(6)
        if act == 0:
            del owner[key]
        elif act == 1 and isinstance(owner, dict):
            owner[str(draw.choice(NASTY))[:300]] = owner.pop(key)
        elif act == 2 and isinstance(owner[key], int):
            owner[key] += draw.choice((-1, 1, 10**6))
        elif act == 3 and isinstance(owner[key], list):
            owner[key] = owner[key] * 2 or [0]
        else:
            owner[key] = draw.choice(NASTY)
    return damaged


def _places(values: Any) -> list[tuple[Any, Any]]:
    keys = (
        list(values) if isinstance(values, dict) else range(len(values)) if isinstance(values, list) else ()
    )
    found = [(values, key) for key in keys]
    for key in keys:
        found += _places(values[key])
    return found


def lines(draw: random.Random, text: str) -> str:
    """Return YAML with a few values, keys or indents damaged."""
    damaged = text.splitlines()
    for _ in range(draw.randint(1, 3)):
        number = draw.randrange(len(damaged))
        line, act = damaged[number], draw.randrange(6)
        key, colon, _ = line.partition(":")
        if act == 0:
            damaged[number] = " " * draw.randint(0, 5) + line.lstrip()
        elif act == 1:
            damaged.insert(number, line)
        elif act == 2:
            damaged[number] = f"{key}{draw.choice('s_.')}{colon} {draw.choice(SCALARS)}"
        else:
            damaged[number] = f"{key}{colon} {draw.choice(SCALARS)}"
    return "\n".join(damaged) + "\n"


def data(draw: random.Random, whole: bytes) -> bytes:
    """Return bytes that are cut, changed, doubled or preceded by others."""
    damaged, act = bytearray(whole), draw.randrange(5)
    if act == 0:
        return bytes(damaged[: draw.randrange(len(damaged))])
    if act == 1:
        return draw.choice((b"\xef\xbb\xbf", b"\xff\xfe", b"\0", b"[" * 50_000, b'{"a":' * 50_000)) + whole
    for _ in range(draw.randint(1, 20)):
        place = draw.randrange(min(len(damaged), 2000))
        if act == 2:
            damaged[place] = draw.randrange(256)
        elif act == 3:
            del damaged[place : place + draw.randint(1, 9)]
        else:
            damaged[place:place] = bytes(draw.randrange(256) for _ in range(draw.randint(1, 9)))
    return bytes(damaged)


def tensors(draw: random.Random, whole: bytes) -> bytes:
    """Return a safetensors file whose header lies: sizes, offsets, dtypes, names; or whose bytes are damaged."""
    act = draw.randrange(4)
    if act == 0:
        return data(draw, whole)
    (size,) = struct.unpack("<Q", whole[:8])
    if act == 1:
        return struct.pack("<Q", draw.choice((0, 1, size - 1, size + 1, 10**9, 2**63, 2**64 - 1))) + whole[8:]
    header = json.loads(whole[8 : 8 + size])
    name = draw.choice([name for name in header if name != "__metadata__"])
    if act == 2:
        header[name] = value(draw, header[name], 2)
    else:
        other = draw.choice([name for name in header if name != "__metadata__"])
        header[name]["data_offsets"] = header[other]["data_offsets"]
        header[name]["dtype"] = draw.choice(
            ("F64", "F16", "I8", "BOOL", "F4", "X9", "U64", header[name]["dtype"])
        )
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + whole[8 + size :]
