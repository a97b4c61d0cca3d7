/*
 * tlsscene.h - one TLS client on a wire, with the certificates that the tests play with.
 */
#ifndef TLSSCENE_H
#define TLSSCENE_H

#include "tlspeer.h"

/* Made once per test program, in scene_folder. */
struct cast {
    struct identity ca, other_ca, middle_ca; /* the one in the middle is signed by the first */
    struct identity server;                  /* db.test, 127.0.0.1, ::1; by the first */
    struct identity by_middle, self_signed, expired, early, nameless, wildcard, many_names;
    struct identity client, alien_client; /* by the first, by the other */
};
extern struct cast cast;
extern char scene_folder[];
int scene_make_cast(void **state);
int scene_free_cast(void **state);

/* Settings of which only the tls_* fields are used; nothing in them is owned. */
struct dfl_settings scene_settings(const char *ca_path);

struct scene {
    struct wire w;
    struct dfl_tls *tls;
    struct dfl_transport *t;
};
/* The wire is open; the client gets on it. */
void scene_begin(struct scene *s, const struct dfl_settings *set, const char *name);
void scene_end(struct scene *s);
/* Both in one for a client of db.test that trusts our CA, handshake included. */
void scene_connected(struct scene *s, int version);
/* The handshake, until it is not AGAIN. */
enum dfl_io scene_shake(struct scene *s);

void scene_reads(struct scene *s, const char *expected, size_t len);
void scene_writes(struct scene *s, const char *bytes, size_t len);
bool scene_wants_room(struct scene *s, bool want_write); /* DFL_WRITABLE in its interest */

#endif
