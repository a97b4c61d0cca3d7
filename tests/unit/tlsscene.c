/*
 * tlsscene.c - the client's side of the TLS tests: a cast of certificates in a folder of their own,
 * and a client on a wire. What goes wrong here fails the test that runs.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <openssl/err.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "netpeer.h"
#include "tlsscene.h"

char scene_folder[] = "/tmp/dflockd-tls-XXXXXX";
struct cast cast;

int scene_make_cast(void **state)
{
    const struct {
        struct identity *out;
        struct identity_wish wish;
    } rows[] = {
        {&cast.ca, {.file = "ca", .common_name = "ca", .ca = true}},
        {&cast.other_ca, {.file = "other-ca", .common_name = "other ca", .ca = true}},
        {&cast.middle_ca,
         {.file = "middle-ca", .common_name = "middle ca", .issuer = &cast.ca, .ca = true}},
        {&cast.server,
         {.file = "server",
          .common_name = "s",
          .issuer = &cast.ca,
          .names = "DNS:db.test,IP:127.0.0.1,IP:::1"}},
        {&cast.by_middle,
         {.file = "by-middle",
          .common_name = "s",
          .issuer = &cast.middle_ca,
          .names = "DNS:db.test"}},
        {&cast.self_signed, {.file = "self", .common_name = "db.test", .names = "DNS:db.test"}},
        {&cast.expired,
         {.file = "expired",
          .common_name = "s",
          .issuer = &cast.ca,
          .names = "DNS:db.test",
          .from_days = -20,
          .to_days = -10}},
        {&cast.early,
         {.file = "early",
          .common_name = "s",
          .issuer = &cast.ca,
          .names = "DNS:db.test",
          .from_days = 10,
          .to_days = 20}},
        {&cast.nameless, {.file = "nameless", .common_name = "db.test", .issuer = &cast.ca}},
        {&cast.wildcard,
         {.file = "wildcard", .common_name = "s", .issuer = &cast.ca, .names = "DNS:*.db.test"}},
        {&cast.many_names,
         {.file = "many",
          .common_name = "s",
          .issuer = &cast.ca,
          .names = "DNS:a.test,DNS:b.test,DNS:c.test,email:x@y.test,DNS:d.test,DNS:e.test,DNS:f."
                   "test,DNS:g.test,DNS:h.test"}},
        {&cast.client, {.file = "client", .common_name = "worker", .issuer = &cast.ca}},
        {&cast.alien_client, {.file = "alien", .common_name = "alien", .issuer = &cast.other_ca}},
    };

    (void)state;
    if (!mkdtemp(scene_folder))
        return -1;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        identity_make(rows[i].out, scene_folder, &rows[i].wish);
    return 0;
}

int scene_free_cast(void **state)
{
    struct identity *all[] = {&cast.ca,          &cast.other_ca,    &cast.middle_ca,  &cast.server,
                              &cast.by_middle,   &cast.self_signed, &cast.expired,    &cast.early,
                              &cast.nameless,    &cast.wildcard,    &cast.many_names, &cast.client,
                              &cast.alien_client};

    (void)state;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        unlink(all[i]->cert_path);
        unlink(all[i]->key_path);
        identity_free(all[i]);
    }
    return rmdir(scene_folder);
}

struct dfl_settings scene_settings(const char *ca_path)
{
    struct dfl_settings s;

    memset(&s, 0, sizeof s);
    s.tls = DFL_TLS_ON;
    s.tls_ca = (char *)ca_path;
    s.tls_cert = s.tls_key = s.tls_server_name = "";
    return s;
}

void scene_begin(struct scene *s, const struct dfl_settings *set, const char *name)
{
    struct dfl_error err = {.status = DFL_OK};

    if (dfl_tls_new(set, &s->tls, &err) != DFL_OK)
        fail_msg("%s", err.text);
    wire_start(&s->w);
    assert_int_equal(dfl_tls_wrap(s->tls, &s->w.base, name, &s->t, &err), DFL_OK);
}

void scene_end(struct scene *s)
{
    s->t->ops->close(s->t);
    assert_int_equal(s->w.closed, 1);
    dfl_tls_release(s->tls);
    wire_free(&s->w);
    assert_true(ERR_peek_error() == 0); /* the queue may be the host's too */
}

enum dfl_io scene_shake(struct scene *s)
{
    enum dfl_io io = DFL_IO_AGAIN;

    for (int i = 0; i < 100000 && io == DFL_IO_AGAIN; i++)
        io = s->t->ops->connect(s->t, peer_at(0), 1000);
    wire_pump(&s->w);
    return io;
}

void scene_connected(struct scene *s, int version)
{
    struct dfl_settings set = scene_settings(cast.ca.cert_path);

    wire_open(&s->w, &cast.server, version, version);
    scene_begin(s, &set, "db.test");
    if (scene_shake(s) != DFL_IO_DONE)
        fail_msg("%s", s->t->error.text);
    assert_true(s->w.accepted);
}

void scene_reads(struct scene *s, const char *expected, size_t len)
{
    static char buf[70000];
    size_t all = 0, n;

    for (int i = 0; i < 200000 && all < len; i++) {
        enum dfl_io io = s->t->ops->read(s->t, buf + all, len - all, &n);

        if (io == DFL_IO_ERROR)
            fail_msg("%s", s->t->error.text);
        assert_int_not_equal(io, DFL_IO_EOF);
        if (io == DFL_IO_DONE)
            all += n;
    }
    assert_int_equal(all, len);
    assert_memory_equal(buf, expected, len);
}

void scene_writes(struct scene *s, const char *bytes, size_t len)
{
    size_t all = 0, n;

    for (int i = 0; i < 200000 && all < len; i++) {
        enum dfl_io io = s->t->ops->write(s->t, bytes + all, len - all, &n);

        if (io == DFL_IO_ERROR)
            fail_msg("%s", s->t->error.text);
        if (io == DFL_IO_DONE)
            all += n;
    }
    assert_int_equal(all, len);
    wire_pump(&s->w);
}

bool scene_wants_room(struct scene *s, bool want_write)
{
    struct dfl_interest in[DFL_INTEREST_MAX];

    assert_int_equal(s->t->ops->interest(s->t, want_write, in), 1);
    assert_true(in[0].events & DFL_READABLE);
    return in[0].events & DFL_WRITABLE;
}
