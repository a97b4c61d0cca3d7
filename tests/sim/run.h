/*
 * run.h - what world.c and main.c share: how a schedule ends that has found a fault.
 */
#ifndef SIM_RUN_H
#define SIM_RUN_H

#include <setjmp.h>

extern jmp_buf run_end;
extern char run_finder[64], run_what[512];

#endif
