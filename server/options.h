/*
 * options.h - the server's settings: an explicit flag wins over the environment, which wins over
 * the default.
 */
#ifndef DFL_SERVER_OPTIONS_H
#define DFL_SERVER_OPTIONS_H

#include "../core/dflockd.h"

struct options {
    char *host;
    int64_t port;
    int64_t default_lease_s;
    int64_t lease_sweep_ms; /* accepted for the sake of other dflockd's scripts: leases end by
                               timer, exactly */
    int64_t gc_interval_ms, gc_max_idle_ms;
    int64_t max_locks, max_connections, max_waiters;
    int64_t read_timeout_ms, write_timeout_ms, shutdown_timeout_ms;
    bool auto_release;
    char *tls_cert, *tls_key;
    char *auth_token,
        *auth_token_file; /* after options_read: the token, whatever it came from, or NULL */
    char *fence_state_file;
    bool no_recovery_wait;
    bool debug, version, help;
};

/* DFL_OK, or DFL_INVALID with a sentence that names the flag or variable and its rule. Wipes a
 * token off argv. */
enum dfl_status options_read(struct options *o, int argc, char **argv, struct dfl_error *err);
void options_free(struct options *o);
void options_print_help(void); /* to standard output */

#endif
