/*
 * worker.c - the background worker: one engine for the whole PostgreSQL server, driven by one wait event set of three
 * entries (latch, death of the postmaster, the engine's epoll descriptor).
 *
 * Nothing here waits but that set, and no file is read but at start, reload and the signal to end. It takes no lock that
 * a backend can hold, and takes part in ProcSignalBarrier at every turn of its loop.
 */
#include "compat.h"
#include "settings.h"
#include "worker.h"

#include <sys/resource.h>
#include <unistd.h>

#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/fd.h"
#include "utils/memutils.h"
#include "utils/pidfile.h"
#include "utils/ps_status.h"

#define DRAIN_MS 10000			/* how long a stopping cluster's backends are waited for */
#define FLUSH_MS 1000			/* and then the answers to the last releases */
#define HEARTBEAT_MS 1000		/* while somebody waits */
#define SOCKET_RESERVE 64		/* descriptors left to everything else in this process */
#define POLL_MS 10				/* between looks where there is no descriptor to nest */
#define LOG_LINES 32

struct dfl_client *dfl_worker_client;
uint64		dfl_worker_number;
struct dfl_error dfl_worker_unusable;

static struct dfl_fence_book *fence_book;
static struct dfl_wait *watched;
static struct dfl_wait_round wait_round;
static WaitEventSet *wait_set;
static int64 socket_limit;
static int64 sockets;
static uint32 wait_event;

/* --------------------------------------------------------------------- the log */

/* The engine must not be left by a longjmp: its lines are kept until it has returned. */
static struct
{
	enum dfl_level level;
	char		text[DFL_ERROR_MAX];
}			lines[LOG_LINES];
static uint32 line_count;
static uint32 lines_dropped;

static void
keep_line(void *ctx, enum dfl_level level, const char *text)
{
	if (line_count == LOG_LINES)
	{
		lines_dropped++;
		return;
	}
	lines[line_count].level = level;
	strlcpy(lines[line_count].text, text, DFL_ERROR_MAX);
	line_count++;
}

static void
write_lines(void)
{
	uint32		n = line_count;
	uint32		dropped = lines_dropped;

	line_count = 0;
	lines_dropped = 0;
	for (uint32 i = 0; i < n; i++)
		ereport(lines[i].level == DFL_LOG_DEBUG ? DEBUG1 : lines[i].level == DFL_LOG_INFO ? LOG : WARNING,
				(errmsg_internal("dflockd: %s", lines[i].text)));
	if (dropped > 0)
		ereport(LOG, (errmsg_internal("dflockd: %u more lines at the same moment", dropped)));
}

/* ------------------------------------------------------------ what the engine asks */

static void
watch(void *ctx, int fd, unsigned events, void *tag)
{
	/* Without memory the descriptor stays unwatched: its connection ends by its deadline, and says so. */
	if (dfl_wait_watch(watched, fd, events, tag) != DFL_OK && events != 0)
		keep_line(NULL, DFL_LOG_WARNING, "cannot watch a socket: out of memory or descriptors");
}

static bool
take_socket(void *ctx)
{
	if (sockets >= socket_limit)
		return false;
	sockets++;
	ReserveExternalFD();
	return true;
}

static void
give_socket(void *ctx)
{
	sockets--;
	ReleaseExternalFD();
}

static void
ready(void *arg, void *tag, unsigned events)
{
	dfl_client_ready(dfl_worker_client, tag, events, dfl_clock());
}

/* -------------------------------------------------------------------- settings */

/* What a client is made of. */
struct material
{
	struct dfl_settings settings;
	struct dfl_tls *tls;
	char	   *token;
};

static void
wipe_token(char *token)
{
	if (token == NULL)
		return;
	explicit_bzero(token, strlen(token));
	free(token);
}

static void
material_free(struct material *m)
{
	dfl_settings_free(&m->settings);
	dfl_tls_release(m->tls);
	wipe_token(m->token);
}

static enum dfl_status
read_token(struct material *m, struct dfl_error *err)
{
	const char *path = m->settings.auth_token_file;

	/* Says in the log what is wrong with the file's owner or mode. */
	if (path[0] != '\0' && !check_ssl_key_file_permissions(path, false))
		return dfl_fail(err, DFL_AUTH, "login token file %s: cannot be used, see the server log", path);
	return dfl_settings_read_token(&m->settings, &m->token, err);
}

/* Reads the settings and the files that they name. On failure *m holds nothing, or only its settings (*usable false). */
static enum dfl_status
material_read(struct material *m, struct dfl_error *err)
{
	enum dfl_status status;

	memset(m, 0, sizeof(*m));
	status = dfl_settings_gather(&m->settings, err);
	if (status != DFL_OK)
		return status;
	status = read_token(m, err);
	if (status == DFL_OK)
		status = dfl_tls_new(&m->settings, &m->tls, err);
	return status;
}

