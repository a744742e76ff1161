"""Compares `diffdisk map --json` with what nbdinfo makes of block status: the same borders, the same meaning."""

import json
import sys

ours, status, depth = (json.load(open(name)) for name in sys.argv[1:4])


def merged(extents):
    """Joins neighbours of one kind."""
    result = []
    for start, length, kind in extents:
        if result and result[-1][2] == kind:
            result[-1][1] += length
        else:
            result.append([start, length, kind])
    return result


kinds = {"data": 0, "zero": 3, "absent": 3}
want = merged((e["start"], e["length"], kinds[e["kind"]]) for e in ours)
have = merged((e["offset"], e["length"], e["type"]) for e in status)
assert have == want, f"base:allocation differs:\n{have}\n{want}"

nobody = 2**32 - 1
want = merged((e["start"], e["length"], nobody if e["kind"] == "absent" else e["depth"]) for e in ours)
have = merged((e["offset"], e["length"], e["type"]) for e in depth)
assert have == want, f"diffdisk:depth differs:\n{have}\n{want}"
assert len(have) > 5, "a map of nothing"
print(f"nbd: {len(ours)} extents agree")
