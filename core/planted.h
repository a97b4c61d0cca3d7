/*
 * planted.h - bugs planted on purpose, to see that the finders of bugs find them: tests/sim/planted
 * and tests/planted/run say which is found by what. In every build but theirs, DFL_PLANTED is the
 * constant false and nothing of them is compiled.
 *
 * 1 to 19 are the engine's and the lock table's (but 10 and 14), 20 to 23 the PostgreSQL host's,
 * 31 to 38 the server loop's, 41 to 47 one for each target of tests/fuzz, 48 and 49 lack of memory.
 */
#ifndef DFL_PLANTED_H
#define DFL_PLANTED_H

#ifdef DFL_PLANT
extern int dfl_planted; /* the one that is switched on; 0 = none */
#define DFL_PLANTED(n) (dfl_planted == (n))
#else
#define DFL_PLANTED(n) 0
#endif

#endif
