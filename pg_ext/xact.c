/*
 * xact.c - what locks have to do with transactions: the check before COMMIT, the return of locks at the end of
 * transactions and savepoints, the refusal of PREPARE, and the return of everything at DISCARD ALL and RESET ALL.
 *
 * The callbacks after the commit or the abort only mark holds and wake the worker: no wait, no allocation, no error (an
 * error after the commit would take the whole server down).
 */
#include "backend.h"

#include "access/xact.h"
#include "nodes/parsenodes.h"

static ProcessUtility_hook_type previous_utility;

/* ---------------------------------------------------------------- before the end */

/* Whatever this transaction counts on must be held now. */
static void
check_holds(void)
{
	dlist_iter	iter;

	dlist_foreach(iter, &dfl_own_in_xact)
	{
		struct dfl_own *own = dlist_container(struct dfl_own, by_xact, iter.cur);
		struct dfl_error err;

		if (own->scope != DFL_SCOPE_XACT && own->asserted_in == InvalidSubTransactionId)
			continue;
		err.text[0] = '\0';
		if (dfl_own_check(own, err.text, sizeof(err.text)) == DFL_OWN_HELD)
			continue;
		own->told = true;
		err.status = DFL_LOST;
		dfl_raise(&err, "The transaction is rolled back; it can be tried again.");
	}
}

static void
refuse_prepare(void)
{
	dlist_iter	iter;

	dlist_foreach(iter, &dfl_own_in_xact)
	{
		struct dfl_own *own = dlist_container(struct dfl_own, by_xact, iter.cur);
		struct dfl_error err;

		if (!own->findable || own->taken_in == InvalidSubTransactionId)
			continue;
		dfl_fail(&err, DFL_UNSUPPORTED, "cannot PREPARE a transaction that has taken %s \"%s\"",
				 own->kind == DFL_LOCK ? "lock" : "semaphore", own->key);
		dfl_raise(&err, NULL);
	}
	check_holds();
}

/* ---------------------------------------------------------------------- the end */

/* Transaction locks go, session locks stay and belong to no transaction any more. */
static void
after_commit(void)
{
	while (!dlist_is_empty(&dfl_own_in_xact))
	{
		struct dfl_own *own = dlist_head_element(struct dfl_own, by_xact, &dfl_own_in_xact);

		own->asserted_in = InvalidSubTransactionId;
		if (own->scope == DFL_SCOPE_XACT && own->findable)
			dfl_own_give_back(own);
		else
			dfl_own_leave_xact(own);
	}
	dfl_marks_ring();
}

/* Whatever it took goes. */
static void
after_abort(void)
{
	while (!dlist_is_empty(&dfl_own_in_xact))
	{
		struct dfl_own *own = dlist_head_element(struct dfl_own, by_xact, &dfl_own_in_xact);

		own->asserted_in = InvalidSubTransactionId;
		if (own->taken_in != InvalidSubTransactionId && own->findable)
			dfl_own_give_back(own);
		else
			dfl_own_leave_xact(own);
	}
	dfl_marks_ring();
}

static void
transaction_event(XactEvent event, void *arg)
{
	/* Most transactions have nothing to do with locks. */
	if (dlist_is_empty(&dfl_own_in_xact))
		return;
	if (event == XACT_EVENT_PRE_COMMIT)
		check_holds();
	else if (event == XACT_EVENT_PRE_PREPARE)
		refuse_prepare();
	else if (event == XACT_EVENT_COMMIT || event == XACT_EVENT_PREPARE)
		after_commit();
	else if (event == XACT_EVENT_ABORT)
		after_abort();
}

/* -------------------------------------------------------------------- savepoints */

static void
after_savepoint_commit(SubTransactionId id, SubTransactionId parent)
{
	dlist_iter	iter;

	dlist_foreach(iter, &dfl_own_in_xact)
	{
		struct dfl_own *own = dlist_container(struct dfl_own, by_xact, iter.cur);

		if (own->taken_in == id)
			own->taken_in = parent;
		if (own->asserted_in == id)
			own->asserted_in = parent;
	}
}

/* The part of one hold in a savepoint that is rolled back. */
static void
undo_in_savepoint(struct dfl_own *own, SubTransactionId id)
{
	if (own->asserted_in == id)
		own->asserted_in = InvalidSubTransactionId;
	if (own->taken_in == id && own->findable)
		dfl_own_give_back(own);
	else if (own->asserted_in == InvalidSubTransactionId &&
			 (own->taken_in == InvalidSubTransactionId || !own->findable))
		dfl_own_leave_xact(own);
}

static void
after_savepoint_abort(SubTransactionId id)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &dfl_own_in_xact)
		undo_in_savepoint(dlist_container(struct dfl_own, by_xact, iter.cur), id);
	dfl_marks_ring();
}

static void
savepoint_event(SubXactEvent event, SubTransactionId id, SubTransactionId parent, void *arg)
{
	if (dlist_is_empty(&dfl_own_in_xact))
		return;
	if (event == SUBXACT_EVENT_COMMIT_SUB)
		after_savepoint_commit(id, parent);
	else if (event == SUBXACT_EVENT_ABORT_SUB)
		after_savepoint_abort(id);
}

/* ----------------------------------------------------------- DISCARD ALL, RESET ALL */

static bool
is_reset(const Node *statement)
{
	if (IsA(statement, DiscardStmt))
		return ((const DiscardStmt *) statement)->target == DISCARD_ALL;
	if (IsA(statement, VariableSetStmt))
		return ((const VariableSetStmt *) statement)->kind == VAR_RESET_ALL;
	return false;
}

static void
run_utility(COMPAT_UTILITY_PARAMETERS)
{
	bool		reset = is_reset(pstmt->utilityStmt);

	if (previous_utility)
		previous_utility(COMPAT_UTILITY_ARGUMENTS);
	else
		standard_ProcessUtility(COMPAT_UTILITY_ARGUMENTS);
	if (reset && dfl_attached())
		dfl_own_give_back_all();
}

void
dfl_xact_init(void)
{
	RegisterXactCallback(transaction_event, NULL);
	RegisterSubXactCallback(savepoint_event, NULL);
	previous_utility = ProcessUtility_hook;
	ProcessUtility_hook = run_utility;
}
