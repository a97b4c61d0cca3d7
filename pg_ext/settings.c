/*
 * settings.c - the settings `dflockd.*`: their definitions, the checks of their values, and their way to the engine.
 * Reads no file: the worker reads the login token and the TLS material that the settings name.
 */
#include "compat.h"
#include "settings.h"

#include <math.h>

double		dfl_acquire_timeout = 10.0;
int			dfl_lease_ttl = 0;
bool		dfl_release_wait = true;
int			dfl_max_session_locks = 0;
char	   *dfl_key_prefix = NULL;
double		dfl_connect_timeout = 10.0;
int			dfl_max_locks = 10000;
int			dfl_max_connections = 512;

static char *servers;
static char *auth_token_file;
static int	tls = DFL_TLS_OFF;
static char *tls_ca;
static char *tls_cert;
static char *tls_key;
static char *tls_server_name;
static double renew_ratio = 0.5;
static double keepalive = 7.0;
static double server_read_timeout = 23.0;
static int	fences = DFL_FENCES_AUTO;

static const struct config_enum_entry tls_values[] = {
	{"off", DFL_TLS_OFF, false},
	{"on", DFL_TLS_ON, false},
	{"insecure", DFL_TLS_INSECURE, false},
	{"false", DFL_TLS_OFF, true},
	{"no", DFL_TLS_OFF, true},
	{"0", DFL_TLS_OFF, true},
	{"true", DFL_TLS_ON, true},
	{"yes", DFL_TLS_ON, true},
	{"1", DFL_TLS_ON, true},
	{NULL, 0, false}
};

static const struct config_enum_entry fences_values[] = {
	{"auto", DFL_FENCES_AUTO, false},
	{"on", DFL_FENCES_ON, false},
	{"off", DFL_FENCES_OFF, false},
	{"true", DFL_FENCES_ON, true},
	{"yes", DFL_FENCES_ON, true},
	{"1", DFL_FENCES_ON, true},
	{"false", DFL_FENCES_OFF, true},
	{"no", DFL_FENCES_OFF, true},
	{"0", DFL_FENCES_OFF, true},
	{NULL, 0, false}
};

/* -------------------------------------------------------------------- checks */

static bool
check_servers(char **value, void **extra, GucSource source)
{
	struct dfl_server_address *list = NULL;
	size_t		count;
	struct dfl_error err;

	if (dfl_servers_parse(*value, &list, &count, &err) != DFL_OK)
	{
		GUC_check_errdetail("%s", err.text);
		return false;
	}
	free(list);
	return true;
}

/* A wait is for ever (-1) or takes no negative time. */
static bool
check_acquire_timeout(double *value, void **extra, GucSource source)
{
	if (*value < 0 && *value != -1)
	{
		GUC_check_errdetail("acquire_timeout is -1 (for ever) or at least 0.");
		return false;
	}
	return true;
}

/* The same rules as for a key, but may be empty. Its length in UTF-8 is checked with each key. */
static bool
check_key_prefix(char **value, void **extra, GucSource source)
{
	if (strpbrk(*value, " \t\r\n") != NULL)
	{
		GUC_check_errdetail("A key prefix must not contain space, tab, carriage return or line feed.");
		return false;
	}
	if (strlen(*value) >= DFL_KEY_MAX)
	{
		GUC_check_errdetail("A key with its prefix has at most %d bytes.", DFL_KEY_MAX);
		return false;
	}
	return true;
}

/* --------------------------------------------------------------- definitions */

