"""Damages a VHDX in one named way. Usage: repair_damage.py FILE HOW. Knows where things are, nothing of the engine."""

import struct
import sys


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def bat_region(file):
    file.seek(0x30000)
    table = file.read(65536)
    for at in range(16, 16 + 32 * struct.unpack_from("<I", table, 8)[0], 32):
        if table[at : at + 4] == bytes.fromhex("6677C22D"):
            return struct.unpack_from("<Q", table, at + 16)[0]
    raise SystemExit("no BAT region")


def flip(file, at):
    file.seek(at)
    byte = file.read(1)[0]
    file.seek(at)
    file.write(bytes([byte ^ 0x10]))


def junk_tail(file):
    file.seek(0, 2)
    file.write(b"\xee" * (3 << 20))


def needless_place(file):
    # The first entry that has no block gets a place; it stays what it is.
    bat = bat_region(file)
    for index in range(512):
        file.seek(bat + 8 * index)
        word = struct.unpack("<Q", file.read(8))[0]
        if word in (0, 2):
            file.seek(bat + 8 * index)
            file.write(struct.pack("<Q", word | (77 << 20)))
            return
    raise SystemExit("every block is present")


def empty_log(file):
    for at in (0x10000, 0x20000):
        file.seek(at)
        header = bytearray(file.read(4096))
        header[48:64] = bytes(range(1, 17))
        header[4:8] = bytes(4)
        header[4:8] = struct.pack("<I", crc32c(header))
        file.seek(at)
        file.write(header)
    # Whatever another session left there carries another GUID.


def fill(file):
    """64 GiB of blocks of 1 MiB, all present, one after the other. The file is a hole but for its tables."""
    bat, blocks = bat_region(file), 64 << 10
    words = bytearray()
    for block in range(blocks):
        if block and block % 4096 == 0:
            words += bytes(8)
        words += struct.pack("<Q", ((8 + block) << 20) | 6)
    file.seek(bat)
    file.write(words)
    file.truncate((8 + blocks) << 20)


HOW = {
    "header1": lambda file: flip(file, 0x10010),
    "header2": lambda file: flip(file, 0x20010),
    "table1": lambda file: flip(file, 0x30020),
    "table2": lambda file: flip(file, 0x40020),
    "tail": junk_tail,
    "place": needless_place,
    "emptylog": empty_log,
    "fill": fill,
}

with open(sys.argv[1], "r+b") as target:
    HOW[sys.argv[2]](target)
