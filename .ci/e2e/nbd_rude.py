"""A client without manners: requests that libnbd would not send. The server answers each and the connection lives."""

import sys

import nbd

h = nbd.NBD()
h.set_strict_mode(0)
h.add_meta_context("base:allocation")
h.add_meta_context("diffdisk:depth")
h.connect_uri(sys.argv[1])
size = h.get_size()
before = h.pread(1 << 20, 0)
count = 0


def refused(expected, call, *args, **kwargs):
    global count
    try:
        call(*args, **kwargs)
    except nbd.Error as error:
        assert error.errno == expected, (call.__name__, args, error)
    else:
        raise AssertionError((call.__name__, args, "was not refused"))
    assert h.pread(512, 0) == before[:512], "the connection lives"
    count += 1


refused("EINVAL", h.pread, 512, size)
refused("EINVAL", h.pread, 512, size - 100)
refused("EINVAL", h.pread, 512, 2**63)
refused("ENOSPC", h.pwrite, b"x" * 512, size)
refused("ENOSPC", h.pwrite, b"x" * 4096, size - 512)
refused("ENOSPC", h.zero, 4096, size - 512)
refused("EINVAL", h.trim, 4096, size - 512)
refused("EINVAL", h.cache, 4096, size - 512)
refused("EINVAL", h.block_status, 4096, size, lambda *args: 0)
refused("EINVAL", h.block_status, 0, 0, lambda *args: 0)
refused("EINVAL", h.pread, 512, 0, flags=nbd.CMD_FLAG_FAST_ZERO)
refused("EINVAL", h.pwrite, b"x" * 512, 0, flags=nbd.CMD_FLAG_NO_HOLE)
refused("EINVAL", h.trim, 512, 0, flags=nbd.CMD_FLAG_REQ_ONE)
refused("EINVAL", h.flush, flags=nbd.CMD_FLAG_DF)
refused("EINVAL", h.zero, 512, 0, flags=1 << 9)
refused("ENOTSUP", h.zero, 512, 1, flags=nbd.CMD_FLAG_FAST_ZERO)
assert h.pread(0, 5) == b""
# Unaligned is not bad: the smallest block is one byte.
tail = h.pread(3, size - 3)
h.pwrite(tail, size - 3)
assert h.pread(1 << 20, 0) == before
print(f"nbd: {count} bad requests, all answered")