static void
define_servers(void)
{
	DefineCustomStringVariable("dflockd.servers",
							   "The dflockd servers: host:port, comma separated.",
							   "With several, CRC-32 of the key says which one has it.",
							   &servers, "127.0.0.1:6388", PGC_SIGHUP, GUC_LIST_INPUT,
							   check_servers, NULL, NULL);
	DefineCustomStringVariable("dflockd.auth_token_file",
							   "File with the login token, readable by the server's user only.",
							   NULL, &auth_token_file, "", PGC_SIGHUP, GUC_SUPERUSER_ONLY, NULL, NULL, NULL);
	DefineCustomEnumVariable("dflockd.tls",
							 "Talks TLS to the servers: off, on (chain and name verified), insecure (not verified).",
							 NULL, &tls, DFL_TLS_OFF, tls_values, PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomStringVariable("dflockd.tls_ca",
							   "File with the certificates of the authorities that are trusted; empty: the system's.",
							   NULL, &tls_ca, "", PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomStringVariable("dflockd.tls_cert", "File with the client's certificate.",
							   NULL, &tls_cert, "", PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomStringVariable("dflockd.tls_key", "File with the key of the client's certificate.",
							   NULL, &tls_key, "", PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomStringVariable("dflockd.tls_server_name",
							   "Name that the servers' certificates must have; empty: the host of dflockd.servers.",
							   NULL, &tls_server_name, "", PGC_SIGHUP, 0, NULL, NULL, NULL);
}

static void
define_times(void)
{
	DefineCustomRealVariable("dflockd.connect_timeout",
							 "Time for connect, login, and any answer that does not wait.",
							 NULL, &dfl_connect_timeout, 10.0, 0.1, 3600.0, PGC_SIGHUP, GUC_UNIT_S, NULL, NULL, NULL);
	DefineCustomRealVariable("dflockd.acquire_timeout",
							 "How long acquire, lock and wait wait by default; -1: for ever.",
							 NULL, &dfl_acquire_timeout, 10.0, -1.0, (double) DFL_SECONDS_MAX, PGC_USERSET, GUC_UNIT_S,
							 check_acquire_timeout, NULL, NULL);
	DefineCustomIntVariable("dflockd.lease_ttl", "The lease that is asked for by default; 0: the server's own.",
							NULL, &dfl_lease_ttl, 0, 0, INT_MAX, PGC_USERSET, GUC_UNIT_S, NULL, NULL, NULL);
	DefineCustomRealVariable("dflockd.renew_ratio", "Part of a lease after which it is renewed.",
							 NULL, &renew_ratio, 0.5, 0.1, 0.8, PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomRealVariable("dflockd.keepalive",
							 "Longest silence on a connection that owns something.",
							 "At most a third of server_read_timeout is used.",
							 &keepalive, 7.0, 0.1, 86400.0, PGC_SIGHUP, GUC_UNIT_S, NULL, NULL, NULL);
	DefineCustomRealVariable("dflockd.server_read_timeout",
							 "The silence after which the servers close a connection; not above their --read-timeout.",
							 NULL, &server_read_timeout, 23.0, 1.0, 86400.0, PGC_SIGHUP, GUC_UNIT_S, NULL, NULL, NULL);
}

static void
define_rest(void)
{
	DefineCustomEnumVariable("dflockd.fences", "Do the servers' tokens carry fences: auto, on, off.",
							 NULL, &fences, DFL_FENCES_AUTO, fences_values, PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomBoolVariable("dflockd.release_wait", "A release waits for the server's answer.",
							 NULL, &dfl_release_wait, true, PGC_USERSET, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("dflockd.max_locks", "Holds and waits of all sessions together.",
							NULL, &dfl_max_locks, 10000, 1, 1000000, PGC_POSTMASTER, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("dflockd.max_session_locks", "Holds and waits of one session; 0: no cap.",
							NULL, &dfl_max_session_locks, 0, 0, INT_MAX, PGC_SUSET, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("dflockd.max_connections", "Sockets of the worker.",
							"One per server, per wait, and per hold that was waited for.",
							&dfl_max_connections, 512, 4, 100000, PGC_POSTMASTER, 0, NULL, NULL, NULL);
	DefineCustomStringVariable("dflockd.key_prefix", "Put before every key.",
							   "Set it for a role or database, so that they lock names of their own.",
							   &dfl_key_prefix, "", PGC_SUSET, 0, check_key_prefix, NULL, NULL);
}

void
dfl_settings_define(void)
{
	define_servers();
	define_times();
	define_rest();
	compat_reserve_prefix("dflockd");
}

/* -------------------------------------------------------------- to the engine */

static int64
to_ms(double seconds)
{
	return (int64) rint(seconds * 1000.0);
}

int64
dfl_acquire_timeout_ms(void)
{
	return dfl_acquire_timeout < 0 ? DFL_FOREVER : to_ms(dfl_acquire_timeout);
}

/* Sets the textual settings by their names. */
static enum dfl_status
gather_texts(struct dfl_settings *s, struct dfl_error *err)
{
	const struct
	{
		const char *name;
		const char *value;
	}			texts[] = {
		{"servers", servers},
		{"auth_token_file", auth_token_file},
		{"tls_ca", tls_ca},
		{"tls_cert", tls_cert},
		{"tls_key", tls_key},
		{"tls_server_name", tls_server_name}
	};

	for (size_t i = 0; i < lengthof(texts); i++)
	{
		enum dfl_status status = dfl_settings_set(s, texts[i].name, texts[i].value ? texts[i].value : "", err);

		if (status != DFL_OK)
			return status;
	}
	return DFL_OK;
}

enum dfl_status
dfl_settings_gather(struct dfl_settings *s, struct dfl_error *err)
{
	enum dfl_status status = dfl_settings_init(s);

	if (status != DFL_OK)
		return dfl_fail(err, status, "settings: %s", dfl_status_info(status)->text);
	status = gather_texts(s, err);
	if (status != DFL_OK)
	{
		dfl_settings_free(s);
		return status;
	}
	s->tls = (enum dfl_tls_mode) tls;
	s->fences = (enum dfl_fences) fences;
	s->connect_timeout_ms = to_ms(dfl_connect_timeout);
	s->acquire_timeout_ms = dfl_acquire_timeout_ms();
	s->lease_ttl_s = dfl_lease_ttl;
	s->renew_ratio = renew_ratio;
	s->keepalive_ms = to_ms(keepalive);
	s->server_read_timeout_ms = to_ms(server_read_timeout);
	s->release_wait = dfl_release_wait;
	s->max_locks = dfl_max_locks;
	s->max_connections = dfl_max_connections;
	return DFL_OK;
}
