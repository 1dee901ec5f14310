"""A disk under test: a scripted life of a ledger on SQLite, on a disk that fails and loses what was not synced.

Every system call of the life that touches the ledger's files can fail, be short, or be the last of its process. From a
record of the calls a *power cut* is made at any moment: the disk is rebuilt from what successful syncs covered, with
any subset of the later sectors, sizes and names. Afterwards a judge opens the ledger and compares it with what the
callers were told.

    python -m tests.storage.disk --cuts 10000

The calls are recorded and failed by a preloaded library (`shim.c`), which a C compiler builds in a second. A system
call costs hardly more than without it, so a life takes a tenth of a second; `strace` would take seconds, a FUSE file
system needs privileges and another package, and a VFS of SQLite would not see the calls that SQLite does not make. The
library is below the driver and SQLite, and above the kernel: all of their code is the real one. The shared memory of
the WAL's index is mapped, not written, and so not recorded; SQLite builds it anew after a crash.

Without a C compiler the disk cannot run, and says so. `pip install ziglang` brings one.
"""
