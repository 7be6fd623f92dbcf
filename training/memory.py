"""Memory of a long-running process: what was freed is kept, not handed back to the system."""

import ctypes
import os
import platform

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # of glibc's malloc.h


def keep_freed_memory() -> None:
    """Have glibc's malloc keep large blocks for reuse; elsewhere (musl, macOS, Windows) nothing is done.

    By default it gives every large tensor back to the kernel when it is freed, so that each step of training on a CPU
    waits for tens of thousands of fresh pages to be cleared. Blocks are also laid out in huge pages where the system
    lets programs ask for them; PyTorch reads that variable at its first allocation, so call this before.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    malloc = ctypes.CDLL(None).mallopt
    malloc(M_MMAP_THRESHOLD, 2**30)
    malloc(M_TRIM_THRESHOLD, 2**31 - 1)
    malloc(M_TOP_PAD, 2**28)
