"""The official Python client, measured as the clients of clients.c are: microseconds per acquire + release.

    official_client.py PORT PAIRS
"""

import statistics
import sys
import time

import dflockd_client

SLICES = 20


def main():
    port, pairs = int(sys.argv[1]), int(sys.argv[2])
    lock = dflockd_client.SyncDistributedLock("bench-key", acquire_timeout_s=0, servers=[("127.0.0.1", port)])
    each = max(pairs // SLICES, 1)
    times = []
    for _ in range(SLICES + 1):
        start = time.perf_counter()
        for _ in range(each):
            if not lock.acquire():
                sys.exit("not granted")
            lock.release()
        times.append((time.perf_counter() - start) / each * 1e6)
    print(f"{statistics.median(times[1:]):.2f}")


main()
