/*
 * clients.c - the clients that `make bench` compares: a raw blocking socket, SQL through SQLite, and many sockets at once.
 *
 *   clients raw PORT PAIRS                          acquire + release over one blocking socket
 *   clients sqlite EXTENSION PORT PAIRS [SETTING=VALUE ...] [holds=N]
 *                                                   the same by SQL, with N other holds in the process
 *   clients idle EXTENSION PORT HOLDS SECONDS       CPU that the renewal of HOLDS leases costs
 *   clients load PORT CLIENTS SECONDS lock|echo     pairs per second of CLIENTS sockets in one thread
 *   clients turns PORT TURNS PAUSE_MS LINED_UP_US   hand-over of one lock between two processes that both want it, each
 *                                                   keeping it for PAUSE_MS: from one's release to the other's grant
 *   clients crowd PROCESSES SECONDS                 turns per second of processes that ask one other process for nothing,
 *                                                   by pipes: what waking so many costs anybody on this machine
 *   clients hold PORT KEYS                          takes KEYS locks, prints how many it got, and keeps them until
 *                                                   its input ends
 *
 * Each prints one number: microseconds per pair (median of slices) or hand-over (median), per cent of a core, or pairs
 * or turns per second.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sqlite3.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define SLICES 20

static void die(const char *what)
{
    fprintf(stderr, "clients: %s: %s\n", what, strerror(errno));
    exit(1);
}

static double now_us(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

static int dial(int port)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    int fd = socket(AF_INET, SOCK_STREAM, 0), on = 1;

    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to) != 0)
        die("connect");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return fd;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

/* Runs pairs in slices and prints the median slice's time per pair: one descheduling does not count. */
static void measure(long pairs, void (*pair)(void *), void *arg)
{
    double slice[SLICES];
    long each = pairs / SLICES > 0 ? pairs / SLICES : 1;

    for (long i = 0; i < each; i++)
        pair(arg);
    for (int s = 0; s < SLICES; s++) {
        double start = now_us();

        for (long i = 0; i < each; i++)
            pair(arg);
        slice[s] = (now_us() - start) / (double)each;
    }
    qsort(slice, SLICES, sizeof slice[0], by_value);
    printf("%.2f\n", slice[SLICES / 2]);
}

/* --------------------------------------------------------------------- raw */

static size_t ask(int fd, const char *request, size_t len, char *answer, size_t cap)
{
    size_t got = 0;

    if (send(fd, request, len, MSG_NOSIGNAL) != (ssize_t)len)
        die("send");
    do {
        ssize_t n = recv(fd, answer + got, cap - got, 0);

        if (n <= 0)
            die("recv");
        got += (size_t)n;
    } while (answer[got - 1] != '\n');
    return got;
}

static void raw_pair(void *arg)
{
    int fd = *(int *)arg;
    char answer[128], release[64];
    int len;

    ask(fd, "l\nbench-key\n0\n", 14, answer, sizeof answer);
    if (memcmp(answer, "ok ", 3) != 0)
        die("not granted");
    len = snprintf(release, sizeof release, "r\nbench-key\n%.32s\n", answer + 3);
    ask(fd, release, (size_t)len, answer, sizeof answer);
}

/* ------------------------------------------------------------------ sqlite */

struct sql {
    sqlite3 *db;
    sqlite3_stmt *acquire, *release;
};

static void sql_die(sqlite3 *db, const char *what)
{
    fprintf(stderr, "clients: %s: %s\n", what, sqlite3_errmsg(db));
    exit(1);
}

static void sql_run(sqlite3 *db, const char *sql)
{
    if (sqlite3_exec(db, sql, NULL, NULL, NULL) != SQLITE_OK)
        sql_die(db, sql);
}

static void sql_open(struct sql *s, const char *extension, const char *port)
{
    char sql[200];

    if (sqlite3_open(":memory:", &s->db) != SQLITE_OK)
        sql_die(s->db, "open");
    sqlite3_enable_load_extension(s->db, 1);
    if (sqlite3_load_extension(s->db, extension, NULL, NULL) != SQLITE_OK)
        sql_die(s->db, extension);
    snprintf(sql, sizeof sql, "SELECT dflock_config('servers', '127.0.0.1:%s')", port);
    sql_run(s->db, sql);
}

