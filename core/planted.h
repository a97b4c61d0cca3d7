/*
 * planted.h - bugs planted on purpose, to see that the simulation finds them. In every build but
 * its own, DFL_PLANTED is the constant false and nothing of them is compiled.
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
