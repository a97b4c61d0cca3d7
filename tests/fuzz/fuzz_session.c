/*
 * fuzz_session.c - the bundled server without its sockets: several connections whose bytes come in
 * any order and any cuts, while time passes, connections end, the server drains and memory runs
 * out.
 *
 * The first byte chooses the server's settings. Then operations: connection and kind in one byte,
 * what the kind needs behind it. The target moves bytes as the loop does, and no others.
 */
#include "input.h"
#include "scarce_memory.h"

#include "proto.h"
#include "server/session.h"

#define PEERS 6

struct world {
    struct service *service;
    struct protocol protocol;
    struct peer *peers[PEERS];
    struct dfl_now now;
    size_t newlines[PEERS], answers[PEERS];
    bool reads[PEERS]; /* its client takes its answers */
};

static bool mint_grant(void *ctx, int64_t lease_s, struct lock_token *token)
{
    uint64_t *last = ctx;

    REQUIRE(lease_s >= 1);
    token->fence = ++*last;
    token->random = *last * UINT64_C(0x9E3779B97F4A7C15);
    return true;
}

static bool mint_extend(void *ctx, int64_t lease_s)
{
    (void)ctx;
    REQUIRE(lease_s >= 1);
    return true;
}

/* What goes out is whole lines, each of them an answer that the client understands. */
static void check_answer(struct world *w, size_t i, const char *line, size_t len)
{
    static const char *const words[] = {"ok", "acquired ", "queued", "timeout", "error"};
    bool known = false;

    for (size_t n = 0; n < sizeof words / sizeof words[0]; n++)
        known = known || (len >= strlen(words[n]) && memcmp(line, words[n], strlen(words[n])) == 0);
    REQUIRE(known);
    REQUIRE(memchr(line, '\0', len) == NULL);
    w->answers[i]++;
}

static void send_out(struct world *w, size_t i)
{
    struct outbuf *o = &w->peers[i]->out;

    while (w->reads[i] && outbuf_left(o) > 0) {
        const char *at = o->bytes + o->start, *end = memchr(at, '\n', outbuf_left(o));

        if (!end)
            return; /* a slice of stats: the rest comes when there is room */
        check_answer(w, i, at, (size_t)(end - at));
        outbuf_sent(o, (size_t)(end - at) + 1);
    }
}

static void end_peer(struct world *w, size_t i)
{
    struct peer *p = w->peers[i];

    w->peers[i] = NULL;
    if (p)
        w->protocol.gone(p, w->now);
}

static void open_peer(struct world *w, size_t i)
{
    end_peer(w, i);

    size_t failed = memory_failed();

    w->peers[i] = w->protocol.open(w->protocol.ctx, w->now);
    if (!w->peers[i]) {
        REQUIRE(memory_failed() > failed);
        return;
    }
    w->peers[i]->conn = &w->peers[i];
    w->newlines[i] = w->answers[i] = 0;
    w->reads[i] = true;
}

static void run_peer(struct world *w, size_t i)
{
    struct peer *p = w->peers[i];

    w->protocol.run(p, w->now);
    if (p->broken) {
        end_peer(w, i);
        return;
    }
    send_out(w, i);
    /* One answer to three lines; an over-long line, a refused login or a silence cost one more. */
    REQUIRE(w->answers[i] <= w->newlines[i] / 3 + 1);
    if (p->closing && outbuf_left(&p->out) == 0 && w->now.ms >= p->close_at_ms)
        end_peer(w, i);
    else if (p->more && outbuf_left(&p->out) == 0 && dfl_list_empty(&p->ready))
        dfl_list_append(w->protocol.ready, &p->ready);
}

static void run_ready(struct world *w)
{
    for (int n = 0; !dfl_list_empty(w->protocol.ready); n++) {
        struct peer *p = DFL_CONTAINER(w->protocol.ready->next, struct peer, ready);

        REQUIRE(n < 100000); /* or the loop would never wait again */
        dfl_link_remove(&p->ready);
        run_peer(w, (size_t)((struct peer **)p->conn - w->peers));
    }
}