static void sql_prepare(struct sql *s)
{
    if (sqlite3_prepare_v2(s->db, "SELECT dflock_acquire('bench-key', 0)", -1, &s->acquire, NULL) != SQLITE_OK ||
        sqlite3_prepare_v2(s->db, "SELECT dflock_release('bench-key')", -1, &s->release, NULL) != SQLITE_OK)
        sql_die(s->db, "prepare");
}

static void sql_step(struct sql *s, sqlite3_stmt *statement)
{
    if (sqlite3_step(statement) != SQLITE_ROW || sqlite3_column_int(statement, 0) != 1)
        sql_die(s->db, "step");
    sqlite3_reset(statement);
}

static void sql_pair(void *arg)
{
    struct sql *s = arg;

    sql_step(s, s->acquire);
    sql_step(s, s->release);
}

static void sql_take(struct sql *s, long holds)
{
    char sql[256];

    snprintf(sql, sizeof sql,
             "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < %ld) "
             "SELECT count(dflock_lock('other-' || i, 0, 3600)) FROM n",
             holds);
    if (holds > 0)
        sql_run(s->db, sql);
}

static int run_sqlite(int argc, char **argv)
{
    struct sql s;
    long holds = 0;

    sql_open(&s, argv[2], argv[3]);
    for (int i = 5; i < argc; i++) {
        char sql[200], *value = strchr(argv[i], '=');

        if (value == NULL)
            return 2;
        *value++ = '\0';
        if (strcmp(argv[i], "holds") == 0) {
            holds = atol(value);
            continue;
        }
        snprintf(sql, sizeof sql, "SELECT dflock_config('%s', '%s')", argv[i], value);
        sql_run(s.db, sql);
    }
    sql_take(&s, holds);
    sql_prepare(&s);
    measure(atol(argv[4]), sql_pair, &s);
    sqlite3_finalize(s.acquire);
    sqlite3_finalize(s.release);
    sqlite3_close(s.db);
    return 0;
}

static double cpu_us(void)
{
    struct rusage u;

    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) * 1e6 +
           (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec);
}

static int run_idle(char **argv)
{
    struct sql s;
    char sql[256];
    long holds = atol(argv[4]);
    unsigned seconds = (unsigned)atol(argv[5]);
    double cpu, start;

    sql_open(&s, argv[2], argv[3]);
    snprintf(sql, sizeof sql,
             "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < %ld) "
             "SELECT count(dflock_lock('other-' || i, 0, 33)) FROM n",
             holds);
    sql_run(s.db, sql);
    cpu = cpu_us();
    start = now_us();
    sleep(seconds);
    printf("%.3f\n", (cpu_us() - cpu) / (now_us() - start) * 100);
    snprintf(sql, sizeof sql, "SELECT 1 / (count(*) = %ld) FROM dflock_locks WHERE state = 'held'", holds);
    sql_run(s.db, sql);
    sqlite3_close(s.db);
    return 0;
}

/* -------------------------------------------------------------------- load */

struct peer {
    int fd;
    bool holding;
    char key[32], token[33], request[96], answer[128];
    size_t request_len, got;
};

static bool echo_mode;

static void peer_send(struct peer *p)
{
    if (p->holding)
        p->request_len = (size_t)snprintf(p->request, sizeof p->request, "r\n%s\n%s\n", p->key, p->token);
    else
        p->request_len = (size_t)snprintf(p->request, sizeof p->request, "l\n%s\n0\n", p->key);
    p->got = 0;
    if (send(p->fd, p->request, p->request_len, MSG_NOSIGNAL) != (ssize_t)p->request_len)
        die("send");
}

/* True when the answer is whole; then the next request is sent. */
static bool peer_read(struct peer *p)
{
    ssize_t n = recv(p->fd, p->answer + p->got, sizeof p->answer - p->got, 0);

    if (n <= 0)
        die("recv");
    p->got += (size_t)n;
    if (echo_mode ? p->got < p->request_len : p->answer[p->got - 1] != '\n')
        return false;
    if (!echo_mode && !p->holding) {
        if (memcmp(p->answer, "ok ", 3) != 0)
            die("not granted");
        memcpy(p->token, p->answer + 3, 32);
    }
    p->holding = !p->holding;
    peer_send(p);
    return true;
}