/* At a reload: everything new is used, or nothing of it. */
static void
reconfigure(void)
{
	struct material m;
	struct dfl_error err;
	enum dfl_status status = material_read(&m, &err);

	if (status == DFL_OK)
		status = dfl_client_configure(dfl_worker_client, &m.settings, m.token, m.tls, dfl_clock(), &err);
	/* First of all, because whoever writes to the log may be interrupted. */
	material_free(&m);
	if (status == DFL_OK)
		dfl_worker_unusable.status = DFL_OK;
	else
		ereport(LOG, (errmsg("dflockd: new settings are not used: %s", err.text),
					  errdetail("The settings of before stay in force.")));
}

/* ------------------------------------------------------------------- start */

static void
choose_socket_limit(void)
{
	struct rlimit limit;

	socket_limit = dfl_max_connections;
	if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY)
		socket_limit = Min(socket_limit, (int64) limit.rlim_cur - SOCKET_RESERVE);
	socket_limit = Max(socket_limit, 1);
}

static struct dfl_client_config
client_config(const struct material *m)
{
	struct dfl_client_config config;

	memset(&config, 0, sizeof(config));
	config.settings = &m->settings;
	config.auth_token = m->token;
	config.tls = m->tls;
	config.fences = fence_book;
	config.keep_warm = true;
	config.seed = (uint64) dfl_clock().us ^ ((uint64) MyProcPid << 32);
	config.host.watch = watch;
	config.host.log = keep_line;
	config.host.call_done = dfl_slots_call_done;
	config.host.hold_changed = dfl_holds_changed;
	config.host.hold_gone = dfl_holds_gone;
	config.host.link_changed = dfl_holds_link_changed;
	config.host.take_lock = dfl_holds_take_lock;
	config.host.give_lock = dfl_holds_give_lock;
	config.host.take_socket = take_socket;
	config.host.give_socket = give_socket;
	return config;
}

/*
 * The engine. A login token or TLS material that cannot be read does not keep the worker from running: requests are
 * refused with the reason until a reload finds it mended.
 */
static void
make_client(void)
{
	struct material m;
	struct dfl_client_config config;
	enum dfl_status status = material_read(&m, &dfl_worker_unusable);
	struct dfl_error err;

	dfl_worker_unusable.status = status;
	if (status != DFL_OK)
		ereport(LOG, (errmsg("dflockd: the lock servers cannot be used: %s", dfl_worker_unusable.text)));
	config = client_config(&m);
	if (m.settings.servers == NULL || dfl_client_new(&config, &dfl_worker_client, &err) != DFL_OK)
		ereport(ERROR, (errmsg("dflockd: cannot start: %s", m.settings.servers ? err.text : dfl_worker_unusable.text)));
	material_free(&m);
}

