"""Compares `diffdisk map --json` with what nbdinfo and qemu-img make of block status: the same borders, the same meaning. And what it says of
places in files is tried out: bytes read from there, and zeros elsewhere, are the disk."""

import json
import sys

ours, status, depth, qemu = (json.load(open(name)) for name in sys.argv[1:5])


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
have = merged((e["start"], e["length"], {(True, False): 0, (False, True): 3}[e["data"], e["zero"]]) for e in qemu)
assert have == want, f"qemu-img map differs:\n{have}\n{want}"

nobody = 2**32 - 1
want = merged((e["start"], e["length"], nobody if e["kind"] == "absent" else e["depth"]) for e in ours)
have = merged((e["offset"], e["length"], e["type"]) for e in depth)
assert have == want, f"diffdisk:depth differs:\n{have}\n{want}"
assert len(have) > 5, "a map of nothing"

at = 0
with open(sys.argv[5], "rb") as plain:
    for e in ours:
        assert e["start"] == at, f"{e} does not follow {at}"
        at += e["length"]
        want = plain.read(e["length"])
        have = bytes(e["length"])
        if e["kind"] == "data":
            with open(e["file"], "rb") as file:
                file.seek(e["file_offset"])
                have = file.read(e["length"]).ljust(e["length"], b"\0")
        assert have == want, f"{e}: other bytes than the disk has"
    assert not plain.read(1), "the map ends too early"
print(f"nbd: {len(ours)} extents agree with nbdinfo and qemu-img, and their places hold the bytes")
