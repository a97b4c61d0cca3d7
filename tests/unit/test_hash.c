/*
 * The hash table while it grows, while somebody walks it, and its hash function against OpenSSL's
 * SipHash.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <openssl/evp.h>
#include <string.h>
#if OPENSSL_VERSION_NUMBER >= 0x30000000L /* before, it knows SipHash with other numbers of rounds only */
#define WITH_SIPHASH
#include <openssl/core_names.h>
#include <openssl/params.h>
#endif

#include "hash.h"

#define MANY 50000

static struct hash_node nodes[MANY];

static uint64_t hash_of(size_t i)
{
    return (uint64_t)i * UINT64_C(0x9e3779b97f4a7c15) >> 7;
}

static bool has(struct hash *h, size_t i)
{
    for (struct hash_node *n = hash_chain(h, hash_of(i)); n; n = n->next)
        if (n == &nodes[i])
            return true;
    return false;
}

static void test_growth(void **state)
{
    struct hash h;
    size_t bytes, steps = 0;

    (void)state;
    hash_init(&h);
    for (size_t i = 0; i < MANY; i++) {
        bytes = hash_bytes(&h);
        hash_add(&h, &nodes[i], hash_of(i));
        steps += hash_bytes(&h) != bytes;
        assert_true(has(&h, i));
        assert_true(has(&h, i / 2));
    }
    assert_true(steps > 15); /* it has grown all the way, and let the old arrays go */
    assert_true(hash_bytes(&h) <= 3 * 65536 * sizeof(void *));
    for (size_t i = 0; i < MANY; i++)
        assert_true(has(&h, i));
    for (size_t i = 0; i < MANY; i += 2)
        hash_remove(&h, &nodes[i]);
    for (size_t i = 0; i < MANY; i++)
        assert_int_equal(has(&h, i), i % 2);
    assert_int_equal(h.count, MANY / 2);
    hash_free(&h);
}

static void test_walk_while_it_changes(void **state)
{
    static unsigned char seen[MANY];
    struct hash h;

    (void)state;
    for (size_t start = 900; start < 1200; start += 7) { /* in the middle of a growth and not */
        size_t next = start;

        memset(seen, 0, sizeof seen);
        hash_init(&h);
        for (size_t i = 0; i < start; i++)
            hash_add(&h, &nodes[i], hash_of(i));
        unsigned freeze = hash_freeze(&h);

        for (size_t b = 0; b < hash_buckets(&h); b++) {
            for (struct hash_node *n = hash_bucket(&h, b); n; n = n->next)
                seen[n - nodes]++;
            hash_add(&h, &nodes[next], hash_of(next));
            next++;
        }
        assert_true(hash_is_frozen(&h, freeze));
        hash_thaw(&h, freeze);
        for (size_t i = 0; i < next; i++) {
            assert_true(has(&h, i));
            assert_true(i < start ? seen[i] == 1 : seen[i] <= 1);
        }
        hash_free(&h);
    }
}

/* Readers that never end: the table grows all the same, and they are told. */
static void test_a_freeze_is_given_up(void **state)
{
    struct hash h;
    size_t longest = 0;

    (void)state;
    hash_init(&h);

    unsigned first = hash_freeze(&h), second;

    hash_freeze(&h);
    for (size_t i = 0; i < MANY / 2; i++)
        hash_add(&h, &nodes[i], hash_of(i));
    assert_false(hash_is_frozen(&h, first));
    second = hash_freeze(&h);
    hash_thaw(&h, first);
    hash_thaw(&h, first);
    assert_true(hash_is_frozen(&h, second));
    for (size_t i = MANY / 2; i < MANY; i++)
        hash_add(&h, &nodes[i], hash_of(i));
    for (size_t b = 0; b < hash_buckets(&h); b++) {
        size_t n = 0;

        for (struct hash_node *node = hash_bucket(&h, b); node; node = node->next)
            n++;
        longest = n > longest ? n : longest;
    }
    assert_true(longest < 40);
    for (size_t i = 0; i < MANY; i++)
        assert_true(has(&h, i));
    hash_thaw(&h, second);
    hash_free(&h);
}

#ifdef WITH_SIPHASH
/* The same by OpenSSL, with one round per word and three at the end. */
static uint64_t siphash(const uint64_t secret[2], const void *bytes, size_t len)
{
    unsigned c = 1, d = 3;
    size_t size = 8, out_len;
    unsigned char key[16], out[8];
    OSSL_PARAM params[] = {OSSL_PARAM_construct_size_t(OSSL_MAC_PARAM_SIZE, &size),
                           OSSL_PARAM_construct_uint(OSSL_MAC_PARAM_C_ROUNDS, &c),
                           OSSL_PARAM_construct_uint(OSSL_MAC_PARAM_D_ROUNDS, &d),
                           OSSL_PARAM_construct_end()};
    EVP_MAC *mac = EVP_MAC_fetch(NULL, "SIPHASH", NULL);
    EVP_MAC_CTX *ctx = EVP_MAC_CTX_new(mac);
    uint64_t hash = 0;

    for (int i = 0; i < 16; i++)
        key[i] = (unsigned char)(secret[i / 8] >> (8 * (i % 8)));
    assert_int_equal(EVP_MAC_init(ctx, key, sizeof key, params), 1);
    assert_int_equal(EVP_MAC_update(ctx, bytes, len), 1);
    assert_int_equal(EVP_MAC_final(ctx, out, &out_len, sizeof out), 1);
    EVP_MAC_CTX_free(ctx);
    EVP_MAC_free(mac);
    for (int i = 0; i < 8; i++)
        hash |= (uint64_t)out[i] << (8 * i);
    return hash;
}

static void test_siphash(void **state)
{
    const uint64_t secret[2] = {UINT64_C(0x0706050403020100), UINT64_C(0x0f0e0d0c0b0a0908)};
    unsigned char text[300];

    (void)state;
    for (size_t i = 0; i < sizeof text; i++)
        text[i] = (unsigned char)(i * 7 + 3);
    for (size_t len = 0; len <= sizeof text; len++)
        assert_int_equal(hash_key(secret, text, len), siphash(secret, text, len));
}
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_growth),
        cmocka_unit_test(test_walk_while_it_changes),
        cmocka_unit_test(test_a_freeze_is_given_up),
#ifdef WITH_SIPHASH
        cmocka_unit_test(test_siphash),
#endif
    };

    return cmocka_run_group_tests_name("hash", tests, NULL, NULL);
}