static void feed(struct world *w, size_t i, struct input *in, size_t n)
{
    struct peer *p = w->peers[i];
    char *at;
    size_t room, failed = memory_failed();

    n = n < in->left ? n : in->left;
    if (!p || p->closing || n == 0 || (p->blocked && dfl_line_reader_left(&p->in) > 4096)) {
        in->at += n;
        in->left -= n;
        return;
    }
    if (dfl_line_reader_space(&p->in, n, &at, &room) != DFL_OK) {
        REQUIRE(memory_failed() > failed);
        end_peer(w, i);
        return;
    }
    REQUIRE(room >= n);
    memcpy(at, in->at, n);
    for (size_t k = 0; k < n; k++)
        w->newlines[i] += in->at[k] == '\n';
    dfl_line_reader_added(&p->in, n);
    in->at += n;
    in->left -= n;
    if (dfl_list_empty(&p->ready))
        dfl_list_append(w->protocol.ready, &p->ready);
}

static void pass_time(struct world *w, int64_t ms)
{
    w->now.ms += ms;
    w->now.us = w->now.ms * 1000;
    w->now.wall_ms += ms;
    w->protocol.tick(w->protocol.ctx, w->now);
}

static void operate(struct world *w, struct input *in)
{
    uint8_t what = take_byte(in);
    size_t i = what % PEERS;

    switch (what / PEERS % 10) {
    case 0:
        open_peer(w, i);
        break;
    case 1:
        end_peer(w, i);
        break;
    case 2:
        pass_time(w, take_byte(in));
        break;
    case 3:
        pass_time(w, (int64_t)take_byte(in) * 1000);
        break;
    case 4:
        if (w->peers[i] && !w->peers[i]->blocked && !w->peers[i]->closing)
            w->protocol.silent(w->peers[i], w->now);
        break;
    case 5:
        w->reads[i] = !w->reads[i];
        if (w->peers[i])
            send_out(w, i);
        break;
    case 6:
        if (take_byte(in) == 'D')
            service_drain(w->service, w->now);
        else
            memory_runs_out(in);
        break;
    default:
        feed(w, i, in, 1 + (size_t)take_byte(in));
    }
    run_ready(w);
}

static void begin(struct world *w, struct input *in, uint64_t *last)
{
    uint8_t choice = take_byte(in);
    struct service_config config = {.table = {.max_locks = choice & 1 ? 3 : 1000,
                                              .max_waiters = choice & 2 ? 2 : 0,
                                              .gc_interval_ms = 5000,
                                              .gc_max_idle_ms = 60000,
                                              .auto_release = !(choice & 4),
                                              .secret = {1, 2},
                                              .mint = {last, mint_grant, mint_extend}},
                                    .default_lease_s = 33,
                                    .auth_token = choice & 8 ? "secret" : NULL};
    struct dfl_error err;

    w->now = (struct dfl_now){.ms = 1000, .us = 1000000, .wall_ms = INT64_C(1780000000000)};
    REQUIRE(service_new(&config, w->now, &w->service, &err) == DFL_OK);
    w->protocol = service_protocol(w->service);
    if (choice & 16)
        service_close_gate(w->service, w->now.ms + 10000);
    for (size_t i = 0; i < 3; i++)
        open_peer(w, i);
}

/* When every connection is gone, what they had goes too: at once, or after the longest lease. */
static void end(struct world *w, bool auto_release)
{
    for (size_t i = 0; i < PEERS; i++)
        end_peer(w, i);
    run_ready(w);
    for (int n = 0; n < 100 && auto_release && locktable_holds(w->service->table) > 0; n++)
        pass_time(w, 0);
    if (auto_release)
        REQUIRE(locktable_holds(w->service->table) == 0);
    REQUIRE(w->service->sessions == 0);
    service_free(w->service);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = {data, size};
    struct world w = {0};
    uint64_t last = 0;
    bool auto_release = size == 0 || !(data[0] & 4);

    memory_is_back();
    begin(&w, &in, &last);
    while (in.left > 0)
        operate(&w, &in);
    end(&w, auto_release);
    return 0;
}
