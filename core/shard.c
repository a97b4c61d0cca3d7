/*
 * shard.c - which server of a list a key belongs to. Owns nothing. Every client of every language
 * must agree on it, so this function never changes.
 */
#include "dflockd.h"

#include <zlib.h>

size_t dfl_shard(const char *key, size_t len, size_t count)
{
    uLong crc = crc32(0L, Z_NULL, 0);

    if (count == 1)
        return 0;
    /* zlib counts in unsigned int, and takes a NULL buffer for a reset. */
    while (len > 0) {
        uInt part = len > UINT32_C(1) << 30 ? (uInt)(UINT32_C(1) << 30) : (uInt)len;

        crc = crc32(crc, (const Bytef *)key, part);
        key += part;
        len -= part;
    }
    return (size_t)(crc % count);
}