static void
make_wait_set(void)
{
	int			descriptor;

	if (dfl_wait_new(DFL_WAIT_DEFAULT, &watched) != DFL_OK)
		ereport(ERROR, (errmsg("dflockd: cannot start: no descriptor to wait on")));
	descriptor = dfl_wait_descriptor(watched);
	wait_set = compat_wait_set_new(3);
	AddWaitEventToSet(wait_set, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
	AddWaitEventToSet(wait_set, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, NULL, NULL);
	if (descriptor >= 0)
		AddWaitEventToSet(wait_set, WL_SOCKET_READABLE, descriptor, NULL, NULL);
}

/* Before any socket is closed: no backend may count on this worker any more. */
static void
leave(int code, Datum argument)
{
	pg_atomic_write_u64(&dfl_shared->worker, 0);
	pg_memory_barrier();
	for (uint32 i = 0; i < dfl_shared->slot_count; i++)
		if (pg_atomic_read_u64(&dfl_slot(i)->session) & 1)
			SetLatch(compat_proc_latch(i));
}

/* From here on backends are served. */
static void
announce(void)
{
	before_shmem_exit(leave, (Datum) 0);
	pg_atomic_write_u32(&dfl_shared->worker_index, compat_slot_index());
	pg_atomic_write_u64(&dfl_shared->heartbeat_ms, (uint64) dfl_clock().ms);
	pg_memory_barrier();
	pg_atomic_write_u64(&dfl_shared->worker, dfl_worker_number);
	/* After it: who finds this set and that not looks at a worker that has ended, not at one that begins. */
	pg_memory_barrier();
	dfl_shared->last_worker = dfl_worker_number;
	ereport(LOG, (errmsg("dflockd: worker %llu started, at most " INT64_FORMAT " sockets and %d locks",
						 (unsigned long long) dfl_worker_number, socket_limit, dfl_max_locks)));
}

static void
start(void)
{
	dfl_worker_number = dfl_shared->last_worker + 1;
	choose_socket_limit();
	if (dfl_fence_book_new(&fence_book) != DFL_OK)
		ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
	dfl_holds_init();
	dfl_slots_init();
	make_wait_set();
	make_client();
	announce();
}

/* -------------------------------------------------------------------- the loop */

/* How long the loop may sleep. */
static long
sleep_ms(void)
{
	int64		next = dfl_client_next_ms(dfl_worker_client);
	int64		now = dfl_clock().ms;
	int64		longest = 60000;

	if (dfl_slots_pending() || ShutdownRequestPending)
		longest = HEARTBEAT_MS;
	if (dfl_wait_descriptor(watched) < 0 && dfl_client_busy(dfl_worker_client))
		longest = POLL_MS;
	if (next <= now)
		return 0;
	return (long) Min(next - now, longest);
}

static void
sleep_until_event(long ms)
{
	WaitEvent	event;

	WaitEventSetWait(wait_set, ms, &event, 1, compat_wait_event(&wait_event, "DflockdWorkerMain"));
}

/* Hands readiness and time to the engine. */
static void
drive(void)
{
	if (dfl_wait_prepare(watched, &wait_round) == DFL_OK)
	{
		if (dfl_wait_block(&wait_round, 0, -1) > 0)
			dfl_wait_dispatch(watched, &wait_round, ready, NULL);
	}
	dfl_client_run(dfl_worker_client, dfl_clock());
}

/* What the backends want, sent together: at many backends most of the cost of a lock is its packet. */
static bool
serve_slots(void)
{
	volatile bool again = false;

	dfl_client_gather(dfl_worker_client, dfl_clock());
	PG_TRY();
	{
		again = dfl_slots_serve();
	}
	PG_FINALLY();
	{
		dfl_client_send(dfl_worker_client);
	}
	PG_END_TRY();
	return again;
}

/* One turn; may_sleep: then waits for the next event. Whatever it raises is caught around it. */
static void
turn(bool may_sleep)
{
	bool		again;

	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
	if (ConfigReloadPending)
	{
		ConfigReloadPending = false;
		/* Both may write to the log, and a cancel that was heard there would leave new settings unused. */
		HOLD_INTERRUPTS();
		ProcessConfigFile(PGC_SIGHUP);
		reconfigure();
		RESUME_INTERRUPTS();
	}
	pg_atomic_write_u64(&dfl_shared->heartbeat_ms, (uint64) dfl_clock().ms);
	again = serve_slots();
	drive();
	dfl_slots_publish();
	write_lines();
	if (may_sleep && !again)
		sleep_until_event(sleep_ms());
}

/* An error in a turn is reported and takes nothing with it. */
static void
guarded_turn(bool may_sleep)
{
	MemoryContext context = CurrentMemoryContext;

	PG_TRY();
	{
		turn(may_sleep);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		EmitErrorReport();
		FlushErrorState();
	}
	PG_END_TRY();
	MemoryContextReset(context);
}

/* ------------------------------------------------------------------------- end */

/* Is the whole cluster going down? The postmaster writes so before it signals anybody. */
static bool
cluster_stops(void)
{
	FILE	   *file = fopen("postmaster.pid", "r");
	char		line[MAXPGPATH];
	bool		stops = false;

	if (file == NULL)
		return true;
	for (int i = 1; fgets(line, sizeof(line), file) != NULL; i++)
		if (i == LOCK_FILE_LINE_PM_STATUS)
			stops = strncmp(line, PM_STATUS_STOPPING, strlen(PM_STATUS_STOPPING)) == 0;
	fclose(file);
	return stops;
}

/* Serves until the backends have detached and their releases are answered. */
static void
drain(void)
{
	int64		end_ms = dfl_clock().ms + DRAIN_MS;

	while (dfl_slots_attached() > 0 && dfl_clock().ms < end_ms)
		guarded_turn(true);
	/* The last ones to leave have left work. */
	guarded_turn(false);
	dfl_client_shutdown(dfl_worker_client, dfl_clock());
	end_ms = dfl_clock().ms + FLUSH_MS;
	while (dfl_client_left_behind(dfl_worker_client) && dfl_clock().ms < end_ms)
	{
		drive();
		write_lines();
		ResetLatch(MyLatch);
		sleep_until_event(Min(sleep_ms(), 100));
	}
}

void
dfl_worker_main(Datum argument)
{
	MemoryContext context;

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, SignalHandlerForShutdownRequest);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);
	start();
	context = AllocSetContextCreate(TopMemoryContext, "dflockd turn", ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(context);
	while (!ShutdownRequestPending)
		guarded_turn(true);
	if (cluster_stops())
		drain();
	/* 0 would unregister the worker until the next start of the server. */
	proc_exit(1);
}

void
dfl_worker_register(void)
{
	BackgroundWorker worker;

	memset(&worker, 0, sizeof(worker));
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_ConsistentState;
	worker.bgw_restart_time = 1;
	strlcpy(worker.bgw_library_name, "dflockd", BGW_MAXLEN);
	strlcpy(worker.bgw_function_name, "dfl_worker_main", BGW_MAXLEN);
	strlcpy(worker.bgw_name, "dflockd worker", BGW_MAXLEN);
	strlcpy(worker.bgw_type, "dflockd worker", BGW_MAXLEN);
	RegisterBackgroundWorker(&worker);
}
