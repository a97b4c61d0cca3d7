/*
 * input.h - a fuzzer's bytes as a sequence of small decisions. Behind the end everything is 0, so
 * that any input is a whole one. Also the way in which a target says that a rule was broken.
 */
#ifndef FUZZ_INPUT_H
#define FUZZ_INPUT_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct input {
    const uint8_t *at;
    size_t left;
};

static inline uint8_t take_byte(struct input *in)
{
    if (in->left == 0)
        return 0;
    in->left--;
    return *in->at++;
}

/* A number below n (at most 256). */
static inline size_t take_below(struct input *in, size_t n)
{
    return take_byte(in) % n;
}

/* Up to the next newline or the end; the newline is taken too. */
static inline size_t take_line(struct input *in, const char **line)
{
    const uint8_t *end = in->left ? memchr(in->at, '\n', in->left) : NULL;
    size_t len = end ? (size_t)(end - in->at) : in->left;

    *line = in->left ? (const char *)in->at : "";
    in->at += len;
    in->left -= len;
    if (end) {
        in->at++;
        in->left--;
    }
    return len;
}

#define REQUIRE(rule)                                                                              \
    do {                                                                                           \
        if (!(rule)) {                                                                             \
            fprintf(stderr, "%s:%d: broken: %s\n", __FILE__, __LINE__, #rule);                     \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#endif