static int run_load(char **argv)
{
    int port = atoi(argv[2]), count = atoi(argv[3]), ep = epoll_create1(0);
    double seconds = atof(argv[4]), start, end;
    struct peer *peers = calloc((size_t)count, sizeof *peers);
    long answers = 0;

    echo_mode = strcmp(argv[5], "echo") == 0;
    if (peers == NULL || ep < 0)
        die("setup");
    for (int i = 0; i < count; i++) {
        struct epoll_event ev = {.events = EPOLLIN, .data.ptr = &peers[i]};

        peers[i].fd = dial(port);
        snprintf(peers[i].key, sizeof peers[i].key, "load-%d", i);
        memset(peers[i].token, 'f', 32);
        epoll_ctl(ep, EPOLL_CTL_ADD, peers[i].fd, &ev);
    }
    for (int i = 0; i < count; i++)
        peer_send(&peers[i]);
    start = now_us();
    end = start + seconds * 1e6;
    while (now_us() < end) {
        struct epoll_event ready[256];
        int n = epoll_wait(ep, ready, 256, 1000);

        for (int i = 0; i < n; i++)
            answers += peer_read(ready[i].data.ptr);
    }
    printf("%.0f\n", (double)answers / 2 / ((now_us() - start) / 1e6));
    return 0;
}

/* -------------------------------------------------------------------- hold */

/* Many requests in one write; no more than the server's answers find room for. */
#define HOLD_BATCH 200

static long count_grants(int fd, long expected)
{
    static char answers[64 << 10];
    long lines = 0, granted = 0;
    bool at_start = true;

    while (lines < expected) {
        ssize_t n = recv(fd, answers, sizeof answers, 0);

        if (n <= 0)
            die("recv");
        for (ssize_t i = 0; i < n; i++) {
            granted += at_start && answers[i] == 'o';
            at_start = answers[i] == '\n';
            lines += at_start;
        }
    }
    return granted;
}

static int run_hold(char **argv)
{
    int fd = dial(atoi(argv[2]));
    long keys = atol(argv[3]), granted = 0;

    for (long next = 0; next < keys;) {
        static char requests[HOLD_BATCH * 40];
        size_t len = 0;
        long first = next;

        for (; next < keys && next - first < HOLD_BATCH; next++)
            len += (size_t)snprintf(requests + len, sizeof requests - len, "l\nkey-%016ld\n0 3600\n", next);
        if (send(fd, requests, len, MSG_NOSIGNAL) != (ssize_t)len)
            die("send");
        granted += count_grants(fd, next - first);
    }
    printf("%ld\n", granted);
    fflush(stdout);
    while (getchar() != EOF)
        continue;
    return 0;
}

/* ------------------------------------------------------------------- turns */

struct turn {
    double asked, got, gave;
    int who;
};

static void take_turns(int port, int who, struct turn *turns, long count, unsigned pause_us)
{
    int fd = dial(port);
    char answer[128], release[64];

    for (struct turn *t = turns; t < turns + count; t++) {
        int len;

        t->who = who;
        t->asked = now_us();
        ask(fd, "l\nturns\n60\n", 11, answer, sizeof answer);
        t->got = now_us();
        if (memcmp(answer, "ok ", 3) != 0)
            die("not granted");
        len = snprintf(release, sizeof release, "r\nturns\n%.32s\n", answer + 3);
        usleep(pause_us);
        t->gave = now_us();
        ask(fd, release, (size_t)len, answer, sizeof answer);
    }
    close(fd);
}

static int by_grant(const void *a, const void *b)
{
    return by_value(&((const struct turn *)a)->got, &((const struct turn *)b)->got);
}

/* Only turns count for which the other one had asked long enough before. */
static double hand_over_us(struct turn *turns, long count, double lined_up_us)
{
    double *took = calloc((size_t)count, sizeof *took);
    long n = 0;

    if (took == NULL)
        die("memory");
    qsort(turns, (size_t)count, sizeof *turns, by_grant);
    for (long i = 1; i < count; i++)
        if (turns[i].who != turns[i - 1].who && turns[i].asked < turns[i - 1].gave - lined_up_us)
            took[n++] = turns[i].got - turns[i - 1].gave;
    if (n < count / 2)
        die("too few contended turns");
    qsort(took, (size_t)n, sizeof *took, by_value);
    return took[n / 2];
}

