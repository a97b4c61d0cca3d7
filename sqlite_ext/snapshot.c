/*
 * snapshot.c - the rows of a virtual table as they were at one moment. Plain memory, no SQLite.
 */
#include "snapshot.h"

#include <stdlib.h>
#include <string.h>

struct sq_snapshot *sq_snapshot_new(size_t columns)
{
    struct sq_snapshot *s = calloc(1, sizeof *s);

    if (s) {
        s->users = 1;
        s->columns = columns;
    }
    return s;
}

struct sq_snapshot *sq_snapshot_retain(struct sq_snapshot *s)
{
    s->users++;
    return s;
}

void sq_snapshot_release(struct sq_snapshot *s)
{
    if (!s || --s->users > 0)
        return;
    for (size_t i = 0; i < s->rows * s->columns; i++)
        if (s->cells[i].type == SQ_TEXT)
            free(s->cells[i].value.text);
    free(s->cells);
    free(s);
}

void sq_snapshot_row(struct sq_snapshot *s)
{
    if (s->failed)
        return;
    if (s->rows == s->cap) {
        size_t cap = s->cap ? s->cap * 2 : 16;
        struct sq_cell *cells = realloc(s->cells, cap * s->columns * sizeof *cells);
        if (!cells) {
            s->failed = true;
            return;
        }
        s->cells = cells;
        s->cap = cap;
    }
    memset(s->cells + s->rows * s->columns, 0, s->columns * sizeof *s->cells);
    s->rows++;
}

static struct sq_cell *cell(struct sq_snapshot *s, size_t column)
{
    return &s->cells[(s->rows - 1) * s->columns + column];
}

void sq_snapshot_integer(struct sq_snapshot *s, size_t column, int64_t value)
{
    if (!s->failed)
        *cell(s, column) = (struct sq_cell){SQ_INTEGER, {.integer = value}};
}

void sq_snapshot_real(struct sq_snapshot *s, size_t column, double value)
{
    if (!s->failed)
        *cell(s, column) = (struct sq_cell){SQ_REAL, {.real = value}};
}

void sq_snapshot_text(struct sq_snapshot *s, size_t column, const char *text, size_t len)
{
    if (s->failed)
        return;
    char *copy = malloc(len + 1);
    if (!copy) {
        s->failed = true;
        return;
    }
    memcpy(copy, text, len);
    copy[len] = '\0';
    *cell(s, column) = (struct sq_cell){SQ_TEXT, {.text = copy}};
}

void sq_snapshot_string(struct sq_snapshot *s, size_t column, const char *text)
{
    if (text && *text)
        sq_snapshot_text(s, column, text, strlen(text));
}
