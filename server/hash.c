/*
 * hash.c - the table of hash.h, and the hash function for keys that strangers choose. Owns arrays
 * of pointers; never looks inside what it finds.
 */
#include "hash.h"

#include <stdlib.h>
#include <string.h>

#define MOVE_PER_STEP                                                                              \
    4 /* more than one per node added, so that a growth ends before the next begins */
#define CROWDED 8 /* nodes per bucket that a freeze is not worth */

void hash_init(struct hash *h)
{
    *h = (struct hash){0};
    h->buckets = h->first;
}

void hash_free(struct hash *h)
{
    if (h->buckets != h->first)
        free(h->buckets);
    if (h->old != h->first)
        free(h->old);
    hash_init(h);
}

/* The bucket of a hash: in the old array as long as its bucket there has not been moved. */
static struct hash_node **bucket_of(struct hash *h, uint64_t hash)
{
    if (h->old && (hash & h->old_mask) >= h->moved)
        return &h->old[hash & h->old_mask];
    return &h->buckets[hash & h->mask];
}

static void start_growing(struct hash *h)
{
    size_t size = (h->mask + 1) * 2;
    struct hash_node **buckets = calloc(size, sizeof *buckets);

    if (!buckets)
        return;
    h->old = h->buckets;
    h->old_mask = h->mask;
    h->moved = 0;
    h->buckets = buckets;
    h->mask = size - 1;
}

static void move_bucket(struct hash *h)
{
    struct hash_node *node = h->old[h->moved];

    h->old[h->moved++] = NULL;
    while (node) {
        struct hash_node *next = node->next, **to = &h->buckets[node->hash & h->mask];

        node->next = *to;
        *to = node;
        node = next;
    }
}

/* Every change pays for a little of the growth. */
static void step(struct hash *h)
{
    if (h->frozen)
        return;
    if (!h->old && h->count > h->mask)
        start_growing(h);
    for (int i = 0; i < MOVE_PER_STEP && h->old; i++) {
        move_bucket(h);
        if (h->moved > h->old_mask) {
            if (h->old != h->first)
                free(h->old);
            h->old = NULL;
        }
    }
}

void hash_add(struct hash *h, struct hash_node *node, uint64_t hash)
{
    if (h->frozen && h->count / CROWDED > h->mask) {
        h->frozen = 0;
        h->given_up++;
    }
    step(h);

    struct hash_node **bucket = bucket_of(h, hash);

    node->hash = hash;
    node->next = *bucket;
    *bucket = node;
    h->count++;
}

void hash_remove(struct hash *h, struct hash_node *node)
{
    struct hash_node **at = bucket_of(h, node->hash);

    while (*at != node)
        at = &(*at)->next;
    *at = node->next;
    h->count--;
    step(h);
}

struct hash_node *hash_chain(struct hash *h, uint64_t hash)
{
    return *bucket_of(h, hash);
}

unsigned hash_freeze(struct hash *h)
{
    h->frozen++;
    return h->given_up;
}

void hash_thaw(struct hash *h, unsigned freeze)
{
    if (freeze == h->given_up)
        h->frozen--;
}

bool hash_is_frozen(const struct hash *h, unsigned freeze)
{
    return freeze == h->given_up;
}

size_t hash_buckets(const struct hash *h)
{
    return h->mask + 1 + (h->old ? h->old_mask + 1 : 0);
}

struct hash_node *hash_bucket(const struct hash *h, size_t i)
{
    return i <= h->mask ? h->buckets[i] : h->old[i - h->mask - 1];
}

size_t hash_bytes(const struct hash *h)
{
    return hash_buckets(h) * sizeof(struct hash_node *);
}

/* ----------------------------------------------------------------- SipHash */

static uint64_t rotate(uint64_t x, unsigned bits)
{
    return x << bits | x >> (64 - bits);
}

static void sip_round(uint64_t v[4])
{
    v[0] += v[1];
    v[2] += v[3];
    v[1] = rotate(v[1], 13) ^ v[0];
    v[3] = rotate(v[3], 16) ^ v[2];
    v[0] = rotate(v[0], 32);
    v[2] += v[1];
    v[0] += v[3];
    v[1] = rotate(v[1], 17) ^ v[2];
    v[3] = rotate(v[3], 21) ^ v[0];
    v[2] = rotate(v[2], 32);
}

/* Up to eight bytes, little-endian. */
static uint64_t load(const unsigned char *p, size_t n)
{
    uint64_t x = 0;

    for (size_t i = 0; i < n; i++)
        x |= (uint64_t)p[i] << (8 * i);
    return x;
}

uint64_t hash_key(const uint64_t secret[2], const void *bytes, size_t len)
{
    const unsigned char *p = bytes;
    uint64_t v[4] = {
        secret[0] ^ UINT64_C(0x736f6d6570736575), secret[1] ^ UINT64_C(0x646f72616e646f6d),
        secret[0] ^ UINT64_C(0x6c7967656e657261), secret[1] ^ UINT64_C(0x7465646279746573)};

    for (size_t left = len; left >= 8; left -= 8, p += 8) {
        uint64_t word = load(p, 8);

        v[3] ^= word;
        sip_round(v);
        v[0] ^= word;
    }

    uint64_t last = (uint64_t)len << 56 | load(p, len & 7);

    v[3] ^= last;
    sip_round(v);
    v[0] ^= last;
    v[2] ^= 0xff;
    for (int i = 0; i < 3; i++)
        sip_round(v);
    return v[0] ^ v[1] ^ v[2] ^ v[3];
}
