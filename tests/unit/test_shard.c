/* Key to server: the values that zlib.crc32(key) % servers gives in any other language. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "dflockd.h"

static const size_t counts[] = {1, 2, 3, 5, 7};

/* From python3: [zlib.crc32(key) % n for n in (1, 2, 3, 5, 7)] */
static const struct {
    const char *key;
    size_t shard[5];
} known[] = {
    {"my-key", {0, 1, 2, 2, 1}},
    {"k", {0, 1, 1, 1, 1}},
    {"job:42", {0, 0, 2, 0, 5}},
    {"schl\xC3\xBCssel-\xF0\x9F\x94\x92", {0, 1, 0, 3, 6}},
    {"0", {0, 1, 2, 4, 4}},
};

static void shards_are_those_of_every_other_client(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        for (size_t c = 0; c < sizeof counts / sizeof counts[0]; c++)
            assert_int_equal(dfl_shard(known[i].key, strlen(known[i].key), counts[c]),
                             known[i].shard[c]);
}

static void the_longest_key_has_a_shard(void **state)
{
    static const size_t expected[] = {0, 1, 0, 4, 3};
    char key[DFL_KEY_MAX];

    (void)state;
    memset(key, 'a', sizeof key);
    for (size_t c = 0; c < sizeof counts / sizeof counts[0]; c++)
        assert_int_equal(dfl_shard(key, sizeof key, counts[c]), expected[c]);
}

static void the_length_counts_not_a_final_nul(void **state)
{
    (void)state;
    assert_int_equal(dfl_shard("my-key-and-more", 6, 7), dfl_shard("my-key", 6, 7));
}

static void every_server_gets_its_part(void **state)
{
    size_t hits[5] = {0};

    (void)state;
    for (unsigned i = 0; i < 5000; i++) {
        char key[5] = {(char)('0' + i / 1000), (char)('0' + i / 100 % 10),
                       (char)('0' + i / 10 % 10), (char)('0' + i % 10), '\0'};
        size_t shard = dfl_shard(key, 4, 5);

        assert_in_range(shard, 0, 4);
        hits[shard]++;
    }
    for (size_t i = 0; i < 5; i++)
        assert_in_range(hits[i], 800, 1200);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shards_are_those_of_every_other_client),
        cmocka_unit_test(the_longest_key_has_a_shard),
        cmocka_unit_test(the_length_counts_not_a_final_nul),
        cmocka_unit_test(every_server_gets_its_part),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
