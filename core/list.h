/*
 * list.h - intrusive doubly linked lists. A link that is in no list points to itself, so removing
 * twice is harmless.
 */
#ifndef DFL_LIST_H
#define DFL_LIST_H

#include <stdbool.h>
#include <stddef.h>

struct dfl_link {
    struct dfl_link *next, *prev;
};

#define DFL_CONTAINER(pointer, type, member)                                                       \
    ((type *)(void *)((char *)(pointer)-offsetof(type, member)))

/* Walks a list whose current element may be removed by the body (no other one may). */
#define DFL_EACH(link, head)                                                                       \
    for (struct dfl_link *link = (head)->next, *link##_next = link->next; link != (head);          \
         link = link##_next, link##_next = link->next)

static inline void dfl_link_init(struct dfl_link *l)
{
    l->next = l->prev = l;
}

static inline bool dfl_list_empty(const struct dfl_link *head)
{
    return head->next == head;
}

static inline void dfl_link_remove(struct dfl_link *l)
{
    /* NOLINTNEXTLINE(clang-analyzer-unix.Malloc): an element that was removed is in no list */
    l->prev->next = l->next;
    l->next->prev = l->prev;
    dfl_link_init(l);
}

static inline void dfl_list_prepend(struct dfl_link *head, struct dfl_link *l)
{
    dfl_link_remove(l);
    l->next = head->next;
    l->prev = head;
    head->next->prev = l;
    head->next = l;
}

static inline void dfl_list_append(struct dfl_link *head, struct dfl_link *l)
{
    dfl_link_remove(l);
    l->prev = head->prev;
    l->next = head;
    head->prev->next = l;
    head->prev = l;
}

#endif
