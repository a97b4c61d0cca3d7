/*
 * hash.h - a hash table whose nodes live inside the things they find, and which grows a few buckets
 * at a time, so that no single operation pays for all the others.
 *
 * Owns its array of buckets only. Adding cannot fail: without memory for a larger array the chains
 * get longer.
 */
#ifndef DFL_SERVER_HASH_H
#define DFL_SERVER_HASH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct hash_node {
    struct hash_node *next;
    uint64_t hash;
};

struct hash {
    struct hash_node **buckets; /* where new nodes go */
    size_t mask;
    struct hash_node **old; /* being emptied into buckets; NULL = nothing to do */
    size_t old_mask, moved; /* buckets of old below `moved` are empty */
    size_t count;
    unsigned frozen;            /* readers that walk the buckets: nothing moves meanwhile */
    unsigned given_up;          /* how often that was given up, for more nodes */
    struct hash_node *first[1]; /* the array of an empty table */
};

void hash_init(struct hash *h);
void hash_free(struct hash *h); /* the nodes are the caller's */

void hash_add(struct hash *h, struct hash_node *node, uint64_t hash);
void hash_remove(struct hash *h, struct hash_node *node);
/* The chain that has every node of this hash, others among them. */
struct hash_node *hash_chain(struct hash *h, uint64_t hash);

/*
 * Walking all nodes: freeze, look at every bucket below hash_buckets(), thaw with what freeze has
 * returned. Nodes may come and go meanwhile. When far too many come the freeze is given up, and a
 * walk that finds it so has come to nothing.
 */
unsigned hash_freeze(struct hash *h);
void hash_thaw(struct hash *h, unsigned freeze);
bool hash_is_frozen(const struct hash *h, unsigned freeze);
size_t hash_buckets(const struct hash *h);
struct hash_node *hash_bucket(const struct hash *h, size_t i);

size_t hash_bytes(const struct hash *h); /* memory of the arrays */

/* SipHash-1-3: keys come from strangers, who must not be able to choose the chain that they land
 * in. */
uint64_t hash_key(const uint64_t secret[2], const void *bytes, size_t len);

#endif
