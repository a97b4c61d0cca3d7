// dflockd's own TypeScript client, built and found by Node as `dflockd-client`, behind the pipe that ../comers.py describes.
'use strict';

const { DistributedLock, DistributedSemaphore, stableHashShard } = require('dflockd-client');

const servers = process.env.DFLOCK_SERVERS.split(',').map((address) => {
    const colon = address.lastIndexOf(':');
    return [address.slice(0, colon), Number(address.slice(colon + 1))];
});
const comers = new Map();

function comer(Kind, key, timeout, lease, more) {
    const leaseTtlS = Number(lease) || undefined;
    const made = new Kind({ key, acquireTimeoutS: Number(timeout), leaseTtlS, servers, ...more });
    comers.set(key, made);
    return made;
}

const outcome = (granted, held) => (granted ? `held ${held.token}` : 'timeout');

const requests = {
    async lock(key, timeout, lease) {
        const held = comer(DistributedLock, key, timeout, lease);
        return outcome(await held.acquire(), held);
    },
    async slot(key, timeout, lease, limit) {
        const held = comer(DistributedSemaphore, key, timeout, lease, { limit: Number(limit) });
        return outcome(await held.acquire(), held);
    },
    async enqueue(key, lease) {
        const held = comer(DistributedLock, key, 20, lease);
        const status = await held.enqueue();
        return status === 'acquired' ? outcome(true, held) : status;
    },
    async wait(key, timeout) {
        return outcome(await comers.get(key).wait(Number(timeout)), comers.get(key));
    },
    async release(key) {
        await comers.get(key).release();
        comers.delete(key);
        return 'released';
    },
    async fence() {
        return '-'; // this client shows none
    },
    async shard(count, key) {
        return String(stableHashShard(key, Number(count)));
    },
};

async function serve() {
    console.log('ready');
    for await (const line of require('readline').createInterface({ input: process.stdin })) {
        const [name, ...words] = line.split(' ');
        let answer;
        try {
            answer = await requests[name](...words);
        } catch (error) {
            answer = `error ${error}`;
        }
        console.log(answer);
    }
    process.exit(0);
}

serve();