static int run_turns(char **argv)
{
    int port = atoi(argv[2]), status;
    long each = atol(argv[3]) / 2;
    unsigned pause_us = 1000 * (unsigned)atol(argv[4]);
    struct turn *turns = mmap(NULL, (size_t)(2 * each) * sizeof *turns, PROT_READ | PROT_WRITE,
                              MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pid_t child;

    if (turns == MAP_FAILED)
        die("mmap");
    child = fork();
    if (child < 0)
        die("fork");
    take_turns(port, child == 0, child == 0 ? turns : turns + each, each, pause_us);
    if (child == 0)
        return 0;
    if (waitpid(child, &status, 0) != child || status != 0)
        die("the other one failed");
    printf("%.2f\n", hand_over_us(turns, 2 * each, atof(argv[5])));
    return 0;
}

/* ------------------------------------------------------------------- crowd */

#define CROWD_MAX 2000
#define CROWD_MEMORY (16 << 10) /* that each touches in a turn; a backend's statement touches more */

struct crowd {
    atomic_bool go, stop;
    atomic_long turns;
    int ask[2], answer[CROWD_MAX][2];
    pid_t pid[CROWD_MAX];
};

/* Answers all that have asked, until it is killed. */
static void crowd_hub(struct crowd *c)
{
    short asked[1024];
    ssize_t n;

    while ((n = read(c->ask[0], asked, sizeof asked)) > 0)
        for (size_t i = 0; i < (size_t)n / sizeof asked[0]; i++)
            if (write(c->answer[asked[i]][1], "", 1) != 1)
                die("write");
}

static void crowd_member(struct crowd *c, short self)
{
    static volatile char memory[CROWD_MEMORY];
    long turns = 0;
    char answer;

    while (!c->go)
        usleep(1000);
    for (; !c->stop; turns++) {
        if (write(c->ask[1], &self, sizeof self) != sizeof self || read(c->answer[self][0], &answer, 1) != 1)
            die("hub");
        for (size_t i = 0; i < sizeof memory; i += 64)
            memory[i]++;
    }
    c->turns += turns;
}

/* fork() with the child's part in it. */
static pid_t crowd_fork(struct crowd *c, int self)
{
    pid_t pid = fork();

    if (pid < 0)
        die("fork");
    if (pid > 0)
        return pid;
    if (self < 0)
        crowd_hub(c);
    else
        crowd_member(c, (short)self);
    _exit(0);
}

static int run_crowd(char **argv)
{
    int count = atoi(argv[2]), status;
    struct crowd *c = mmap(NULL, sizeof *c, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    double start;
    pid_t hub;

    if (c == MAP_FAILED || count < 1 || count > CROWD_MAX || pipe(c->ask) != 0)
        die("setup");
    for (int i = 0; i < count; i++)
        if (pipe(c->answer[i]) != 0)
            die("pipe");
    hub = crowd_fork(c, -1);
    for (int i = 0; i < count; i++)
        c->pid[i] = crowd_fork(c, i);
    start = now_us();
    c->go = true;
    usleep((useconds_t)(atof(argv[3]) * 1e6));
    c->stop = true;
    for (int i = 0; i < count; i++)
        if (waitpid(c->pid[i], &status, 0) != c->pid[i] || status != 0)
            die("a process failed");
    printf("%.0f\n", (double)c->turns / ((now_us() - start) / 1e6));
    kill(hub, SIGKILL);
    waitpid(hub, &status, 0);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc == 4 && strcmp(argv[1], "hold") == 0)
        return run_hold(argv);
    if (argc == 4 && strcmp(argv[1], "raw") == 0) {
        int fd = dial(atoi(argv[2]));

        measure(atol(argv[3]), raw_pair, &fd);
        return 0;
    }
    if (argc >= 5 && strcmp(argv[1], "sqlite") == 0)
        return run_sqlite(argc, argv);
    if (argc == 6 && strcmp(argv[1], "idle") == 0)
        return run_idle(argv);
    if (argc == 4 && strcmp(argv[1], "crowd") == 0)
        return run_crowd(argv);
    if (argc == 6 && strcmp(argv[1], "turns") == 0)
        return run_turns(argv);
    if (argc == 6 && strcmp(argv[1], "load") == 0)
        return run_load(argv);
    fprintf(stderr, "usage: see the first lines of tests/bench/clients.c\n");
    return 2;
}
