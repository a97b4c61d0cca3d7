/*
 * key.c - the table of keys in use: what every session holds or awaits of a key, and which answers
 * other requests for it have to wait for. One lookup serves all of that; its cost does not depend
 * on the number of keys.
 */
#include "engine.h"

#include <stdlib.h>
#include <string.h>
#include <zlib.h>

static uint32_t hash_of(const char *bytes, size_t len)
{
    return (uint32_t)crc32(0, (const unsigned char *)bytes, (unsigned)len);
}

static void grow(struct dfl_client *c)
{
    size_t count = c->bucket_count ? c->bucket_count * 2 : 64;
    struct dfl_key **buckets = calloc(count, sizeof *buckets);

    if (buckets == NULL)
        return; /* longer chains, nothing worse */
    for (size_t i = 0; i < c->bucket_count; i++) {
        struct dfl_key *next;

        for (struct dfl_key *k = c->buckets[i]; k; k = next) {
            next = k->next;
            k->next = buckets[k->hash & (count - 1)];
            buckets[k->hash & (count - 1)] = k;
        }
    }
    free(c->buckets);
    c->buckets = buckets;
    c->bucket_count = count;
}

static struct dfl_key *find(struct dfl_client *c, const char *bytes, size_t len, uint32_t hash)
{
    if (c->bucket_count == 0)
        return NULL;
    for (struct dfl_key *k = c->buckets[hash & (c->bucket_count - 1)]; k; k = k->next) {
        if (k->hash == hash && k->len == len && memcmp(k->bytes, bytes, len) == 0)
            return k;
    }
    return NULL;
}

struct dfl_key *dfl_key_find(struct dfl_client *c, const char *bytes, size_t len)
{
    return find(c, bytes, len, hash_of(bytes, len));
}

struct dfl_key *dfl_key_get(struct dfl_client *c, const char *bytes, size_t len)
{
    uint32_t hash = hash_of(bytes, len);
    struct dfl_key *k = find(c, bytes, len, hash);

    if (k) {
        k->refs++;
        return k;
    }
    if (c->key_count >= c->bucket_count)
        grow(c);
    if (c->bucket_count == 0)
        return NULL;
    k = malloc(sizeof *k + len + 1);
    if (k == NULL)
        return NULL;
    k->client = c;
    k->hash = hash;
    k->refs = 1;
    k->len = (uint16_t)len;
    memcpy(k->bytes, bytes, len);
    k->bytes[len] = '\0';
    dfl_link_init(&k->holds);
    dfl_link_init(&k->debts);
    dfl_link_init(&k->blocked);
    k->next = c->buckets[k->hash & (c->bucket_count - 1)];
    c->buckets[k->hash & (c->bucket_count - 1)] = k;
    c->key_count++;
    return k;
}

void dfl_key_put(struct dfl_key *key)
{
    struct dfl_client *c = key->client;
    struct dfl_key **at;

    if (--key->refs > 0)
        return;
    at = &c->buckets[key->hash & (c->bucket_count - 1)];
    while (*at != key)
        at = &(*at)->next;
    *at = key->next;
    c->key_count--;
    free(key);
}
