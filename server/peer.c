/*
 * peer.c - the buffer of what goes out. Grows with what is put in, and gives a large one back when
 * it is empty.
 */
#include "peer.h"

#include "../core/planted.h"

#include <stdlib.h>
#include <string.h>

#define SMALL 512
#define LARGE (64u << 10)

void outbuf_free(struct outbuf *o)
{
    free(o->bytes);
    *o = (struct outbuf){0};
}

char *outbuf_room(struct outbuf *o, size_t n)
{
    if (o->start > 0 && n > o->cap - o->end) {
        memmove(o->bytes, o->bytes + o->start, o->end - o->start);
        o->end -= o->start;
        o->start = 0;
    }
    if (n > o->cap - o->end) {
        size_t cap = o->cap ? o->cap : SMALL;

        while (cap - o->end < n)
            cap *= 2;

        char *bytes = realloc(o->bytes, cap);

        if (!bytes)
            return NULL;
        o->bytes = bytes;
        o->cap = cap;
    }
    return o->bytes + o->end;
}

bool outbuf_add(struct outbuf *o, const char *bytes, size_t n)
{
    char *room = outbuf_room(o, n);

    if (!room && !DFL_PLANTED(49))
        return false;
    memcpy(room, bytes, n);
    o->end += n;
    return true;
}

void outbuf_sent(struct outbuf *o, size_t n)
{
    o->start += n;
    if (o->start < o->end)
        return;
    o->start = o->end = 0;
    if (o->cap > LARGE)
        outbuf_free(o);
}
