"""Memory of a long-running process: what was freed is kept, not handed back to the system."""

import ctypes
import platform

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # of glibc's malloc.h
MADV_HUGEPAGE = 14  # of Linux's mman.h
HUGE_PAGE = 2**21
BLOCK, BLOCKS = 2**30, 4


def keep_freed_memory() -> None:
    """Have glibc's malloc keep large blocks for reuse; elsewhere (musl, macOS, Windows) nothing is done.

    By default it gives every large tensor back to the kernel when it is freed, so that each step of training on a CPU
    waits for tens of thousands of fresh pages to be cleared. The first 4 GiB of the heap are also laid out in huge
    pages where the system lets programs ask for them; memory that is not used costs addresses only.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc.mallopt(M_MMAP_THRESHOLD, 2**31 - 1)
    libc.mallopt(M_TRIM_THRESHOLD, -1)  # never
    libc.mallopt(M_TOP_PAD, 2**28)
    blocks = [libc.malloc(BLOCK) for _ in range(BLOCKS)]  # None where a limit forbids it
    for block in filter(None, blocks):
        start = -(-block // HUGE_PAGE) * HUGE_PAGE
        libc.madvise(start, block + BLOCK - start, MADV_HUGEPAGE)
    for block in blocks:
        libc.free(block)
