"""dflockd's own Python client behind the pipe that ../comers.py describes; `async` as an argument takes its other half."""

import asyncio
import inspect
import os
import sys

import dflockd_client as client

ASYNC = "async" in sys.argv[1:]
LOCK = client.AsyncDistributedLock if ASYNC else client.SyncDistributedLock
SEMAPHORE = client.AsyncDistributedSemaphore if ASYNC else client.SyncDistributedSemaphore
SERVERS = [(host, int(port)) for host, _, port in (a.rpartition(":") for a in os.environ["DFLOCK_SERVERS"].split(","))]

comers = {}


async def done(answer):
    return await answer if inspect.isawaitable(answer) else answer


def comer(kind, key, timeout, lease, **more):
    comers[key] = kind(key, acquire_timeout_s=int(timeout), lease_ttl_s=int(lease) or None, servers=SERVERS, **more)
    return comers[key]


def outcome(granted, held):
    return f"held {held.token}" if granted else "timeout"


async def lock(key, timeout, lease):
    held = comer(LOCK, key, timeout, lease)
    return outcome(await done(held.acquire()), held)


async def slot(key, timeout, lease, limit):
    held = comer(SEMAPHORE, key, timeout, lease, limit=int(limit))
    return outcome(await done(held.acquire()), held)


async def enqueue(key, lease):
    held = comer(LOCK, key, 20, lease)
    status = await done(held.enqueue())
    return outcome(True, held) if status == "acquired" else status


async def wait(key, timeout):
    return outcome(await done(comers[key].wait(int(timeout))), comers[key])


async def release(key):
    await done(comers.pop(key).release())
    return "released"


async def fence(token):
    return str(client.fence_from_token(token))


async def shard(count, key):
    return str(client.stable_hash_shard(key, int(count)))


REQUESTS = {f.__name__: f for f in (lock, slot, enqueue, wait, release, fence, shard)}


async def serve():
    print("ready", flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        name, *words = line.split()
        try:
            answer = await REQUESTS[name](*words)
        except client.DflockdError as error:
            answer = f"error {error!r}"
        print(answer, flush=True)


asyncio.run(serve())
